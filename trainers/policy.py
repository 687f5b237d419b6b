"""What every trainable policy shares: collating rollouts, evaluation without a graph, exact backward.

A modality writes one method, ``forward_decisions``: a batch in, an Evaluation with graph out. The
rest follows. An objective's gradient with respect to that Evaluation (the cotangents) goes back
through ``backward``, which recomputes in as many pieces as memory wants; so an objective that
couples pairs, groups or steps costs one piece's memory and gives the exact gradient. When one piece
holds the whole batch, evaluation keeps its graph and nothing is computed twice.
"""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..types import Batch, Decisions, Evaluation, Graph, Key, Mode, Once, Rollout, Score, Task
from .actors import Actor
from .precision import hold_in_float32
from .weights import frozen_tensors, move, trained_names

References = Mapping[str, Any]
"""Frozen policies by name, for exact divergences."""

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """What a row takes in memory, in tokens or rows: its own, and what it shares with the rows of the same holder."""

    own: int
    shared: int = 0
    holder: Hashable = None


class TorchPolicy(Actor):
    """A policy around one ``nn.Module``.

    Attributes:
        module: everything trainable.
        micro_batch_rows: rows of what the module reads that are evaluated at once, one rollout's at least; larger
            batches are recomputed piece by piece in backward.
        autocast: dtype of mixed precision in the forward pass (bfloat16 on GPU), or None.
    """

    capabilities: frozenset[str] = frozenset({"exact"})
    unit: str = "rows"
    """What ``costs`` counts in."""
    padded: bool = False
    """Whether rows that are evaluated at once are padded to the longest of them."""

    def __init__(self, module: nn.Module, *, micro_batch_rows: int = 256, autocast: torch.dtype | None = None) -> None:
        self.module = module
        self.micro_batch_rows = micro_batch_rows
        self.autocast = autocast
        self._trained_names: frozenset[str] | None = None  # a fork's; None: what requires gradients now

    def act(
        self, tasks: Sequence[Task], n: int, *, key: Key = (0,), mode: Mode = "train", greedy: bool = False
    ) -> list[Rollout]:
        """n attempts per task; a policy that needs an environment acts through an actor that has one."""
        raise NotImplementedError(f"{type(self).__name__} acts in an environment: give it an actor")

    def forward_decisions(self, batch: Batch, needs: frozenset[str], references: References) -> Evaluation:
        """[B, T] tensors with graph, divergences ("kl:NAME") from the references. To be written by the modality."""
        raise NotImplementedError

    def encode(self, tasks: Sequence[Task], outputs: Sequence[Any]) -> list[Rollout]:
        """Demonstrations or corrections as rollouts without log-probabilities."""
        raise NotImplementedError(f"{type(self).__name__} cannot turn outputs into rollouts")

    def decision_dims(self, rollout: Rollout) -> int:
        """Scalars per decision: 1 for a token, the action or latent size for a Gaussian."""
        return 1

    def collate(self, rollouts: Sequence[Rollout], decisions: Decisions = "sampled") -> Batch:
        """Pad rollouts into a batch; "forward" decisions need a policy that overrides this."""
        if decisions == "forward":
            raise ValueError(f"{type(self).__name__} has no forward decisions")
        return collate(rollouts, [self.decision_dims(rollout) for rollout in rollouts])

    def costs(self, batch: Batch) -> Sequence[Cost]:
        """What each row of a batch takes in learning; a row each if nobody says otherwise."""
        return [Cost(1)] * len(batch)

    def pieces(self, batch: Batch) -> list[Tensor]:
        """The rows [N] of each part of a batch that is evaluated at once, or rows and segments [N, 2] of parts of them;
        ``Batch.select`` takes either."""
        rows = enumerate(self.costs(batch))
        return [torch.tensor(part) for part in cut(rows, self.held, self.padded)]

    @property
    def held(self) -> int:
        """How much is evaluated at once, as ``costs`` counts it."""
        return self.micro_batch_rows

    @held.setter
    def held(self, most: int) -> None:
        self.micro_batch_rows = most

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def precision(self) -> torch.dtype:
        """The coarsest type of number that it computes with."""
        types = [p.dtype for p in self.module.parameters() if p.is_floating_point()]
        return max([*types, self.autocast or torch.float32], key=lambda dtype: torch.finfo(dtype).eps)

    @property
    def version(self) -> str:
        """What rollouts that it samples now have as their ``version``."""
        return ""

    def mixed(self) -> torch.autocast:
        """Mixed precision, where ``autocast`` asks for it."""
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Eval mode, no gradients and mixed precision for a while; the mode of before afterwards."""
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad(), self.mixed():
                yield
        finally:
            self.module.train(training)

    def _forward(self, batch: Batch, needs: frozenset[str], references: References) -> Evaluation:
        batch = batch.to(self.device)
        with self.mixed():
            now = self.forward_decisions(batch, needs, references)
        return now.map(lambda _, tensor: tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor)

    def evaluate_actions(
        self, batch: Batch, needs: Iterable[str] = (), references: References | None = None
    ) -> Evaluation:
        """Detached [B, T] tensors of the whole batch.

        Where one piece holds it, the graph is kept by what is returned, for one ``backward`` with its cotangents.
        """
        names, others = frozenset(needs), dict(references or {})
        return self._within_memory(batch, lambda: self._evaluated(batch, names, others))

    def _evaluated(self, batch: Batch, names: frozenset[str], others: dict[str, Any]) -> Evaluation:
        pieces = self.pieces(batch)
        if len(pieces) == 1 and torch.is_grad_enabled():
            now = self._forward(batch, names, others)
            graph = Graph(batch, others, Once(now))
            return replace(now.map(lambda name, tensor: _home(name, tensor, batch)), graph=graph)
        with torch.no_grad():
            parts = [self._forward(batch.select(rows), names, others) for rows in pieces]
        joined = {name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()}
        whole = parts[0].map(lambda name, _: _home(name, _laid_out(joined[name], pieces, batch), batch))
        return replace(whole, graph=Graph(batch, others))

    def backward(self, batch: Batch, cotangents: Evaluation) -> None:
        """Add the gradient of <cotangents, evaluation> to the parameters' ``grad``."""
        before = [(weight, weight.grad) for weight in self.parameters()]

        def afresh() -> None:  # what a piece without memory left behind is dropped
            for weight, _ in before:
                weight.grad = None
            self._pull_pieces(batch, cotangents)

        self._within_memory(batch, afresh)
        for weight, gradient in before:
            if gradient is not None:
                weight.grad = gradient if weight.grad is None else gradient.add_(weight.grad)

    def _pull_pieces(self, batch: Batch, cotangents: Evaluation) -> None:
        given, graph = cotangents.tensors(), cotangents.graph or Graph(batch)
        if graph.batch is batch and (kept := graph.kept.take()) is not None:
            _pull(kept, given)
            return
        needs = frozenset(given) - {"log_probs"}
        for rows in self.pieces(batch):
            now = self._forward(batch.select(rows), needs, graph.references)
            _pull(now, {name: _taken(t, rows, batch) for name, t in given.items()})
            del now  # what nobody asked for has a graph too, which would live beside the next piece's

    # memory

    def _within_memory(self, batch: Batch, work: Callable[[], Result]) -> Result:
        """Work on a batch in pieces; when memory does not suffice, again without what sampling left there, then in
        smaller pieces, from now on."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if not self.release() and not self.halve(batch):
                    raise
            free_cache()

    def release(self) -> bool:
        """Let go of memory that is kept between rounds of sampling; False where there is none."""
        return False

    def halve(self, batch: Batch) -> bool:
        """Hold half as much at once in learning; False where every piece is one row already."""
        largest = most = max(len(rows) for rows in self.pieces(batch))
        while most == largest > 1:
            self.held = max(1, self.held // 2)
            most = max(len(rows) for rows in self.pieces(batch))
        if largest > 1:
            logger.warning("out of memory in learning: %d %s at once from now on", self.held, self.unit)
        return largest > 1

    # weights: what is trained is a policy's own, all else is shared with its forks

    def trained(self) -> dict[str, Tensor]:
        """What learning changes (a fork: changed, before it was frozen), by names in the module; not copied."""
        names = trained_names(self.module) if self._trained_names is None else self._trained_names
        return {name: t for name, t in self.module.state_dict(keep_vars=True).items() if name in names}

    def in_common(self) -> Sequence[Any]:
        """What forks share besides frozen weights, because nothing changes it, such as a tokenizer."""
        return ()

    def fork(self, name: str) -> Self:
        """A frozen copy, evaluated but not trained, which shares every weight that is not trained."""
        trained = self.trained()
        shared = [*frozen_tensors(self.module, trained), *self.in_common()]
        other = copy.deepcopy(self, {id(part): part for part in shared})
        other._trained_names = frozenset(trained)
        for weight in other.trained().values():
            weight.requires_grad_(False)
        return other

    def trainable(self, name: str) -> Self:
        """A copy that goes on learning on its own, such as one that adapts and is dropped; it shares as forks do."""
        other = self.fork(name)
        for weight in other.trained().values():
            weight.requires_grad_(isinstance(weight, nn.Parameter))
        return other

    def copy_from(self, other: Any, mix: float = 1.0) -> None:
        """Move the trained weights a fraction ``mix`` of the way to another policy's (1 promotes, 0.01 is an EMA)."""
        move(self.trained(), other.state_dict(), mix)

    def hold_in_float32(self) -> None:
        """Make what is trained float32, or steps of a small learning rate are lost.

        Where it was of a half precision, that is computed in from now on, unless ``autocast`` says otherwise.
        """
        was = hold_in_float32(self.parameters())
        self.autocast = self.autocast or was

    def parameters(self) -> Iterable[nn.Parameter]:
        return (p for p in self.module.parameters() if p.requires_grad)

    def state_dict(self) -> dict[str, Any]:
        """The trained weights; they share memory with the module."""
        return {name: tensor.detach() for name, tensor in self.trained().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take trained weights over.

        Raises:
            UsageError: names or shapes that are not this policy's.
        """
        move(self.trained(), state)


def _home(name: str, tensor: Tensor, batch: Batch) -> Tensor:
    """Small tensors live beside the batch; regenerated outputs stay where the model is."""
    return tensor.detach() if name == "outputs" else tensor.detach().to(batch.mask.device)


def _laid_out(joined: Tensor, pieces: Sequence[Tensor], batch: Batch) -> Tensor:
    """What was found of pieces, one after the other, as of the whole batch; zeros where no piece was."""
    if pieces[0].ndim == 1:
        return joined
    rows, segments = torch.cat(list(pieces)).to(joined.device).unbind(1)
    whole = joined.new_zeros(len(batch), batch.decided.shape[1], *joined.shape[1:])
    whole[rows, segments] = joined
    return whole.flatten(1)


def _taken(tensor: Tensor, rows: Tensor, batch: Batch) -> Tensor:
    """A piece of a tensor [B, T] or [B, S], laid out as the piece's own."""
    if rows.ndim == 1:
        return tensor[rows]
    return torch.unflatten(tensor, 1, (batch.decided.shape[1], -1))[rows[:, 0], rows[:, 1]]


def free_cache() -> None:
    """Give back what the allocator of a GPU keeps, after it did not suffice."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def cut(items: Iterable[tuple[Item, Cost]], limit: int, padded: bool = False) -> Iterator[list[Item]]:
    """Neighbours in parts that cost up to the limit together, or are one item.

    Args:
        padded: items are padded to the longest of their part.
    """
    part: list[tuple[Item, Cost]] = []
    for item in items:
        if part and _together([cost for _, cost in (*part, item)], padded) > limit:
            yield [each for each, _ in part]
            part = []
        part.append(item)
    if part:
        yield [each for each, _ in part]


def _together(costs: Sequence[Cost], padded: bool) -> int:
    owns, shared = [cost.own for cost in costs], list({cost.holder: cost.shared for cost in costs}.values())
    return len(owns) * max(owns) + len(shared) * max(shared) if padded else sum(owns) + sum(shared)


def _pull(now: Evaluation, given: Mapping[str, Tensor]) -> None:
    """Backpropagate cotangents into every output that has a graph."""
    live = {name: t for name, t in now.tensors().items() if name in given and t.requires_grad}
    if live:
        torch.autograd.backward(list(live.values()), [given[name].to(live[name]) for name in live])


def collate(rollouts: Sequence[Rollout], dims: Sequence[int], payload: Mapping[str, Any] | None = None) -> Batch:
    """Pad masks, log-probabilities, scores and payloads of rollouts into a Batch.

    Rows with the same ``group_key`` are compared with each other.
    """
    if not rollouts:
        raise ValueError("there are no rollouts to collate")
    mask = pad_sequence([r.mask for r in rollouts], batch_first=True)
    behaviour = [torch.zeros(len(r.mask)) if r.log_probs is None else r.log_probs for r in rollouts]
    segments = pad_sequence([r.segments for r in rollouts], batch_first=True)
    keys = [r.group_key for r in rollouts]
    order = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    groups = torch.zeros(len(order), len(rollouts), dtype=torch.bool)
    groups[[order[key] for key in keys], range(len(rollouts))] = True
    names = dict.fromkeys(name for r in rollouts for name in r.scores)
    follows = [r.truncated and not _as_a_whole(r.scores.get("total")) for r in rollouts]
    return Batch(
        payload=stack([r.payload for r in rollouts]) if payload is None else payload,
        mask=mask,
        segments=segments,
        dims=torch.tensor(dims)[:, None].expand_as(mask),
        log_probs={"behaviour": pad_sequence(behaviour, batch_first=True) * mask},
        rewards={name: _score_rows([r.scores.get(name) for r in rollouts], rollouts) for name in names},
        groups=groups,
        truncated=torch.tensor(follows),
    )


def stack(payloads: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack payloads, padding the first axis with zeros where lengths differ."""
    return {name: pad_sequence([p[name] for p in payloads], batch_first=True) for name in payloads[0]}


def _as_a_whole(score: Score) -> bool:
    """Whether a score is one number for all of a rollout."""
    return score is None or torch.as_tensor(score).numel() == 1


def _score_rows(scores: Sequence[Score], rollouts: Sequence[Rollout]) -> Tensor:
    """[B, S]: a scalar sits on the rollout's last segment, None is NaN everywhere."""
    lasts = [int(r.segments[r.mask].max()) if bool(r.mask.any()) else 0 for r in rollouts]
    longest = max(int(r.segments.max()) for r in rollouts)  # masked segments have scores too
    rows = torch.full((len(scores), longest + 1), torch.nan)
    for row, (score, last) in enumerate(zip(scores, lasts, strict=True)):
        if score is None:
            continue
        values = torch.as_tensor(score, dtype=torch.float32).detach().reshape(-1)
        if values.numel() == 1:
            rows[row, last] = values[0]
        else:
            rows[row, : len(values)] = values
    return rows
