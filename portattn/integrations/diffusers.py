"""portattn as an attention backend of diffusers: `model.set_attention_backend("portattn")`.

diffusers keeps its backends in a private registry whose keys are members of a closed Enum. A member
is added while registered, so each supported version has been tried, and others are refused.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor

import portattn
from portattn.errors import IntegrationError
from portattn.integrations import versions

NAME = "portattn"


class Registration:
    """The backend as `register` added it; `undo` takes it out. Works as a context manager.

    A registration that found portattn registered already leaves it so. Reset models that use it
    (`model.reset_attention_backend()`) before undoing.
    """

    def __init__(self, dispatch: Any, added: bool) -> None:
        self._dispatch = dispatch
        self._added = added

    def undo(self) -> None:
        """Remove the backend; a second call does nothing."""
        if self._added:
            _remove(self._dispatch)
        self._added = False

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()


def register() -> Registration:
    """Make "portattn" known to `set_attention_backend` and diffusers' `attention_backend`.

    Raises IntegrationError when diffusers is missing or of an unsupported version.
    """
    versions.require("diffusers", at_least=(0, 36), below=(0, 43))
    from diffusers.models import attention_dispatch

    added = NAME not in attention_dispatch.AttentionBackendName._value2member_map_
    if added:
        _add(attention_dispatch)
    return Registration(attention_dispatch, added)


class _EveryName(set[str]):
    """The names of the arguments; claims any other too.

    diffusers drops what a backend's signature doesn't list. Here all arguments arrive, and those
    that can't be honoured are refused.
    """

    def __contains__(self, name: object) -> bool:
        return True


def _add(dispatch: Any) -> None:
    names, registry = dispatch.AttentionBackendName, dispatch._AttentionBackendRegistry
    member = str.__new__(names, NAME)
    member._name_, member._value_ = NAME.upper(), NAME
    names._member_map_[member._name_] = member
    names._member_names_.append(member._name_)
    names._value2member_map_[NAME] = member
    constraints = [dispatch._check_device, dispatch._check_shape]
    registry.register(member, constraints=constraints)(attention_backend)
    registry._supported_arg_names[member] = _EveryName(registry._supported_arg_names[member])


def _remove(dispatch: Any) -> None:
    names, registry = dispatch.AttentionBackendName, dispatch._AttentionBackendRegistry
    member = names._value2member_map_.pop(NAME)
    del names._member_map_[member._name_]
    names._member_names_.remove(member._name_)
    for table in (registry._backends, registry._constraints, registry._supported_arg_names):
        del table[member]
    if registry._active_backend is member:
        registry.set_active_backend(names(dispatch.DIFFUSERS_ATTN_BACKEND))


def attention_backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _parallel_config: Any = None,
    **others: Any,
) -> Tensor:
    """The function that diffusers calls; not for users.

    query [B, Sq, H, D], key [B, Sk, Hkv, D], value [B, Sk, Hkv, Dv]. attn_mask: bool (True takes
    part) or float (added), [B, Sk] or broadcastable to [B, H, Sq, Sk]. is_causal is top-left
    aligned, as torch's. Returns [B, Sq, H, Dv]. Raises IntegrationError for anything else.
    """
    if return_lse or _parallel_config is not None:
        raise IntegrationError("diffusers' context parallelism isn't available with portattn")
    for name, given in others.items():
        if given is not None:
            raise IntegrationError(
                f"{name!r} is not known to portattn; use another attention backend"
            )
    out = portattn.sdpa(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=_as_scores(attn_mask, query.shape[0], key.shape[1]),
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )
    return out.transpose(1, 2)


def _as_scores(mask: Tensor | None, batch: int, seqlen_k: int) -> Tensor | None:
    """A mask of the keys, [B, Sk], as [B, 1, 1, Sk]; others broadcast as they are."""
    if mask is None:
        return None
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise IntegrationError(f"attn_mask: must be bool or float, got {mask.dtype}")
    return mask[:, None, None] if mask.shape == (batch, seqlen_k) else mask
