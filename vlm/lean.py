"""Fewer operators in a decoding step: casts of weights that do not change are made once, heads are not repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class Lean:
    """A model's layers for the time of decoding, in which its weights stay as they are.

    * Adapters: both factors in the type that is computed in, the scaling within the second; the sum is rounded once.
      Merged they cost no operator, but a copy of the weights that they adapt, and rounding is not that of learning.
    * Linear layers whose weights are of another type than autocast's: cast once.
    * Attention: heads that share keys stand side by side as further queries, so that keys are read where they are.

    Args:
        parts: of the model, that a step goes through.
        autocast: what it is computed in, or None for the weights' own type.
        merge: adapters are added to a copy of the weights.
    """

    def __init__(self, parts: Sequence[nn.Module], autocast: torch.dtype | None, merge: bool = False) -> None:
        modules = [module for part in parts for module in part.modules()]
        self.layers: list[_Adapted | _Merged | _Cast] = []
        inside: set[int] = set()
        for part in modules:
            if plain_adapter(part):
                self.layers.append((_Merged if merge else _Adapted)(part, autocast))
                inside |= {id(each) for each in part.modules()}
        for part in modules:
            if type(part) is nn.Linear and id(part) not in inside and autocast not in (None, part.weight.dtype):
                self.layers.append(_Cast(part, autocast))

    def refresh(self) -> None:
        """Take the weights as they are now."""
        for layer in self.layers:
            layer.refresh()

    @contextmanager
    def worn(self) -> Iterator[None]:
        """The model computes in this way for a while."""
        attention: Any = ALL_ATTENTION_FUNCTIONS
        for layer in self.layers:
            layer.part.__dict__["forward"] = layer.forward  # before the class's own
        attention["sdpa"] = side_by_side
        try:
            yield
        finally:
            del attention["sdpa"]  # transformers' own is below it
            for layer in self.layers:
                del layer.part.__dict__["forward"]


def plain_adapter(part: Any) -> bool:
    """Whether a module is a linear layer with one LoRA adapter in use and nothing special about it."""
    if not hasattr(part, "lora_A") or type(getattr(part, "base_layer", None)) is not nn.Linear:
        return False
    name = part.active_adapters[0] if len(part.active_adapters) == 1 else None
    special = part.disable_adapters or part.merged or name in getattr(part, "lora_variant", {})
    return name in part.lora_A and not special and part.lora_B[name].bias is None


class _Adapted:
    def __init__(self, part: Any, autocast: torch.dtype | None) -> None:
        self.part, name = part, part.active_adapters[0]
        self.first, self.second, self.scaling = part.lora_A[name], part.lora_B[name], part.scaling[name]
        weight = part.base_layer.weight
        dtype = weight.dtype if autocast is None else autocast
        self.base = None if weight.dtype == dtype else _Cast(part.base_layer, dtype)
        self.down = torch.empty_like(self.first.weight, dtype=dtype, requires_grad=False)
        self.up = torch.empty_like(self.second.weight, dtype=dtype, requires_grad=False)

    def refresh(self) -> None:
        self.down.copy_(self.first.weight)
        self.up.copy_(self.second.weight * self.scaling)
        if self.base is not None:
            self.base.refresh()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.part.base_layer(x) if self.base is None else self.base.forward(x)
        result.view(-1, result.shape[-1]).addmm_(F.linear(x, self.down).flatten(0, -2), self.up.T)
        return result


class _Merged:
    def __init__(self, part: Any, autocast: torch.dtype | None) -> None:
        self.part, self.base, name = part, part.base_layer, part.active_adapters[0]
        self.first, self.second, self.scaling = part.lora_A[name], part.lora_B[name], part.scaling[name]
        dtype = self.base.weight.dtype if autocast is None else autocast
        self.weight = torch.empty_like(self.base.weight, dtype=dtype, requires_grad=False)

    def refresh(self) -> None:
        change = self.second.weight.float() @ self.first.weight.float()
        self.weight.copy_(change.mul_(self.scaling).add_(self.base.weight))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.base.bias
        return F.linear(x, self.weight, None if bias is None else bias.to(self.weight.dtype))


class _Cast:
    def __init__(self, part: nn.Linear, dtype: torch.dtype | None) -> None:
        self.part = part
        self.weight = torch.empty_like(part.weight, dtype=dtype, requires_grad=False)
        self.bias = None if part.bias is None else torch.empty_like(part.bias, dtype=dtype, requires_grad=False)

    def refresh(self) -> None:
        self.weight.copy_(self.part.weight)
        if self.bias is not None:
            self.bias.copy_(self.part.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def side_by_side(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of queries [M, H, T, D] to keys [M, G, K, D]; the mask [M, 1, T * H / G, K] is added, and repeated for
    the heads."""
    rows, heads, times, size = query.shape
    beside = query.reshape(rows, key.shape[1], heads // key.shape[1] * times, size)
    mask = None if attention_mask is None else attention_mask.to(query.dtype)
    found = F.scaled_dot_product_attention(beside, key, value, attn_mask=mask, scale=scaling)
    return found.reshape(rows, heads, times, -1).transpose(1, 2), None
