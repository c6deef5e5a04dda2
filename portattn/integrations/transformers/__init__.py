"""portattn as an attention implementation of transformers: `attn_implementation="portattn"`."""

from __future__ import annotations

from portattn.integrations.transformers.registration import NAME, Registration, register

__all__ = ["NAME", "Registration", "register"]
