"""Layers that recompute themselves in the backward pass, on shared prompts too.

transformers recomputes layers without their memory of earlier tokens. Here a layer's keys and values are outputs of
what is recomputed, like its hidden states: what later tokens make of them comes back as their gradient, and a prompt is
still read once for all its completions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import UsageError
from .memory import Growing, Memory, picker


class Lent(Growing):  # type: ignore[no-untyped-call]
    """Rows of what was read that are copied only inside the layer which looks at them, and may be read on from once."""

    def __init__(self, keys: Tensor, values: Tensor, pick: Callable[[Tensor], Tensor]) -> None:
        super().__init__(keys, values)
        self.pick = pick

    def again(self) -> Lent:
        return Lent(self.keys, self.values, self.pick)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        known, pairs = (self.keys, self.values), (key_states, value_states)
        keys, values = (torch.cat([self.pick(old), new], -2) for old, new in zip(known, pairs, strict=True))
        return keys, values


def lent(known: Memory, index: Tensor) -> Memory:
    """Rows [B] long of a state, to be read on from once, with a graph."""
    pick = picker(index, len(known.mask), known.mask.device)
    cache = DynamicCache()
    cache.layers = [Lent(layer.keys, layer.values, pick) for layer in known.cache.layers]
    return Memory(cache, pick(known.mask), pick(known.positions), padded=known.padded)


class _Told:
    """A cache as one layer sees it, now and when it recomputes: what the layer adds is noted beside it."""

    def __init__(self, cache: Any, layers: Sequence[Any]) -> None:
        self.cache, self.layers = cache, layers
        self.added: dict[int, tuple[Tensor, Tensor]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def update(self, keys: Tensor, values: Tensor, place: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        layer = self.layers[place] if place < len(self.layers) else None
        if layer is not None and layer.is_initialized:
            apart = layer if isinstance(layer, Growing) else Growing(layer.keys, layer.values)
            keys, values = apart.again().update(keys, values)
        if not isinstance(layer, Lent):
            self.added[place] = keys, values
        return keys, values


def layers_of(base: nn.Module, share: float) -> list[nn.Module]:
    """The layers of a model, tower and decoder, that are recomputed: a share of them, the first of each stack.

    Raises:
        UsageError: the model has no layers that are known as such.
    """
    stacks: dict[str, list[nn.Module]] = {}
    for name, part in base.named_modules():
        if isinstance(part, GradientCheckpointingLayer):
            stacks.setdefault(name.rpartition(".")[0], []).append(part)
    if share and not stacks:
        raise UsageError(f"gradient_checkpointing: the layers of {type(base).__name__} are not known: leave it out")
    return [layer for stack in stacks.values() for layer in stack[: math.ceil(share * len(stack))]]


@contextmanager
def recomputed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, layers that are run with a graph keep what they are given alone, and recompute the rest."""
    if not torch.is_grad_enabled():
        yield
        return
    for layer in layers:
        layer.forward = partial(_forgetting, layer.forward, layer.training)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forgetting(forward: Callable[..., Any], training: bool, *args: Any, **told: Any) -> Any:
    name = next((key for key, value in told.items() if isinstance(value, Cache)), None)
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=training)
    if name is None:
        return again(partial(forward, **told), *args)
    cache = told[name]
    before = list(cache.layers)

    def run(*given: Any) -> tuple[Any, dict[int, tuple[Tensor, Tensor]]]:
        seen = _Told(cache, before)
        return forward(*given, **{**told, name: seen}), seen.added

    output, added = again(run, *args)
    for place, pair in added.items():
        while len(cache.layers) <= place:
            cache.layers.append(None)
        cache.layers[place] = Growing(*pair)
    return output
