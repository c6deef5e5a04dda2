"""Every library that results are compared with."""

from __future__ import annotations

from torch.nn.attention import SDPBackend

from portattn.cli.bench.peers import Peer
from portattn.cli.bench.peers_flash_attn import FlashAttention, FlashAttention4
from portattn.cli.bench.peers_flashinfer import FlashInfer
from portattn.cli.bench.peers_torch import HeldSdpa, TorchSdpa, TorchVarlen, Xformers

PEERS: tuple[Peer, ...] = (
    TorchSdpa(),
    HeldSdpa("sdpa_cudnn", SDPBackend.CUDNN_ATTENTION),
    HeldSdpa("sdpa_flash", SDPBackend.FLASH_ATTENTION),
    HeldSdpa("sdpa_efficient", SDPBackend.EFFICIENT_ATTENTION),
    TorchVarlen(),
    FlashAttention(),
    FlashAttention4(),
    FlashInfer(),
    Xformers(),
)
