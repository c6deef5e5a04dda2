"""Tiny models of many architectures, with random weights large enough that every term shows."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

# transformers leaves much of itself untyped.
tf: Any = transformers

VOCABULARY = 64
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    # Tied to the input, some answer every token with itself.
    "tie_word_embeddings": False,
}
_GQA = {"num_key_value_heads": 2}
_SLIDING = {"sliding_window": 5}
_ALTERNATING = {**_SLIDING, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
# Multi-head latent attention: keys of 12 dimensions, values of 8.
_LATENT = {
    **_EXPERTS,
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}

# Decoders, by the prefix of their config class, and what sets each apart.
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": _GQA,
    "Mistral": {**_GQA, **_SLIDING, "head_dim": 8},
    "Mixtral": {**_GQA, **_SLIDING, "num_local_experts": 4},
    "Qwen2": {**_GQA, **_SLIDING, "use_sliding_window": True, "max_window_layers": 1},
    "Qwen3": {**_GQA, "head_dim": 8},
    "Qwen3Moe": {**_GQA, **_EXPERTS, "head_dim": 8, "num_experts": 4},
    "Gemma": {**_GQA, "head_dim": 8},
    "Gemma2": {**_GQA, **_SLIDING, "head_dim": 8, "query_pre_attn_scalar": 8},
    "Gemma3Text": {**_GQA, **_ALTERNATING, "head_dim": 8, "query_pre_attn_scalar": 8},
    "Gemma4Text": {
        **_GQA,
        **_ALTERNATING,
        "head_dim": 8,
        "global_head_dim": 8,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
    "GptOss": {
        **_GQA,
        **_SLIDING,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "Phi3": {**_GQA, **_SLIDING},
    "Cohere": _GQA,
    "Cohere2": {**_GQA, **_ALTERNATING, "head_dim": 8},
    "DeepseekV3": _LATENT,
    "DeepseekV32": {**_LATENT, "index_topk": 4, "index_n_heads": 2, "index_head_dim": 8},
    "Llama4Text": {
        **_GQA,
        "head_dim": 8,
        "attention_chunk_size": 6,
        "num_local_experts": 2,
        "intermediate_size_mlp": 48,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
    },
    "GraniteSWA": {**_GQA, **_SLIDING},
    "Olmo3": {**_GQA, **_ALTERNATING},
    "StableLm": _GQA,
    "GPT2": _GPT2,
    "GPTBigCode": _GPT2,
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}

_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
_IMAGE = {"image_size": 32, "patch_size": 8}

# Others: config class prefix, model class suffix, config, which inputs.
ENCODERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "Bert": ("Bert", "Model", {}, "text"),
    "Bert as decoder": ("Bert", "LMHeadModel", {"is_decoder": True}, "text"),
    "ModernBert": (
        "ModernBert",
        "Model",
        {"local_attention": 4, "global_attn_every_n_layers": 2, "eos_token_id": 2},
        "text",
    ),
    "Albert": ("Albert", "Model", {"embedding_size": 8}, "text"),
    "T5": ("T5", "ForConditionalGeneration", {**_T5, "decoder_start_token_id": 0}, "pair"),
    "UMT5": ("UMT5", "ForConditionalGeneration", {**_T5, "decoder_start_token_id": 0}, "pair"),
    "Bart": ("Bart", "ForConditionalGeneration", {**_BART, "eos_token_id": 2}, "pair"),
    "Whisper": (
        "Whisper",
        "ForConditionalGeneration",
        {**_BART, "num_mel_bins": 8, "max_source_positions": 16, "decoder_start_token_id": 1},
        "sound",
    ),
    "ViT": ("ViT", "Model", _IMAGE, "image"),
    "Dinov2": ("Dinov2", "Model", _IMAGE, "image"),
    "SiglipVision": ("SiglipVision", "Model", _IMAGE, "image"),
    "Swin": (
        "Swin",
        "Model",
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2]}
        | {"window_size": 4},
        "image",
    ),
}


@cache
def _decoder(name: str) -> Any:
    config = getattr(tf, f"{name}Config")(**{**_COMMON, **DECODERS[name]})
    return _randomised(lambda: tf.AutoModelForCausalLM.from_config(config))


@cache
def _encoder(name: str) -> Any:
    prefix, suffix, special, kind = ENCODERS[name]
    common = {} if kind == "image" and prefix == "Swin" else dict(_COMMON)
    config = getattr(tf, f"{prefix}Config")(**{**common, **special})
    return _randomised(lambda: getattr(tf, f"{prefix}{suffix}")(config))


def _randomised(build: Any) -> Any:
    # A fixed seed: greedy generation compares argmaxes, and fresh weights meet a tie now and then.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "sinks" in name:
                torch.nn.init.normal_(parameter, std=1.0 if "sinks" in name else 0.3)
    return model


def decoder(name: str, implementation: str) -> Any:
    """A copy of a causal language model with that attention."""
    return _with_attention(_decoder(name), implementation)


def encoder(name: str, implementation: str) -> Any:
    """A copy of one of the other models with that attention."""
    return _with_attention(_encoder(name), implementation)


def _with_attention(model: Any, implementation: str) -> Any:
    model = copy.deepcopy(model)
    model.set_attn_implementation(implementation)
    return model


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids [batch, length] without special tokens."""
    return torch.randint(
        3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed)
    )


def encoder_inputs(name: str) -> dict[str, Tensor]:
    """What the model takes, with padding on the right where there is text."""
    kind = ENCODERS[name][3]
    if kind == "image":
        return {"pixel_values": torch.randn(2, 3, 32, 32)}
    if kind == "sound":
        return {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": tokens(2, 7)}
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[0, 9:] = 0
    inputs = {"input_ids": tokens(2, 12), "attention_mask": mask}
    return inputs | ({"decoder_input_ids": tokens(2, 7, seed=1)} if kind == "pair" else {})


def left_padded(batch: int, length: int) -> dict[str, Tensor]:
    """Input ids and mask; the first row has three tokens of padding."""
    ids, mask = tokens(batch, length), torch.ones(batch, length, dtype=torch.int64)
    ids[0, :3], mask[0, :3] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}
