"""The records and contracts that every room of the house shares.

Axis letters, fixed once: B rollouts, T decisions of one rollout, S segments (turns, action chunks,
denoising steps), M groups, P pairs, G rollouts per task.

Six nouns act (Task, Policy, Reward, Objective, Curriculum, Gate) and three records flow between
them (Rollout, Batch, Evaluation). An objective sees the small tensors of a Batch and an
Evaluation only, never a model or a graph, which is why one library of objectives serves token,
action and denoising policies alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

T = TypeVar("T")

Decisions = Literal["sampled", "forward"]
Mode = Literal["train", "evaluate"]
"""Why an actor acts: to be learned from, or to be looked at. Evaluating reads only: no state differs afterwards."""
Key = tuple[int, ...]
"""What random numbers hang on, such as (seed, iteration), beside a task's id and a sample's number."""
Players = Sequence[str] | Literal["all"] | None
"""Whose rollouts a learner sees: those it names, everybody's, or (None) those of the one player that there is."""
Score = float | None | Sequence[float] | Tensor
"""One rollout's score: a number, None (does not apply), one number per segment, or a tensor with gradient."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is asked of a policy once.

    Attributes:
        id: unique name; random numbers are keyed by it.
        prompt: what the policy is told (text, messages, an instruction).
        images: input images, if any.
        reference: the right answer, a demonstration or any other ground truth, if there is one.
        category: what curricula and reports group by.
        seed: fixes the task's own randomness (initial state, starting noise).
        horizon: limit in the policy's own unit (tokens, environment steps, denoising steps).
        start: handle of a state to branch from.
        parent: id of the task this one was derived from.
        privileged: the prompt holds information that training must not see.
        extra: further columns, handed to rewards by name.
    """

    id: str
    prompt: Any
    images: tuple[Any, ...] = ()
    reference: Any = None
    category: str = ""
    seed: int = 0
    horizon: int | None = None
    start: str | None = None
    parent: str | None = None
    privileged: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Rollout:
    """One attempt at a task.

    Attributes:
        output: what a reward looks at (text, image, episode).
        payload: what the policy needs to evaluate the attempt again: a mapping of tensors.
        log_probs: [T] under the behaviour policy, in the context as sampled; None for demonstrations.
        mask: [T] bool, True where the policy decided (False: the environment's tokens, padding).
        truncated: cut off, by a time limit say, where it could have gone on: what the state after its last segment is
            worth still counts, and the payload says what a policy with values needs to see it. Otherwise it is
            ``terminated``, and nothing follows (Gymnasium's two words).
        segments: [T] long, the turn, chunk or denoising step of each decision, 0..S-1.
        train_task: train in another context than the one sampled in.
        player, group: who acted, and which rollouts are compared (see ``group_key``).
        version: names the weights that sampled it, where these may not be the policy's own of this moment.
        states: one handle per segment of a state that one may branch from.
        scores: named scores; ``total`` is what advantages use.
        info: anything for people and reports; never read by objectives.
        graph: what sampling kept for the first gradient step on these rollouts, shared by all of one call.
    """

    task: Task
    output: Any
    payload: Mapping[str, Tensor]
    log_probs: Tensor | None
    mask: Tensor
    segments: Tensor
    train_task: Task | None = None
    truncated: bool = False
    player: str = "policy"
    version: str = ""
    group: str = ""
    states: Sequence[str] = ()
    scores: dict[str, Score] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    graph: Once[Any] | None = None

    @classmethod
    def plain(cls, task: Task, output: Any, **fields: Any) -> Rollout:
        """An attempt without decisions, of a system without weights: scored and told to learners, never trained on."""
        nothing = torch.zeros(1, dtype=torch.long)
        return cls(task, output, {}, None, nothing.bool(), nothing, **fields)

    @property
    def is_plain(self) -> bool:
        """Whether there is no decision in it that a policy could be trained on."""
        return not self.payload and not bool(self.mask.any())

    @property
    def terminated(self) -> bool:
        """Whether nothing follows its last segment."""
        return not self.truncated

    @property
    def group_key(self) -> str:
        """What it is compared within: its ``group``, else all attempts of its player at its task."""
        return self.group or f"{self.player}/{self.task.id}"


class Once(Generic[T]):
    """A value that can be taken once, such as a graph, which can be pulled through once.

    Copies, pickled ones too, are empty: a graph belongs to the process and the moment that made it.
    """

    def __init__(self, value: T | None = None) -> None:
        self._value = value

    def take(self) -> T | None:
        """The value, which is let go of; None from then on."""
        value, self._value = self._value, None
        return value

    def __reduce__(self) -> tuple[type[Once[T]], tuple[()]]:
        return type(self), ()


@dataclass(eq=False)
class Batch:
    """Rollouts as padded tensors.

    Attributes:
        payload: mapping of tensors or lists whose first axis is B.
        mask, segments, dims: [B, T]; dims counts the scalars of a decision (1 for a token).
        log_probs: [B, T] each: "behaviour" sampled the data, "proximal" is the clip centre,
            and any reference by its name. Zero where the mask is False.
        rewards: [B, S] each; NaN means does not apply; a scalar sits on the last segment.
        shaping: [B, T] what reward shaping adds to each decision's reward, such as a per-token KL; None adds nothing.
        groups: [M, B] bool; rows may overlap.
        pairs: [P, 2] rows of the batch; labels: [P] in 0..1, the probability that the first wins.
        columns: [B] each: clip_high, weight, temperature, ...
        advantages: [B, T], filled by the learner.
        values: [B, S] what the states before each segment were worth to the policy as the update began, and
            ``last_values`` [B] the state after the last segment, zero where nothing follows; None where nobody asks.
        value_targets: [B, S] what values are fitted to, filled by the learner from the advantage.
        truncated: [B] bool, where the state after the last segment counts (see ``Rollout``); None is nowhere. A rollout
            that is scored by one number, as a whole, has had all of its reward.
        totals: counts over all processes that objectives divide by: rollouts, decisions, segments, pairs.
    """

    payload: Mapping[str, Any]
    mask: Tensor
    segments: Tensor
    dims: Tensor
    log_probs: dict[str, Tensor]
    rewards: dict[str, Tensor]
    groups: Tensor
    shaping: Tensor | None = None
    pairs: Tensor | None = None
    labels: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    advantages: Tensor | None = None
    values: Tensor | None = None
    last_values: Tensor | None = None
    value_targets: Tensor | None = None
    truncated: Tensor | None = None
    totals: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def returns(self) -> Tensor:
        """[B] sum of the total reward over segments, ignoring NaN, and of the shaping; NaN where nothing applies."""
        reward = self.rewards["total"]
        absent = reward.isnan().all(-1)
        total = reward.nansum(-1) if self.shaping is None else reward.nansum(-1) + self.shaping.sum(-1)
        return torch.where(absent, torch.full_like(reward[:, 0], torch.nan), total)

    @property
    def decided(self) -> Tensor:
        """[B, S] bool, segments in which the policy decided something."""
        rewarded = [reward.shape[1] for reward in self.rewards.values()]
        segments = max([1, *rewarded, int(self.segments.max()) + 1 if self.segments.numel() else 0])
        count = torch.zeros(len(self), segments, dtype=torch.long, device=self.mask.device)
        return count.scatter_add(1, self.segments.clamp(min=0), self.mask.long()) > 0

    def counts(self) -> dict[str, float]:
        """Local counts; with several processes the learner sums them into ``totals``."""
        pairs = 0 if self.pairs is None else self.pairs.shape[0]
        whole = {"rollouts": len(self), "decisions": int(self.mask.sum()), "segments": int(self.decided.sum())}
        return {name: float(count) for name, count in whole.items()} | {"pairs": float(pairs)}

    def total(self, name: str) -> float:
        """The divisor of a mean over all processes, at least 1."""
        return max(1.0, self.totals.get(name, self.counts()[name]))

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; itself where it is there already."""
        if self.mask.device == device:
            return self
        moved = {name: _moved(value, device) for name, value in vars(self).items()}
        return Batch(**moved)

    def select(self, rows: Tensor) -> Batch:
        """The batch restricted to some rows ([N] long); pairs and groups that lose a member are dropped.

        Args:
            rows: [N], or [N, 2] rows and a segment of each, which becomes a row of its own, in no group. Segments must
                then be equally long and one after the other, as chunks of actions are; what the payload holds of each
                segment is [B, S, ...], and entries of another size go along with every segment of their row.
        """
        if rows.ndim == 2:
            return self._segments(*rows.unbind(1))
        place = torch.full((len(self),), -1, dtype=torch.long)
        place[rows] = torch.arange(len(rows))
        pairs, labels = self.pairs, self.labels
        if pairs is not None:
            inside = (place[pairs] >= 0).all(-1)
            pairs, labels = place[pairs[inside]], None if labels is None else labels[inside]
        whole = self.groups.sum(-1) == self.groups[:, rows].sum(-1)
        return replace(
            self,
            payload={k: _rows_of(v, rows) for k, v in self.payload.items()},
            mask=self.mask[rows],
            segments=self.segments[rows],
            dims=self.dims[rows],
            log_probs={k: v[rows] for k, v in self.log_probs.items()},
            rewards={k: v[rows] for k, v in self.rewards.items()},
            groups=self.groups[whole][:, rows],
            shaping=_chosen(self.shaping, rows),
            pairs=pairs,
            labels=labels,
            columns={k: v[rows] for k, v in self.columns.items()},
            advantages=_chosen(self.advantages, rows),
            values=_chosen(self.values, rows),
            last_values=_chosen(self.last_values, rows),
            value_targets=_chosen(self.value_targets, rows),
            truncated=_chosen(self.truncated, rows),
            totals={},
        )

    def _segments(self, rows: Tensor, segments: Tensor) -> Batch:
        count = self.decided.shape[1]

        def chosen(values: Any) -> Any:
            """[B, T] or [B, S] -> [N, T / S] or [N, 1]."""
            return None if values is None else values.unflatten(1, (count, -1))[rows, segments]

        def held(values: Any) -> Any:
            cut = isinstance(values, Tensor) and values.ndim > 1 and values.shape[1] == count
            return values[rows, segments][:, None] if cut else _rows_of(values, rows)

        laid_out = ("mask", "dims", "shaping", "advantages", "values", "value_targets")
        changes: dict[str, Any] = {name: chosen(getattr(self, name)) for name in laid_out}
        return replace(
            self,
            **changes,
            last_values=_chosen(self.last_values, rows),
            truncated=_chosen(self.truncated, rows),
            payload={name: held(values) for name, values in self.payload.items()},
            segments=torch.zeros_like(chosen(self.segments)),
            log_probs={name: chosen(values) for name, values in self.log_probs.items()},
            rewards={name: chosen(values) for name, values in self.rewards.items()},
            columns={name: values[rows] for name, values in self.columns.items()},
            groups=self.groups[:0, rows],
            pairs=None,
            labels=None,
            totals={},
        )


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return {k: _moved(v, device) for k, v in value.items()} if isinstance(value, Mapping) else value


def _chosen(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]


def _rows_of(values: Any, rows: Tensor) -> Any:
    return values[rows] if isinstance(values, Tensor) else [values[int(i)] for i in rows]


@dataclass(frozen=True, eq=False)
class Graph:
    """How an evaluation came about: of which batch, compared with whom, and its tensors with graph, once."""

    batch: Batch
    references: Mapping[str, Any] = field(default_factory=dict)
    kept: Once[Evaluation] = field(default_factory=Once)


@dataclass(eq=False)
class Evaluation:
    """What a policy says of a batch now: detached leaves, or (from ``gradient_of``) their cotangents.

    Attributes:
        log_probs, entropy: [B, T].
        values: [B, S] what the state before each segment is worth; last_values: [B] the state after the last one.
        kl: exact divergence to a named policy, [B, T] each.
        outputs: regenerated from the payload's noise, for rewards with gradient.
        graph: whom ``kl`` compares with, and the graph where it was kept; ``backward`` finds both in the cotangents.
            Backward lets go of the graph, and so does whoever drops the evaluation.
    """

    log_probs: Tensor
    entropy: Tensor | None = None
    values: Tensor | None = None
    last_values: Tensor | None = None
    kl: dict[str, Tensor] = field(default_factory=dict)
    outputs: Tensor | None = None
    graph: Graph | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that is present, by name ("log_probs", "entropy", "kl:reference", ...)."""
        plain = {"log_probs": self.log_probs, "entropy": self.entropy, "outputs": self.outputs}
        plain |= {"values": self.values, "last_values": self.last_values}
        present = {name: tensor for name, tensor in plain.items() if tensor is not None}
        return present | {f"kl:{name}": tensor for name, tensor in self.kl.items()}

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Evaluation:
        """The same record with every tensor changed by ``change(name, tensor)``."""
        new = {name: change(name, tensor) for name, tensor in self.tensors().items()}
        kl = {name: new.pop(f"kl:{name}") for name in self.kl}
        return Evaluation(kl=kl, graph=self.graph, **new)

    def leaves(self) -> Evaluation:
        """Detached copies that collect a gradient."""
        return self.map(lambda _, tensor: tensor.detach().clone().requires_grad_())

    def gradient_of(self, loss: Tensor) -> Evaluation:
        """The cotangents d loss / d tensor of these leaves; zeros where the loss does not look."""
        named = self.tensors()
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        by_name = dict(zip(named, gradients, strict=True))
        return self.map(lambda name, tensor: torch.zeros_like(tensor) if by_name[name] is None else by_name[name])


@dataclass(frozen=True)
class Verdict:
    """A gate's answer.

    Attributes:
        decision: keep the candidate; wait, promoting nothing and undoing nothing; repair it; or roll every
            learner back. Whoever still waits when the stage ends goes back to what was last kept.
        reason: one line for people.
        harmed: categories that fell; repair quarantines them.
        evidence: numbers for the report, per category where it has them.
        stop: end the stage now.
    """

    decision: Literal["keep", "wait", "repair", "rollback"]
    reason: str = ""
    harmed: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    stop: bool = False


@runtime_checkable
class Actor(Protocol):
    """Anything that attempts tasks: a policy, a game, a search, a policy with a memory. It is what is evaluated,
    gated, forked and promoted. ``trainers.actors`` has bases with defaults for everything but ``act``."""

    players: tuple[str, ...]  # whose rollouts ``act`` returns in training

    def act(
        self, tasks: Sequence[Task], n: int, *, key: Key = (0,), mode: Mode = "train", greedy: bool = False
    ) -> list[Rollout]:
        """n attempts per task, in task order. Random numbers depend on (key, task id, sample) alone.

        Further keywords are the actor's own, named and checked; ``Stage.sampling`` gives them in training.

        Args:
            mode: in "evaluate" nothing changes that outlives the call, and there are n rollouts of every task.
            greedy: the most probable attempt instead of a sample.
        """
        ...

    def evaluated(self) -> Actor:
        """What reports, gates and promotion look at: itself, without what is there for training alone."""
        ...

    def bare(self) -> Actor:
        """The policy inside by itself."""
        ...

    def fork(self, name: str) -> Actor:
        """A frozen copy of what is evaluated."""
        ...

    def copy_from(self, other: Any, mix: float = 1.0) -> None:
        """Take over another's state; ``mix`` below 1 moves weights a part of the way."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


@runtime_checkable
class Policy(Actor, Protocol):
    """A stochastic policy over decisions that can be evaluated and trained.

    Capabilities name what it can do: "exact" (log-probabilities of what was sampled),
    "composite" (their product of marginals only), "forward", "entropy", "values", "kl", "outputs".
    """

    capabilities: frozenset[str]

    @property
    def precision(self) -> torch.dtype:
        """The coarsest type of number that it computes with."""
        ...

    @property
    def version(self) -> str:
        """What rollouts that it samples now have as their ``version``; empty where they have none."""
        ...

    def encode(self, tasks: Sequence[Task], outputs: Sequence[Any]) -> list[Rollout]: ...
    def collate(self, rollouts: Sequence[Rollout], decisions: Decisions = "sampled") -> Batch: ...
    def evaluate_actions(
        self, batch: Batch, needs: Iterable[str] = (), references: Mapping[str, Any] | None = None
    ) -> Evaluation:
        """Detached tensors of a batch; exact divergences ("kl:NAME") are from the references by their names."""
        ...

    def backward(self, batch: Batch, cotangents: Evaluation) -> None: ...
    def parameters(self) -> Iterable[torch.nn.Parameter]: ...


class Advantage(Protocol):
    """A batch with rewards and groups -> advantages [B, T]. ``trainers.contracts.Advantage`` is a base with defaults;
    a plain function will do."""

    @property
    def compares(self) -> bool:
        """With the others of a group: who is left alone in it is not learned from."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What must be there: "values" from the policy."""
        ...

    def check(self, group_size: int) -> None: ...
    def metrics(self, batch: Batch) -> dict[str, float]: ...
    def value_targets(self, batch: Batch) -> Tensor | None: ...
    def __call__(self, batch: Batch) -> Tensor: ...


class Objective(Protocol):
    """A loss on small tensors. ``needs`` names what must be there: "advantages", "entropy", "kl:reference",
    "log_probs:reference", "log_probs:old" (of the clip centre), "values", "value_targets", "pairs", "forward".
    ``trainers.objectives.Term`` is a base with defaults."""

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def terms(self) -> Sequence[tuple[float, Objective]]:
        """What it is a weighted sum of; itself where it is none."""
        ...

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, dict[str, float]]: ...


RewardFunction = Callable[..., Any]
"""Called with keyword columns, of which it takes what it names (``autotelic.calling``); returns a score per rollout or
a mapping of several (``autotelic.returned``)."""


@dataclass(frozen=True)
class TrainerState:
    """How far a run is, by the names of transformers' ``TrainerState``, for rewards that ask for ``trainer_state``.

    Attributes:
        global_step, max_steps: iterations that are done, and of the whole run; 0 where nothing runs.
        epoch: the share of them that is done.
        seed: the run's, which keys what is drawn.
    """

    global_step: int = 0
    max_steps: int = 0
    seed: int = 0

    @property
    def epoch(self) -> float:
        return self.global_step / max(1, self.max_steps)


@runtime_checkable
class Learner(Protocol):
    """Whatever changes in a run: weights, a curriculum, a memory, a learned reward.

    ``trainers.contracts.Learner`` is a base with defaults for everything but ``update``.
    """

    @property
    def players(self) -> Players: ...

    @property
    def sees_own_rollouts_only(self) -> bool:
        """With several processes, each sees its own groups; else everybody sees summaries of all."""
        ...

    @property
    def reads(self) -> Sequence[str]:
        """What of a rollout a summary has to bring along whole, such as "output"."""
        ...

    def check(self, group_size: int) -> None:
        """Refuse, when the run is built, what cannot be learned from groups of this size."""
        ...

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Learn from scored rollouts; the metric "learned", where it is told, is 0 if there was nothing to learn."""
        ...

    def repair(self, verdict: Verdict) -> dict[str, float]:
        """Called after a rollback that asks for repair."""
        ...

    def slow_down(self, factor: float) -> None:
        """Called when a run went back because it diverged: multiply learning rates by the factor."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


@runtime_checkable
class Curriculum(Learner, Protocol):
    """A learner that chooses the tasks."""

    def sample(self, n: int) -> list[Task]: ...


@runtime_checkable
class Gate(Protocol):
    """Candidate and {"base", "promoted"} -> verdict, on frozen probes. ``trainers.gates`` has a base with defaults."""

    @property
    def judge(self) -> RewardFunction | None:
        """What it decides by, never of a family that trains."""
        ...

    @property
    def labels(self) -> int:
        """How many labels it reads."""
        ...

    def __call__(self, candidate: Actor, against: Mapping[str, Actor]) -> Verdict: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...
