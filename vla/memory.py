"""What a vision-language model that says actions takes on a device, counted without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ..trainers.peak import peak_bytes


def action_model_plan(
    policy: Any, inputs: Mapping[str, Tensor], *, dtype: torch.dtype | None = None, forks: int = 1
) -> dict[str, int]:
    """Bytes by what they are for; "total" is what there is always, and the larger of acting and learning.

    Args:
        policy: an ``OpenVLAPolicy`` on weights with or without data (``trainers.peak.fake``).
        inputs: what its model reads of one picture, [1, ...] each.
        dtype: of autocast.
        forks: copies of what is trained, such as the start.
    """
    module = policy.module
    weights = sum(weight.numel() * weight.element_size() for weight in (*module.parameters(), *module.buffers()))
    trained = sum(weight.numel() * weight.element_size() for weight in policy.parameters())

    def batch(rows: int) -> dict[str, Tensor]:
        return {name: value.expand(rows, *value.shape[1:]) for name, value in inputs.items()}

    def acting() -> Tensor:
        with torch.no_grad():
            kept = module(**batch(policy.sample_rows), use_cache=True, logits_to_keep=1)
            return cast(Tensor, kept.logits)

    def learning() -> Tensor:
        with policy.recomputing():
            tokens = torch.zeros(policy.micro_batch_rows, policy.per_chunk, dtype=torch.long)
            logs = policy.read(batch(policy.micro_batch_rows), tokens).log_softmax(-1)
        return cast(Tensor, (logs.exp() * logs).sum(-1) + logs[..., 0])

    sides = {"acting": peak_bytes(module, acting, dtype), "learning": peak_bytes(module, learning, dtype)}
    always = {"weights": weights, "gradients": trained, "optimiser": 2 * trained, "copies": forks * trained}
    return always | sides | {"total": sum(always.values()) + max(sides.values())}
