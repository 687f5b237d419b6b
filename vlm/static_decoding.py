"""Decoding in fixed shapes: a step is one function of tensors that stay where they are, captured once on a GPU.

Keys and values stand as in ``memory.Fold``: those of a prompt once, behind them ``times`` columns for each further
token, of which each completion looks at its own. Shapes come in buckets. Completions that ended are masked, and dropped
when those that go on fit a smaller bucket; whether any has ended is looked at once in ``BLOCK`` tokens. Nothing within
a step asks the host, so that on a GPU thousands of launches become the replay of one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .captured import Captured, Comparison, compare
from .decoding import check_finite, draw
from .lean import Lean
from .memory import Memory, unfolded

if TYPE_CHECKING:
    from ..types import Task
    from .policy import TokenPolicy

BLOCK = 16
"""Tokens between two looks at who has ended."""
ROOM = 64
"""The least room for further tokens, where so many may follow."""
KEPT = 32
"""Most buckets whose buffers and graphs are kept."""


class Layout(NamedTuple):
    """Shapes of a bucket: rows of the model, completions per row, tokens read before, room for further ones."""

    prompts: int
    times: int
    shared: int
    room: int

    @property
    def slots(self) -> int:
        return self.prompts * self.times

    @property
    def columns(self) -> int:
        return self.shared + self.room * self.times

    @property
    def cells(self) -> int:
        """Tokens whose keys and values are held."""
        return self.prompts * self.columns


def row_bucket(count: int) -> int:
    """The next power of two, or three quarters of it."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def length_bucket(count: int) -> int:
    """In steps of an eighth of the next power of two, at least 16."""
    step = max(16, (1 << max(0, count - 1).bit_length()) // 8)
    return -(-max(1, count) // step) * step


def layout_of(prompts: int, times: int, alive: int, shared: int, said: int, left: int) -> tuple[Layout, bool]:
    """The bucket for so many completions on prompts of ``shared`` columns, which read ``said`` tokens and have
    ``left``, and whether each has a row of its own there: folded, unless looking past others' tokens costs more, or
    rows of their own hold fewer keys."""
    further = min(left, max(ROOM, said))
    folded = Layout(row_bucket(prompts), row_bucket(times), length_bucket(shared), length_bucket(said + further))
    if times == 1:
        return folded, False
    apart = Layout(row_bucket(alive), 1, length_bucket(shared + said), length_bucket(further))
    costly = folded.room * folded.times > 4 * folded.shared
    return (apart, True) if costly or apart.cells < folded.cells else (folded, False)


class Slots(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer in a bucket [M, H, columns, D]; new ones are written at ``columns``."""

    keys: Any
    values: Any

    def __init__(self, keys: Tensor, values: Tensor, columns: Tensor) -> None:
        cast(Any, super()).__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.columns = keys, values, columns

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.columns, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, self.columns, value_states.to(self.values.dtype))
        return self.keys, self.values


class Bucket:
    """The tensors of one bucket, and the step on them.

    Attributes:
        tokens: [M, T] said last and not yet read; positions [M, T] theirs.
        seen: [M, 1, groups * T, columns] 0 where a completion looks, else -inf, repeated for heads that share keys.
        columns: [T] where its keys go; ``own`` [M, 1, groups * T, T] who looks there.
        alive, left: [M * T] who goes on, and for how many tokens more.
        noise, chosen, log_probs: [BLOCK, M * T] of a block of tokens; ``at`` [1] the place in it.
        finite: [] whether all that was drawn came from finite logits.
    """

    def __init__(self, policy: TokenPolicy, layout: Layout, greedy: bool, lean: Lean, pieces: list[Any]) -> None:
        self.policy, self.layout, self.greedy, self.lean = policy, layout, greedy, lean
        self.backbone = cast(Any, policy.backbone)
        device, groups = policy.device, int(self.backbone.groups)
        rows, times, slots = layout.prompts, layout.times, layout.slots

        def long(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        def flags(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.bool, device=device)

        self.tokens, self.positions, self.columns = long(rows, times), long(rows, times), long(times)
        unseen = torch.full((rows, 1, groups * times, layout.columns), -torch.inf, dtype=pieces[0][0].dtype)
        self.seen = unseen.to(device)
        eye = torch.eye(times, device=device).log().to(self.seen)
        self.own = eye.repeat(groups, 1).expand(rows, 1, -1, -1).contiguous()
        self.alive, self.left, self.finite = flags(slots), long(slots), flags()
        self.noise = torch.zeros(BLOCK, slots, device=device)
        self.chosen, self.log_probs, self.at = long(BLOCK, slots), torch.zeros(BLOCK, slots, device=device), long(1)
        self.temperature = torch.ones((), device=device)
        self.ends = torch.tensor(sorted(policy.renderer.ends), dtype=torch.long, device=device)
        self.banned = torch.tensor(policy.backbone.banned, dtype=torch.long, device=device)
        self.cache: Any = DynamicCache()
        self.cache.layers = [Slots(self._view(keys), self._view(values), self.columns) for keys, values in pieces]
        self.captured: Captured | None = None
        self.pool: Any = None

    def _view(self, flat: Tensor) -> Tensor:
        """[M, H, columns, D] at the beginning of what is held, [cells, H, D] in size."""
        heads, size = flat.shape[1:]
        shape = self.layout.prompts, heads, self.layout.columns, size
        return flat.view(-1)[: self.layout.cells * heads * size].view(shape)

    def changed(self) -> list[Tensor]:
        """What a step changes, but keys and values in columns that nobody looks at before."""
        state = [self.tokens, self.positions, self.columns, self.seen, self.alive, self.left, self.finite]
        return [*state, self.chosen, self.log_probs, self.at]

    def fill(
        self, tokens: Tensor, positions: Tensor, left: Tensor, alive: Tensor, prompts_seen: Tensor, said: int
    ) -> None:
        """Where ``said`` tokens of each completion stand already: [M * T] each, and [M, shared] of prompts."""
        rows, times, shared = self.layout.prompts, self.layout.times, self.layout.shared
        self.tokens.copy_(tokens.view_as(self.tokens))
        self.positions.copy_(positions.view_as(self.positions))
        self.left.copy_(left)
        self.alive.copy_(alive)
        self.finite.fill_(True)
        self.columns.copy_(torch.arange(times) + shared + said * times)
        seen = self.seen.view(rows, -1, times, self.layout.columns)
        seen.fill_(-torch.inf)
        seen[..., :shared].masked_fill_(prompts_seen[:, None, None], 0.0)
        seen[..., shared : shared + said * times] = self.own[0, 0, :times].repeat(1, said)

    def step(self) -> None:
        """Read the tokens that were said, and say the next ones."""
        device = self.tokens.device.type
        kept = torch.is_autocast_enabled(device)
        with torch.autocast(device, torch.get_autocast_dtype(device), enabled=kept, cache_enabled=False):
            self.seen.index_copy_(3, self.columns, self.own)
            places = self.backbone.axes(self.positions)
            hidden = self.backbone.step(self.tokens, self.seen, places, self.cache)
            self.positions.add_(self.alive.view_as(self.positions))
            self.columns.add_(self.layout.times)
            self.say(hidden.flatten(0, 1))

    def say(self, hidden: Tensor) -> None:
        """Draw the next token of each slot from [M * T, D] and take it down; ended ones say 0."""
        logits = self.backbone.head(hidden).float().index_fill(-1, self.banned, -torch.inf) / self.temperature
        noise = None if self.greedy else self.noise.index_select(0, self.at)[0]
        chosen, taken = draw(logits, noise)
        self.finite.logical_and_((taken.isfinite() | ~self.alive).all())
        chosen, taken = chosen.masked_fill(~self.alive, 0), taken.masked_fill(~self.alive, 0.0)
        self.chosen.index_copy_(0, self.at, chosen[None])
        self.log_probs.index_copy_(0, self.at, taken[None])
        self.tokens.copy_(chosen.view_as(self.tokens))
        self.left.sub_(self.alive.long())
        self.alive.logical_and_((self.left > 0) & (chosen[:, None] != self.ends).all(-1))
        self.at.add_(1)

    def run(self, steps: int) -> None:
        """So many steps, replayed where they can be."""
        if self.tokens.device.type != "cuda":
            with self.lean.worn():
                for _ in range(steps):
                    self.step()
            return
        if self.captured is None and steps:
            with self.lean.worn():
                self.captured = Captured(self.step, self.changed(), self.pool)
        for _ in range(steps):
            assert self.captured is not None
            self.captured()


@dataclass
class _Held:
    """Where completions stand between two buckets; slots are rows of the model times completions.

    Attributes:
        keys: per layer, keys [M, H, columns, D] and values.
        times, shared, said: completions per row, columns of what they share, tokens that each has read since.
        prompts_seen: [M, shared].
        rows: [M * T] whose answer a slot says, -1 for nobody's; on the CPU.
        alive: [M * T] who goes on; on the CPU.
        tokens, positions, left: [M * T] as of ``Bucket``.
    """

    keys: list[tuple[Tensor, Tensor]]
    times: int
    shared: int
    said: int
    prompts_seen: Tensor
    rows: Tensor
    alive: Tensor
    tokens: Tensor
    positions: Tensor
    left: Tensor

    @classmethod
    def of(cls, state: Memory, limits: Tensor) -> _Held:
        """What was read, before anything is said."""
        if state.fold is not None and state.fold.steps:
            state = unfolded(state)
        times = 1 if state.fold is None else state.fold.times
        device = state.mask.device
        return cls(
            [(layer.keys, layer.values) for layer in state.cache.layers],
            times,
            state.mask.shape[1],
            0,
            state.mask[::times],
            torch.arange(len(limits)),
            torch.ones(len(limits), dtype=torch.bool),
            torch.zeros(len(limits), dtype=torch.long, device=device),
            state.positions,
            limits.to(device),
        )

    def layout(self, left: int) -> tuple[Layout, bool]:
        """The bucket for those that go on, and whether each has a row of its own there."""
        counts = torch.bincount(self.alive.nonzero()[:, 0] // self.times)
        return layout_of(int((counts > 0).sum()), int(counts.max()), int(counts.sum()), self.shared, self.said, left)

    def moved(self, layout: Layout, apart: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Slots [M' * T'] that go to a bucket's, rows [M'], and which of the new slots somebody has; on the CPU."""
        slots = self.alive.nonzero()[:, 0]
        rows = slots // self.times
        if apart:
            places = torch.arange(len(slots))
        else:
            kept, new_rows = torch.unique(rows, return_inverse=True)
            first = torch.searchsorted(new_rows, new_rows)  # the first slot of the same row
            places = new_rows * layout.times + torch.arange(len(slots)) - first
            rows = kept
        source = slots[:1].repeat(layout.slots)
        source[places] = slots
        held = torch.zeros(layout.slots, dtype=torch.bool)
        held[places] = True
        return source, torch.cat([rows, rows[:1].repeat(layout.prompts - len(rows))]), held


class StaticDecoder:
    """Decodes in buckets, whose buffers, keys and graphs are kept from call to call.

    A copy of it (a policy's fork) begins with nothing.

    Args:
        merged: compute with a copy of the adapted weights that has the adapters in it.
    """

    def __init__(self, merged: bool = False) -> None:
        self.merged = merged
        self.release()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self.merged)

    @property
    def holds(self) -> bool:
        """Whether anything is kept."""
        return self._lean is not None

    def release(self) -> None:
        """Let go of all that is kept."""
        self.arena: list[tuple[Tensor, Tensor]] = []
        self._drop_buckets()
        self._weights: tuple[Any, ...] = ()
        self._version = -1
        self._lean: Lean | None = None

    def _drop_buckets(self) -> None:
        """Graphs go with their buckets; what they compute with is a pool that all of them share."""
        self.buckets: dict[tuple[Layout, bool], Bucket] = {}
        self.pool: Any = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None

    @torch.no_grad()
    def decode(
        self, policy: TokenPolicy, hidden: Tensor, state: Memory, limits: Tensor, noise: Tensor | None, warmth: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``decoding.decode`` does."""
        longest = int(limits.max())
        found = torch.zeros(len(limits), longest, dtype=torch.long), torch.zeros(len(limits), longest), limits.clone()
        held, spoken = _Held.of(state, limits), 0
        lean = self._lean_of(policy)
        while True:
            bucket, held = self._enter(policy, held, longest - spoken, noise is None, lean, full=not spoken)
            bucket.temperature.fill_(warmth)
            while True:
                first, slots = spoken, held.rows.clamp(min=0)
                bucket.at.zero_()
                if noise is not None:
                    block = noise[slots, spoken : spoken + BLOCK].T
                    bucket.noise[: len(block)].copy_(block, non_blocking=True)
                if not spoken:
                    bucket.say(hidden[slots.to(hidden.device)])
                    spoken = 1
                steps = min(BLOCK + first - spoken, bucket.layout.room - held.said, longest - spoken)
                bucket.run(steps)
                held.said, spoken = held.said + steps, spoken + steps
                self._harvest(bucket, held, range(first, spoken), *found, limits)
                if spoken == longest or not bool(held.alive.any()):
                    return found
                smaller = held.layout(longest - spoken)[0].slots < bucket.layout.slots
                if smaller or held.said == bucket.layout.room:
                    break

    def _harvest(
        self, bucket: Bucket, held: _Held, said: range, tokens: Tensor, logs: Tensor, lengths: Tensor, limits: Tensor
    ) -> None:
        """Bring a block to the host: the one place where it waits for the device."""
        held.alive, left = bucket.alive.cpu(), bucket.left.cpu()
        if not bool(bucket.finite):
            self.release()
            check_finite(False)
        taken = held.rows >= 0
        rows = held.rows[taken]
        tokens[rows, said.start : said.stop] = bucket.chosen[: len(said)].cpu().T[taken]
        logs[rows, said.start : said.stop] = bucket.log_probs[: len(said)].cpu().T[taken]
        lengths[rows] = limits[rows] - left[taken]
        held.tokens, held.positions, held.left = bucket.tokens.flatten(), bucket.positions.flatten(), bucket.left

    def _lean_of(self, policy: TokenPolicy) -> Lean:
        """The model's layers for decoding; everything is made anew where weights are other tensors than before."""
        device, backbone = policy.device.type, cast(Any, policy.backbone)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        weights = (dtype, backbone, *(weight.data_ptr() for weight in policy.module.parameters()))
        adapters = [(m.disable_adapters, m.merged) for m in policy.module.modules() if hasattr(m, "lora_A")]
        if self._lean is None or self._weights != (weights, adapters):
            self.release()
            parts = backbone.decoder, backbone.output_layer
            self._weights, self._lean = (weights, adapters), Lean(parts, dtype, self.merged)
        version = policy.weights_version()
        if version != self._version:
            self._version = version
            self._lean.refresh()
        return self._lean

    def _enter(
        self, policy: TokenPolicy, held: _Held, left: int, greedy: bool, lean: Lean, *, full: bool
    ) -> tuple[Bucket, _Held]:
        """Bring those that go on to their bucket; ``full`` makes room in the arena for the longest answers."""
        layout, apart = held.layout(left)
        source, rows, taken = held.moved(layout, apart)
        arena = self._arena(held, max(layout.cells, layout._replace(room=length_bucket(left)).cells if full else 0))
        bucket = self.buckets.pop((layout, greedy), None) or Bucket(policy, layout, greedy, lean, arena)
        bucket.pool = self.pool
        self.buckets[layout, greedy] = bucket  # the newest last
        while len(self.buckets) > KEPT:
            del self.buckets[next(iter(self.buckets))]
        for layer, old in zip(bucket.cache.layers, held.keys, strict=True):
            for new, known in ((layer.keys, old[0]), (layer.values, old[1])):
                _move(held, known, new, layout, apart, source.to(known.device), rows.to(known.device))
        device = held.tokens.device
        source, rows = source.to(device), rows.to(device)
        shared, said, seen = held.shared, held.said, held.prompts_seen[rows]
        if apart:
            seen = torch.cat([seen, seen.new_ones(len(seen), said)], 1)
            shared, said = shared + said, 0
        seen = torch.nn.functional.pad(seen, (0, layout.shared - seen.shape[1]))
        tokens, positions, remaining = held.tokens[source], held.positions[source], held.left[source]
        bucket.fill(tokens, positions, remaining, taken.to(device), seen, said)
        whose = torch.where(taken, held.rows[source.cpu()], -1)
        keys = [(layer.keys, layer.values) for layer in bucket.cache.layers]
        after = _Held(keys, layout.times, layout.shared, said, seen, whose, taken, tokens, positions, remaining)
        return bucket, after

    def _arena(self, held: _Held, cells: int) -> list[tuple[Tensor, Tensor]]:
        """Per layer, where keys and values [cells, H, D] of every bucket stand; all buckets begin at the same place."""
        if not self.arena or len(self.arena[0][0]) < cells:
            self._drop_buckets()
            self.arena = [tuple(_flat(each, cells) for each in layer) for layer in held.keys]  # type: ignore[misc]
        return self.arena


def _flat(like: Tensor, cells: int) -> Tensor:
    """Zeros: what nobody looks at is multiplied by 0, which mends no NaN."""
    return like.new_zeros(cells, like.shape[1], like.shape[-1])


def _move(held: _Held, known: Tensor, new: Tensor, layout: Layout, apart: bool, source: Tensor, rows: Tensor) -> None:
    """One layer's keys or values to a bucket, which may stand in the same place."""
    shared = known[:, :, : held.shared].index_select(0, rows)
    own = known[:, :, held.shared : held.shared + held.said * held.times].reshape(
        *known.shape[:2], held.said, held.times, known.shape[-1]
    )
    own = own.movedim(3, 1).flatten(0, 1).index_select(0, source)  # [slots, H, said, D]
    begin = held.shared if apart else layout.shared
    if not apart:
        own = own.view(layout.prompts, layout.times, *own.shape[1:]).movedim(1, 3).flatten(2, 3)
    new[:, :, : held.shared] = shared
    new[:, :, begin : begin + own.shape[2]] = own


def compare_step(policy: TokenPolicy, tasks: Sequence[Task], n: int, calls: int = 8) -> Comparison:
    """A step of n completions per task on a CUDA device, run operator by operator and replayed as one graph.

    Args:
        calls: tokens that both say, at most ``BLOCK`` - 1.

    Raises:
        Uncapturable: the model's step asks the host.
    """
    prompts = policy.renderer.prompts(tasks)
    index = torch.arange(len(prompts) * n) // n
    with policy.inference():
        hidden, state = policy.backbone.read(prompts)
        held = _Held.of(cast(Memory, policy.backbone.rows(state, index)), torch.full((len(index),), ROOM))
        static = StaticDecoder()
        lean = static._lean_of(policy)
        bucket, held = static._enter(policy, held, ROOM, False, lean, full=True)
        bucket.noise.uniform_()
        bucket.say(hidden[index[held.rows.clamp(min=0)].to(hidden.device)])
        with lean.worn():
            return compare(bucket.step, bucket.changed(), calls)
