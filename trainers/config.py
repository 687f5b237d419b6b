"""Run configuration: the options that every recipe shares, in groups, with one spelling for all modalities.

Importing this imports no torch. A recipe's ``Config`` inherits a modality's, which inherits :class:`RunConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

from ..errors import UsageError
from .ranges import Amount, Count, Number, Positive, Share, Whole, check_ranges

GROUPS = ("model", "data", "sampling", "optimisation", "objective", "gate", "evaluation", "logging")
"""The groups of shared fields, in the order in which --help shows them; a modality's own and a recipe's own follow."""

BY_MODEL: Any = None
"""The default of a field that :meth:`RunConfig.resolved` fills: tuned for the small default model, sane for others."""

POLICY_GRADIENT = ("objective", "advantage", "clip_low", "clip_high", "pairwise_beta", "std_floor")
"""What a recipe fixes whose method is not a policy gradient."""

DYNAMIC_SAMPLING = ("dynamic_sampling", "score_range", "max_gen_batches")
"""What a recipe fixes whose rollouts are not drawn for tasks."""

NO_GATE = ("gate", "judge", "gate_every", "gate_margin", "gate_z", "gate_patience", "quarantine")
"""What a recipe fixes that has nothing to judge by."""


def grouped(group: str, default: Any) -> Any:
    """A field of a modality or a recipe that stands in one of :data:`GROUPS`, with its default."""
    return field(default=default, metadata={"group": group})


@dataclass(frozen=True)
class ModelFields:
    """What learns."""

    group: ClassVar[str] = "model"

    model: str = ""
    """A folder or hub name; empty takes the small default."""
    dtype: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """What is computed in, and frozen weights are; auto is bf16 for a loaded model on a GPU that has it, else fp32.
    tf32 is fp32 with products in TF32, which fp32 never takes. What is trained is fp32."""
    deterministic: bool = False
    """Take only what repeats itself to the bit, so that a resumed run is equal on a GPU too; slower there."""


@dataclass(frozen=True)
class DataFields:
    """What is asked, and in which order."""

    group: ClassVar[str] = "data"

    curriculum: str = "uniform"
    """Which tasks come next: uniform, sec (more of what is learned from), package.module:NAME or FILE.py:NAME."""
    seed: Whole = 0
    """Keys every random number: data, start, sampling, minibatches."""


@dataclass(frozen=True)
class SamplingFields:
    """How a policy attempts tasks."""

    group: ClassVar[str] = "sampling"

    tasks_per_step: Count = BY_MODEL
    """Tasks per round."""
    group_size: Count = BY_MODEL
    """Rollouts per task and round, which are compared with each other."""
    temperature: Positive = 1.0
    """Of sampling; log-probabilities are taken at the same temperature."""
    dynamic_sampling: bool = False
    """Leave out tasks whose attempts all score the same, and draw others in their place, as DAPO does."""
    score_range: tuple[Number, ...] = ()
    """With dynamic_sampling: keep tasks whose mean score lies strictly between these two alone, such as 0.1 0.9."""
    max_gen_batches: Count = 10
    """With dynamic_sampling: how often a round draws tasks at most, then to go on with what it has."""


@dataclass(frozen=True)
class OptimisationFields:
    """How rollouts become gradient steps."""

    group: ClassVar[str] = "optimisation"

    max_steps: Whole = 100
    """Rounds of acting and learning."""
    lr: Amount = BY_MODEL
    """Learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Over the run the learning rate stays, or falls to a tenth."""
    weight_decay: Amount = BY_MODEL
    """AdamW's."""
    max_grad_norm: Positive = 1.0
    """Clipping of the global gradient norm."""
    epochs: Count = 1
    """Passes over a round's rollouts."""
    minibatches: Count | None = None
    """Gradient steps per epoch, each on whole groups; None takes batch_size where it is given. In a round's first step
    nothing is clipped: a ratio needs more than one, or more epochs."""
    batch_size: Count | None = None
    """Rollouts per gradient step, whole groups at least; None takes what minibatches says, or all of a round."""


@dataclass(frozen=True)
class ObjectiveFields:
    """What is rewarded, and how rewards become a gradient."""

    group: ClassVar[str] = "objective"

    rewards: tuple[str, ...] = ()
    """NAME, NAME:WEIGHT, package.module:NAME or FILE.py:NAME; several are weighted and added."""
    objective: str = ""
    """grpo, dr_grpo, dapo, gspo, rloo, reinforce_pp, nft, copg, ipo, package.module:NAME or FILE.py:NAME; empty is the
    recipe's own. A name brings its advantage along."""
    advantage: str = ""
    """grpo, dr_grpo, rloo, reinforce_pp, package.module:NAME or FILE.py:NAME; empty is the objective's own."""
    clip_low: Share | None = None
    """How far a ratio may fall below 1 in a clipped objective; None is the objective's own."""
    clip_high: Amount | None = None
    """How far it may rise above 1."""
    pairwise_beta: Positive = 0.1
    """copg: weight of the KL divergence to the start, in units of reward; ipo: tau, whose margin is 1 / (2 tau)."""
    std_floor: Amount = BY_MODEL
    """Least standard deviation that a group's rewards are divided by, so that noise is not blown up."""
    reference: Literal["start", "proximal"] = "start"
    """Whom kl_coef holds the policy to: the run's start, or the policy as the round began."""
    kl_coef: Amount = 0.0
    """Weight of the KL divergence to the reference."""
    entropy_coef: Number = BY_MODEL
    """Weight of the entropy bonus."""
    sft_coef: Amount = 0.0
    """Weight of imitating demonstrations in every gradient step, where there are some; a repair raises it."""
    sft_batch_size: Count = 64
    """Demonstrations per gradient step."""


@dataclass(frozen=True)
class GateFields:
    """What may stay."""

    group: ClassVar[str] = "gate"

    gate: str = "none"
    """canary (proof of a fall), non_inferiority (proof of none), best (early stopping), none, package.module:NAME or
    FILE.py:NAME."""
    judge: str = ""
    """The gate's reward, of another family than the training reward; empty is the recipe's own."""
    gate_every: Count = 8
    """Rounds between two looks."""
    gate_margin: Amount = 0.1
    """non_inferiority: how far the judge's score may fall."""
    gate_z: Amount = 3.0
    """canary: standard errors of a fall that sound the alarm."""
    gate_patience: Count = 2
    """best: looks in a row without a new best before the run stops."""
    quarantine: Whole = 0
    """Rounds that a harmed category is left out for; 0 is until the next look."""


@dataclass(frozen=True)
class EvaluationFields:
    """What is reported, on tasks that are never learned from."""

    group: ClassVar[str] = "evaluation"

    eval_every: Whole = 0
    """Rounds between further evaluations; 0 evaluates before and after only."""
    eval_episodes: Count = 40
    """Held-out episodes per category."""
    eval_offset: Whole = 0
    """How many of them are skipped."""


@dataclass(frozen=True)
class LoggingFields:
    """What a run keeps to be looked at."""

    group: ClassVar[str] = "logging"

    trackers: tuple[str, ...] = ("tensorboard",)
    """Sinks of metrics beside metrics.jsonl: tensorboard, wandb, trackio, mlflow and others of accelerate,
    package.module:NAME or FILE.py:NAME (a Callback)."""
    save_every: Count = 1
    """Rounds between checkpoints; what a gate decided is saved at once, and resuming repeats the rounds since."""
    keep_last: Count = 2
    """Checkpoints that stay, beside the best."""
    max_hours: Amount = 0.0
    """After so many the run saves and stops, and can be resumed; 0 is no limit."""
    ddp_timeout: Positive = 1800.0
    """With several processes: seconds after which one that does not come is named, and the others end."""


@dataclass(frozen=True)
class SelectionFields:
    """Which attempts are imitated: a base of recipes that select, before the modality's config, whose learner gets
    ``pairing.selected`` as its ``prepare``."""

    select: Literal["best", "threshold"] = "best"
    """best: the best attempts at each task, as RAFT does; threshold: all that score above one, which is
    rejection-sampling fine-tuning, and none of a task that fails."""
    best: Count = 1
    """With select best: attempts at each task that are imitated."""
    threshold: Number | None = None
    """With select threshold: attempts that score more are imitated; None is 0.5."""


Default = Any
"""A value, or a function of the config whose docstring says in words what it gives."""


@dataclass(frozen=True)
class RunConfig(
    LoggingFields,
    EvaluationFields,
    GateFields,
    ObjectiveFields,
    OptimisationFields,
    SamplingFields,
    DataFields,
    ModelFields,
):
    """Every recipe's options.

    Subclasses add fields and change defaults; the type of a number tells its range (``ranges``), and what is out of it
    is refused when a config is made, before anything is loaded. Some class attributes say more; each is merged along
    the bases:

    * ``SMALL`` and ``LOADED``: what a field whose default is None stands for with the small default model and with
      any other;
    * ``TINY``: the preset of two small steps;
    * ``RUNTIME``: fields that change no step that is taken, so that ``resume`` may change them;
    * ``FIXED``: fields that the recipe's method does not leave open. They have no flag, and a value that is not the
      default is refused.
    """

    SMALL: ClassVar[Mapping[str, Default]] = {"weight_decay": 0.0, "entropy_coef": 0.0, "std_floor": 0.0}
    LOADED: ClassVar[Mapping[str, Default]] = {
        "lr": 1e-5,
        "group_size": 8,
        "tasks_per_step": 8,
        "weight_decay": 0.0,
        "entropy_coef": 0.0,
        "std_floor": 0.0,
    }
    TINY: ClassVar[Mapping[str, Any]] = {"max_steps": 2, "gate_every": 1}
    FIXED: ClassVar[tuple[str, ...]] = ()
    RUNTIME: ClassVar[tuple[str, ...]] = ("max_hours", "save_every", "keep_last", "ddp_timeout")

    def __post_init__(self) -> None:
        check_ranges(self)
        for each in fields(self):
            if each.name in fixed(type(self)) and getattr(self, each.name) != each.default:
                raise UsageError(f"{flag(each.name)} has no effect in this recipe, whose method fixes it: leave it out")
        if self.score_range and not self.dynamic_sampling:
            raise UsageError("--score-range has no effect without --dynamic-sampling: give both, or neither")
        if self.score_range and (len(self.score_range) != 2 or self.score_range[0] >= self.score_range[1]):
            raise UsageError(f"--score-range takes two numbers, the lower one first, not {self.score_range}")
        if self.minibatches is not None and self.batch_size is not None:
            raise UsageError("minibatches and batch_size say the same: give --minibatches or --batch-size")

    def plan(self) -> str:
        """What a run will take, in lines, before anything is loaded.

        Raises:
            UsageError: nobody counts it for this recipe.
        """
        raise UsageError("there is no plan for this recipe: --dry-run measures one round")

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """The preset of two small steps."""
        preset = {name: value for name, value in merged(cls, "TINY").items() if name not in fixed(cls)}
        return cls(**preset | changes)

    def resolved(self, small: bool, **computed: Any) -> Self:
        """The same with every None that the tables know replaced.

        Args:
            small: whether the small default model learns, and not one that is loaded.
            computed: further entries, known only once the run is being built.
        """
        return replace(self, **self.taken(small, **computed))

    def taken(self, small: bool, **computed: Any) -> dict[str, Any]:
        """What :meth:`resolved` fills in."""
        table = merged(type(self), "SMALL" if small else "LOADED") | computed
        if self.minibatches is not None:
            table.pop("batch_size", None)
        if self.batch_size is not None:
            table.pop("minibatches", None)
        open_fields = (f.name for f in fields(self) if f.name in table and getattr(self, f.name) is None)
        values = {name: table[name] for name in open_fields if name not in fixed(type(self))}
        return {name: value(self) if callable(value) else value for name, value in values.items()}


def merged(kind: type, name: str) -> dict[str, Any]:
    """A class attribute of mappings, later classes over their bases."""
    return {key: value for each in reversed(kind.__mro__) for key, value in vars(each).get(name, {}).items()}


def fixed(kind: type) -> frozenset[str]:
    """The fields that a config class or one of its bases fixes."""
    return frozenset(name for each in kind.__mro__ for name in vars(each).get("FIXED", ()))


def runtime(kind: type) -> frozenset[str]:
    """The open fields of a config class that a run may change when it is resumed."""
    return frozenset(name for each in kind.__mro__ for name in vars(each).get("RUNTIME", ())) - fixed(kind)


def groups_of(kind: Any) -> dict[str, list[str]]:
    """Group -> names of a config class's open fields: shared groups, then those of modality and recipe.

    A field stands in the group of the class that declares it first, or in the one that its metadata names; classes
    without a ``group`` are a recipe's.
    """
    found: dict[str, list[str]] = {name: [] for name in GROUPS}
    for each in fields(kind):
        if each.name not in fixed(kind):
            first = next(c for c in reversed(kind.__mro__) if each.name in vars(c).get("__annotations__", {}))
            metadata = vars(first)["__dataclass_fields__"][each.name].metadata
            found.setdefault(metadata.get("group", vars(first).get("group", "recipe")), []).append(each.name)
    return {name: names for name, names in found.items() if names}


def by_model(kind: type, name: str) -> str:
    """What a field's None stands for, in words; empty where it stands for itself."""
    tables = {"the small default": merged(kind, "SMALL"), "a loaded model": merged(kind, "LOADED")}
    told = {who: _words(table[name]) for who, table in tables.items() if name in table}
    return ", ".join(f"{what} for {who}" for who, what in told.items())


def _words(value: Default) -> str:
    return str(value.__doc__) if callable(value) else f"{value:g}"


def flag(name: str) -> str:
    """A field as the command line spells it."""
    return "--" + name.replace("_", "-")
