"""flash-attn 2.8's functions, with the same signatures, on any device.

What a caller can notice: rows that see no key have softmax_lse -inf, where flash-attn 2 writes
+inf; softmax_lse is differentiable; return_attn_probs gives None in place of S_dmask, which
flash-attn fills for its own tests only; dropout draws other random numbers; pages of any size work,
and so do float32, float64 and values of another head dim than the keys'.
"""

from portattn.integrations.flash_attn.bert_padding import (
    index_first_axis,
    index_put_first_axis,
    pad_input,
    unpad_input,
)
from portattn.integrations.flash_attn.install import Installation, install
from portattn.integrations.flash_attn.interface import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from portattn.integrations.flash_attn.kvcache import flash_attn_with_kvcache
from portattn.integrations.flash_attn.rotary import apply_rotary_emb

__all__ = [
    "Installation",
    "apply_rotary_emb",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "index_first_axis",
    "index_put_first_axis",
    "install",
    "pad_input",
    "unpad_input",
]
