"""What a transformers model remembers: keys and values, several completions on one prompt's without copies of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .backbone import Prompt, State

Parts = Sequence[tuple[Tensor, Tensor]]
"""Keys or values, and which of their rows."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of a batch that stand in one row of the model, since they read on from the same tokens.

    The shared tokens are remembered once. Behind them every further token is remembered for all completions, one
    behind the other, and each completion looks at its own.

    Attributes:
        times: completions per row of the model.
        shared: tokens read before.
        steps: tokens read since, per completion.
        seen: [M, 1, times, shared + steps * times] which remembered tokens a completion looks at.
    """

    times: int
    shared: int
    steps: int
    seen: Tensor

    def folded(self, rows: Tensor) -> Tensor:
        """[B] or [B, 1] -> [M, times]"""
        return rows.reshape(-1, self.times)

    def further(self) -> Fold:
        """With one more token per completion."""
        own = torch.eye(self.times, dtype=torch.bool, device=self.seen.device).expand(len(self.seen), 1, -1, -1)
        return replace(self, steps=self.steps + 1, seen=torch.cat([self.seen, own], -1))

    def pays(self) -> bool:
        """Whether looking past others' tokens costs less than reading the shared ones again and again."""
        return self.steps * self.times <= 4 * self.shared


@dataclass(eq=False)
class Memory(State):
    """A State that knows whether any row is padded: without padding no mask has to be made.

    Attributes:
        fold: how rows stand in the cache, where they are not its rows.
    """

    padded: bool = False
    fold: Fold | None = None


@dataclass(frozen=True, eq=False)
class Said:
    """The memory of a model that cannot share: what was said, to be read again. Tokens and mask [B, T]."""

    prompts: list[Prompt]
    tokens: Tensor
    mask: Tensor

    def rows(self, pick: Tensor) -> Said:
        index = pick.cpu()
        return Said([self.prompts[int(i)] for i in index], self.tokens[index], self.mask[index])


class Growing(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, written into room for more, where no gradient is wanted.

    transformers' own layer copies all it knows for every token. Copies of a Growing share the room; the first to go on
    from a length writes there, and others that go on from the same length move out.
    """

    keys: Any
    values: Any

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        cast(Any, super()).__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.room: list[Any] | None = None  # keys, values, tokens written

    @classmethod
    def of(cls, length: int, keys: Parts, values: Parts) -> Growing:
        """Of tokens that are picked from other tensors, each moved once; see ``_picked``."""
        rooms = [_picked(length, parts) for parts in (keys, values)]
        layer = cls(*(room[..., :length, :] for room in rooms))
        layer.room = [*rooms, length]
        return layer

    def again(self) -> Growing:
        """The same memory, to be read on from apart."""
        other = Growing(self.keys, self.values)
        other.room = self.room
        return other

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            self.room = None
            self.keys = torch.cat([self.keys, key_states], -2)
            self.values = torch.cat([self.values, value_states], -2)
            return self.keys, self.values
        known = self.keys.shape[-2]
        after = known + key_states.shape[-2]
        if self.room is None or self.room[2] != known or after > self.room[0].shape[-2]:
            self.room = [_with_room(self.keys, after), _with_room(self.values, after), known]
        for place, new in enumerate((key_states, value_states)):
            self.room[place][..., known:after, :] = new
        self.room[2] = after
        self.keys, self.values = self.room[0][..., :after, :], self.room[1][..., :after, :]
        return self.keys, self.values


def _with_room(tensor: Tensor, length: int) -> Tensor:
    """A copy with room for at least this length, and for half as much again or 32 tokens."""
    room = _room(tensor, len(tensor), length)
    room[..., : tensor.shape[-2], :] = tensor
    return room


def _room(like: Tensor, rows: int, length: int) -> Tensor:
    return like.new_empty(rows, *like.shape[1:-2], max(length + 32, length * 3 // 2), like.shape[-1])


def _picked(length: int, parts: Parts) -> Tensor:
    """Rows of several tensors side by side, with room behind them; no copy is made on the way."""
    room, begin = _room(parts[0][0], len(parts[0][1]), length), 0
    for tensor, place in parts:
        end = begin + tensor.shape[-2]
        torch.index_select(tensor, 0, place, out=room[..., begin:end, :])
        begin = end
    return room


def again(cache: Any) -> DynamicCache:
    """A cache to read on with; the old one is not written to."""
    copied = DynamicCache()
    copied.layers = [
        layer.again() if isinstance(layer, Growing) else Growing(layer.keys, layer.values) for layer in cache.layers
    ]
    return copied


def picked(known: Memory, index: Tensor, fold: bool) -> Memory:
    """Rows of what was read; ``fold`` allows to leave equal numbers of copies of every row unmade."""
    size, device = len(known.mask), known.mask.device
    pick, times = picker(index, size, device), _times(index, size)
    mask, positions = pick(known.mask), pick(known.positions)
    if known.fold is not None:
        cache = _unfold(known.cache, known.fold, index)
    elif fold and times > 1:
        seen = known.mask[:, None, None].expand(-1, -1, times, -1)
        folded = Fold(times, known.mask.shape[1], 0, seen)
        return Memory(again(known.cache), mask, positions, padded=known.padded, fold=folded)
    elif times == 1:
        cache = again(known.cache)
    elif torch.is_grad_enabled():
        cache = DynamicCache()
        cache.layers = [Growing(pick(layer.keys), pick(layer.values)) for layer in known.cache.layers]
    else:
        cache = DynamicCache()
        cache.layers = [_layer(layer.keys.shape[-2], layer, lambda t: [(t, index)]) for layer in known.cache.layers]
    return Memory(cache, mask, positions, padded=known.padded)


def unfolded(known: Memory) -> Memory:
    """The same with a row of its own for every completion."""
    return picked(known, torch.arange(len(known.mask)), fold=False)


def _unfold(cache: Any, fold: Fold, index: Tensor) -> DynamicCache:
    def parts(tensor: Tensor) -> Parts:
        shared, own = tensor[..., : fold.shared, :], tensor[..., fold.shared :, :]
        own = own.reshape(*own.shape[:-2], fold.steps, fold.times, own.shape[-1]).movedim(-2, 1).flatten(0, 1)
        return [(shared, index // fold.times), (own, index)]

    made = DynamicCache()
    made.layers = [_layer(fold.shared + fold.steps, layer, parts) for layer in cache.layers]
    return made


def _layer(length: int, known: Any, parts: Callable[[Tensor], Parts]) -> Growing:
    """Picked from a layer; layers may be on several devices."""
    keys, values = ([(t, place.to(t.device)) for t, place in parts(each)] for each in (known.keys, known.values))
    return Growing.of(length, keys, values)


def picker(index: Tensor, size: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """How rows are picked along the first axis: an equal number of copies of each needs no gathering."""
    if times := _times(index, size):
        return lambda tensor: tensor if times == 1 else _repeated(tensor, times)
    place = index.to(device)
    return lambda tensor: tensor.index_select(0, place.to(tensor.device))


def _times(index: Tensor, size: int) -> int:
    """How often every row is repeated, one after the other; 0 where it is otherwise."""
    times = len(index) // size
    regular = times * size == len(index) and bool((index.cpu() == torch.arange(size).repeat_interleave(times)).all())
    return times if regular else 0


def _repeated(tensor: Tensor, times: int) -> Tensor:
    return tensor[:, None].expand(-1, times, *tensor.shape[1:]).flatten(0, 1)
