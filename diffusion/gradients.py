"""Rewards with gradient: AlignProp, DRaFT and ReFL as one objective and three ways to cut the chain.

    objective = RewardGradient(reward)
    prepare   = [Truncation("uniform", 1, 10)]      AlignProp (arXiv 2310.03739); "fixed" is DRaFT-K (arXiv 2309.17400)
                [Renoised(2)]                       DRaFT-LV
                [OneStep(0.75, 1.0)]                ReFL (arXiv 2304.05977)

Each writes columns that tell the policy how an output came about; without any, the gradient runs through the whole
chain. The part of a chain before the cut is the one that was sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..calling import MADE, call, settled
from ..errors import UsageError
from ..families import name_of
from ..rewards.gradient import GradientKept
from ..trainers.metrics import Mean
from ..trainers.objectives import Metrics, Term
from ..trainers.randomness import generator
from ..trainers.scoring import columns
from ..types import Batch, Evaluation, RewardFunction
from .faults import is_sound

if TYPE_CHECKING:
    from .policy import DenoisingPolicy

WITHOUT_GRADIENT = "diffusion/prdp, ddpo, nft, raft, flow_grpo and d3po"


def check_differentiable(reward: Any) -> None:
    """Refuse a reward without gradient, with the methods that would do.

    Raises:
        UsageError: the reward does not declare that its scores carry gradient.
    """
    if not getattr(reward, "differentiable", False):
        raise UsageError(f"reward {name_of(reward)} has no gradient: {WITHOUT_GRADIENT} learn without one")


@dataclass(frozen=True)
class RewardGradient(Term):
    """-E[r(x)], or E|r(x) - target|: the reward's own gradient with respect to the pictures.

    Attributes:
        reward: differentiable; called with the policy's pictures [B, 3, H, W] as ``outputs``. A ``GradientKept`` is not
            called again for pictures that it scored already.
        target: a reward to reach instead of one to exceed, AlignProp's guard against over-optimisation (checked
            against the code).
        ceiling: the loss is max(0, ceiling - r), as ReFL's (its ceiling is 2; recalled, not checked).
    """

    reward: RewardFunction
    target: float | None = None
    ceiling: float | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"outputs"})

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        if now.outputs is None:
            raise ValueError("the policy returned no outputs: choose one with the capability 'outputs'")
        drawn = batch.payload["rollouts"]
        copies = now.outputs.shape[1] if "renoised" in batch.columns else 1
        images = now.outputs.flatten(0, 1) if "renoised" in batch.columns else now.outputs
        rollouts = [rollout for rollout in drawn for _ in range(copies)]
        sound = [row for row, rollout in enumerate(rollouts) if is_sound(rollout)]
        if not sound:
            return 0.0 * images.sum(), {}
        if len(sound) < len(rollouts):
            images, rollouts = images[sound], [rollouts[row] for row in sound]
        scores: Any = None
        reward = self.reward
        if isinstance(reward, GradientKept):
            scores = reward.of(rollouts, images) if copies == 1 else None
            reward = reward.reward
        if scores is None:
            (scores,) = settled([lambda: call(reward, columns(rollouts) | dict.fromkeys(MADE, images))])
        if isinstance(scores, Mapping):
            scores = scores["total"] if "total" in scores else next(iter(scores.values()))
        if isinstance(scores, Sequence) and all(isinstance(score, Tensor) for score in scores):
            scores = torch.stack(list(scores))  # a weighted sum of rewards has one tensor per sample
        if not (isinstance(scores, Tensor) and scores.requires_grad and len(scores) == len(images)):
            raise ValueError("the reward must return a tensor [B] with gradient, one score per picture")
        loss = -scores
        if self.target is not None:
            loss = (scores - self.target).abs()
        elif self.ceiling is not None:
            loss = (self.ceiling - scores).clamp(min=0)
        value = loss.sum() / (batch.total("rollouts") * copies)
        return value, {"objective/reward": Mean.of(scores)}


@dataclass(frozen=True)
class Truncation:
    """Column "last_steps": the gradient runs through the last K steps, one K per update.

    AlignProp draws K uniformly (low..high, recalled, not checked) or from a Gaussian (mean low, standard deviation
    high; the newer default of its code), DRaFT-K fixes it at ``low``.
    """

    how: Literal["uniform", "gaussian", "fixed"] = "uniform"
    low: int = 1
    high: int = 10

    def __call__(self, batch: Batch) -> Batch:
        random = generator("truncation", int(batch.payload["round"][0]))
        if self.how == "fixed":
            steps = self.low
        elif self.how == "uniform":
            steps = int(torch.randint(self.low, self.high + 1, (), generator=random))
        else:
            steps = round(float(self.low + self.high * torch.randn((), generator=random)))
        return _with(batch, "last_steps", min(max(1, steps), batch.mask.shape[1]))


@dataclass(frozen=True)
class Renoised:
    """Column "renoised": the last step's gradient, averaged over n pictures noised again (DRaFT-LV; not checked)."""

    copies: int = 2

    def __call__(self, batch: Batch) -> Batch:
        return _with(batch, "renoised", self.copies)


@dataclass(frozen=True)
class OneStep:
    """Column "only_step": stop at a random step and judge the picture that the model sees there (ReFL).

    ``first`` and ``last`` are shares of the chain; the paper's range is the last quarter (steps 30 to 40 of 40;
    recalled, not checked).
    """

    first: float = 0.75
    last: float = 1.0

    def __call__(self, batch: Batch) -> Batch:
        steps = batch.mask.shape[1]
        low = min(int(self.first * steps), steps - 1)
        high = max(low + 1, min(steps, round(self.last * steps)))
        random = generator("one step", int(batch.payload["round"][0]))
        return _with(batch, "only_step", int(torch.randint(low, high, (), generator=random)))


def _with(batch: Batch, name: str, value: int) -> Batch:
    column = torch.full((len(batch),), value, dtype=torch.long)
    return replace(batch, columns=batch.columns | {name: column})


# --- the policy's side: pictures without a graph, and the way back ---------------------------------


@dataclass(eq=False)
class _Piece:
    """Rows that were cut alike: where the gradient begins and what is decoded.

    Attributes:
        places: of what is made of them, among all outputs of the batch.
        first, last: steps with gradient are first <= i < last.
        estimate: decode the model's estimate of the picture at step ``first`` instead of running the chain to its end.
        start: [N, ...] latents where the gradient begins.
    """

    rows: Tensor
    places: Tensor
    first: int
    last: int
    estimate: bool
    start: Tensor
    noise: Tensor
    condition: dict[str, Tensor]


def pictures(policy: DenoisingPolicy, batch: Batch) -> Tensor:
    """[B, *output_shape] (or [B, n, *output_shape] renoised) from the payload's own random numbers, without a graph.

    Zeros where the rollout's picture is not finite.
    """
    copies = int(batch.columns["renoised"][0]) if "renoised" in batch.columns else 0
    whole = torch.zeros(max(1, copies) * len(batch), *policy.adapter.output_shape, device=policy.device)
    with torch.no_grad(), policy.mixed():
        for piece in _pieces(policy, batch):
            if not piece.estimate and policy._sampled_now(batch):  # what the end of the chain decoded to
                drawn = torch.stack([batch.payload["rollouts"][int(row)].output for row in piece.rows])
            else:
                drawn = _finish(policy, piece, _states(policy, batch, piece)[-1]).float()
            whole[piece.places.to(whole.device)] = drawn.to(whole)
    return torch.unflatten(whole, 0, (len(batch), copies)) if copies else whole


def pull(policy: DenoisingPolicy, batch: Batch, cotangent: Tensor) -> None:
    """Add the gradient of <cotangent, pictures> to the policy's parameters."""
    flat = cotangent.flatten(0, 1) if "renoised" in batch.columns else cotangent
    for piece in _pieces(policy, batch):
        given = flat[piece.places.to(flat.device)].to(policy.device)
        if policy.checkpointing:
            _pull_by_steps(policy, batch, piece, given)
        else:
            with policy.mixed():
                x = piece.start
                for i in range(piece.first, piece.last):
                    x = _step(policy, piece, i, x)
                made = _finish(policy, piece, x)
            torch.autograd.backward([made], [given])


def _pull_by_steps(policy: DenoisingPolicy, batch: Batch, piece: _Piece, given: Tensor) -> None:
    """From the picture towards the noise, with the graph of one step, or of a few pictures' decoding, in memory."""
    states = _states(policy, batch, piece)
    x, end = states[-1].detach(), states[-1]
    if piece.estimate:
        with policy.mixed():
            end = _estimate(policy, piece, x)
    given = _through_decoder(policy, end.detach(), given)
    if piece.estimate:
        torch.autograd.backward([end], [given])
    for i in reversed(range(piece.first, piece.last)):
        x = states[i - piece.first].detach().requires_grad_(i > piece.first)
        with policy.mixed():
            made = _step(policy, piece, i, x)
        torch.autograd.backward([made], [given])
        given = x.grad if x.grad is not None else torch.zeros_like(x)


def _through_decoder(policy: DenoisingPolicy, latents: Tensor, given: Tensor) -> Tensor:
    """The cotangent of latents, of that of their pictures; as many as are decoded at once have a graph at once."""
    found: list[Tensor] = []
    few = policy.adapter.decoded_at_once
    for part, cotangent in zip(torch.split(latents, few), torch.split(given, few), strict=True):
        leaf = part.clone().requires_grad_()
        with policy.mixed():
            made = policy.adapter.decode(leaf)
        found += torch.autograd.grad([made], [leaf], [cotangent])
    return torch.cat(found)


def _pieces(policy: DenoisingPolicy, batch: Batch) -> Iterator[_Piece]:
    """What is finite of the batch, in pieces of at most ``micro_batch_rows`` pictures that share a cut."""
    steps = policy.sampler.steps
    named = batch.columns
    kinds = [name for name in ("last_steps", "renoised", "only_step") if name in named]
    if len(kinds) > 1:
        raise ValueError(f"a chain can be cut in one way: {' and '.join(kinds)} are both there")
    kind = kinds[0] if kinds else "last_steps"
    cuts = named[kind] if kinds else torch.full((len(batch),), steps)
    sound = torch.tensor([is_sound(rollout) for rollout in batch.payload["rollouts"]])
    for cut in torch.unique(cuts).tolist():
        most = policy.micro_batch_rows
        size = max(1, most // int(cut)) if kind == "renoised" else most
        for rows in torch.split(((cuts == cut) & sound).nonzero()[:, 0], size):
            yield _piece(policy, batch, rows, kind, int(cut))


def _piece(policy: DenoisingPolicy, batch: Batch, rows: Tensor, kind: str, cut: int) -> _Piece:
    steps, path = policy.sampler.steps, batch.payload["path"]
    rollouts, places = [batch.payload["rollouts"][int(row)] for row in rows], rows
    if kind == "renoised":
        places = (cut * rows[:, None] + torch.arange(cut)).flatten()
        rollouts = [r for r in rollouts for _ in range(cut)]
        rows = rows.repeat_interleave(cut)
        draws = [generator("renoised", int(r.payload["seed"]), copy % cut) for copy, r in enumerate(rollouts)]
        noise = torch.stack([torch.randn(*path.shape[2:], generator=draw) for draw in draws])
        last = torch.full((len(rows),), steps - 1)
        start = policy.sampler.noised(last, path[rows, -1], noise)
        first, end, estimate = steps - 1, steps - 1, True
    else:
        noise = torch.stack([policy._noise(int(r.payload["seed"]), steps) for r in rollouts])[:, 1:]
        first, end = (cut, cut) if kind == "only_step" else (steps - cut, steps)
        start, estimate = path[rows, first], kind == "only_step"
    condition = policy.conditions([(r.train_task or r.task).prompt for r in rollouts])
    return _Piece(rows, places, first, end, estimate, start.to(policy.device), noise.to(policy.device), condition)


def _states(policy: DenoisingPolicy, batch: Batch, piece: _Piece) -> list[Tensor]:
    """Latents from the cut to the end: those that were sampled, if the weights are still the same."""
    if piece.estimate:
        return [piece.start]
    if policy._sampled_now(batch):
        path = batch.payload["path"][piece.rows].to(policy.device)
        return [path[:, i] for i in range(piece.first, piece.last + 1)]
    states = [piece.start]
    with torch.no_grad(), policy.mixed():
        for i in range(piece.first, piece.last):
            states.append(_step(policy, piece, i, states[-1]))
    return states


def _step(policy: DenoisingPolicy, piece: _Piece, i: int, x: Tensor) -> Tensor:
    step = torch.full((len(x),), i, device=x.device)
    mean = policy.sampler.mean(step, x, policy._predict(policy.sampler, step, x, piece.condition))
    return mean + policy.sampler.at("std", step, x) * piece.noise[:, i]


def _finish(policy: DenoisingPolicy, piece: _Piece, x: Tensor) -> Tensor:
    """The picture at the end of a piece."""
    return policy.adapter.decode(_estimate(policy, piece, x) if piece.estimate else x)


def _estimate(policy: DenoisingPolicy, piece: _Piece, x: Tensor) -> Tensor:
    """The picture, as latents, that the model sees where a piece begins."""
    step = torch.full((len(x),), piece.first, device=x.device)
    return policy.sampler.clean(step, x, policy._predict(policy.sampler, step, x, piece.condition))
