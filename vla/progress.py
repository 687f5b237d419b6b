"""Progress as reward and as the end of episodes: what the recipes share that learn from an estimate of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ..errors import UsageError
from ..trainers.ranges import Count, Number, Range, Whole
from .setting import RobotConfig, learned

if TYPE_CHECKING:
    from ..rewards.progress.estimates import Accumulator, ProgressModel, Threshold
    from ..rewards.progress.features import Features
    from ..trainers.loop import Experiment
    from ..trainers.runs.run_folder import RunFolder
    from ..types import Learner
    from .setting import Setting

logger = logging.getLogger(__name__)

KINDS: dict[str, Literal["absolute", "pairwise"]] = {
    "own": "absolute",
    "network": "absolute",
    "pairs": "pairwise",
    "advance": "pairwise",
}
CONDITIONED = ("own", "ends", "pretrained", "advance")
"""Critics that read end conditions."""
UNSEEN_THRESHOLD = 0.9
"""Where demonstrations do not show what a model reads at their success."""


@dataclass(frozen=True)
class ProgressConfig(RobotConfig):
    """Fields of every recipe that learns from progress."""

    SMALL: ClassVar[Mapping[str, Any]] = {"batch_size": 40}
    OWN: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "rewards": ("progress",),
        "critic": ("own", "network", "pairs", "advance", "ends", "pretrained"),
    }
    TINY: ClassVar[Mapping[str, Any]] = {"horizon_shares": (0.5, 1.0), "play": 2, "frame_steps": 8}

    milestone_interval: Whole = 0
    """Environment steps between milestones ("milestones" and "mix_f"), a multiple of the checks'; 0 is four checks."""
    check_interval: Whole = 0
    """Environment steps between two estimates, a multiple of a decision's; 0 is each decision's end."""
    threshold: Number = 0.0
    """An estimate above it ends the episode; 0 takes what each task's demonstrations reach when they first succeed (0.9
    where the model sees pictures and they have none)."""
    termination: bool = True
    """The estimate ends episodes; otherwise each goes on to its horizon."""
    critic: str = "own"
    """Who estimates progress. "own" is a network that learned it from the demonstrations alone, averaged with the end
    conditions that they agree on (on frames with another network, which compares with the beginning). "advance"
    compares with a reference, by default the latest milestone: a network that learned to compare, averaged with what
    the end conditions gained since (on frames that network alone). "network", "pairs" (it compares) and "ends" are one
    alone. In "pretrained" the network has learned on other tasks, whose successes it was told, how to read
    demonstrations. One of your own is FILE.py:NAME."""
    play: Whole = 16
    """Episodes per task of the cloned policy that a critic of frames, where it compares, takes for little progress."""
    frame_steps: Count = 400
    """Gradient steps of each network of a critic of frames."""
    goal_features: bool = True
    """The critic sees where the goal is marked."""
    horizon_shares: tuple[Annotated[float, Range(0, 1)], ...] = (1.0,)
    """Shares of the horizon in equally long stages; (0.6, 1) trains the openings first."""
    epochs: int = 2
    gate: str = "non_inferiority"
    gate_every: int = 4
    quarantine: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.horizon_shares or min(self.horizon_shares) <= 0:
            raise UsageError(f"--horizon-shares {self.horizon_shares} are shares above 0, one per stage")


def assemble(
    config: ProgressConfig,
    setting: Setting,
    folder: RunFolder,
    learner: Learner,
    rule: str,
    completion: float | None = None,
) -> Experiment:
    """Progress as reward and termination, a gate, a horizon curriculum, and the given way of learning.

    Args:
        rule: how answers over an episode become the estimate v, see ``Accumulator``.
        completion: rewards v as a share of the threshold, and pays this share for passing it alone (see
            ``FinalProgress``); None rewards v itself.
    """
    from ..envs.oracle import sealed
    from ..families import name_of
    from ..rewards.progress.estimates import Accumulator, EpisodeProgress, FinalProgress, ProgressEstimator
    from ..trainers.curricula import ProgressiveHorizon

    accumulator = accumulation(config, setting.pool.chunk, rule)
    progress, judge = critics(config, setting, folder)
    done = thresholds(config, setting, progress, accumulator)
    if shown := len(setting.all_demonstrations):
        setting.read.append(f"critics: {shown} demonstrations and when they succeeded")
    if config.critic == "pretrained":
        setting.read.append("critics: the success of episodes of other tasks")
    pays = (1.0, 0.0) if completion is None else (done, completion)
    reward = setting.reward({"progress": lambda: FinalProgress(*pays, model=progress)})
    whole = EpisodeProgress(progress, accumulator)
    hindsight = setting.reward({"progress": lambda: FinalProgress(*pays, whole)})
    shares = config.horizon_shares
    starts = {i * config.max_steps // len(shares): share for i, share in enumerate(shares)}  # few steps skip some
    estimator = ProgressEstimator(progress, accumulator, threshold=done if config.termination else None)
    stage = setting.stage(
        learner,
        reward,
        judge=None if judge is None else EpisodeProgress(judge, Accumulator("best")),
        proxy=hindsight,
        actor=setting.actor(estimator=estimator),
        curriculum=ProgressiveHorizon(setting.curriculum(), list(starts.items())),
        guard=lambda: sealed("this recipe learns without an oracle"),
    )
    judged = "" if judge is None else f"; the gate asks another, {name_of(judge)}"
    critic = f"{config.critic} ({name_of(progress)}), an estimate of progress{judged}"
    return setting.experiment([stage], hindsight, method={"critic": critic})


def accumulation(config: ProgressConfig, chunk: int, rule: Any) -> Accumulator:
    """The accumulator of a rule, with the config's intervals in decisions of ``chunk`` environment steps.

    Raises:
        UsageError: intervals that decisions do not meet, or that leave no check between two milestones.
    """
    from ..rewards.progress.estimates import Accumulator

    check = config.check_interval or chunk
    milestone = config.milestone_interval or 4 * check
    if check % chunk:
        raise UsageError(f"--check-interval {check}: a multiple of the {chunk} environment steps of a decision")
    if milestone % check or milestone <= check:
        raise UsageError(f"--milestone-interval {milestone}: twice or more --check-interval, which is {check}")
    return Accumulator(rule, milestone // check, check // chunk)


def thresholds(config: ProgressConfig, setting: Setting, model: ProgressModel, accumulator: Accumulator) -> Threshold:
    """What an estimate has to pass for an episode to be over, per task unless one number was given."""
    from ..rewards.progress.estimates import sees, shown_thresholds

    shown = setting.all_demonstrations
    if config.threshold:
        return config.threshold
    if sees(model) == "frames" and any(d.frames is None for d in shown):
        return UNSEEN_THRESHOLD
    return shown_thresholds(model, shown, accumulator, setting.pool.chunk)


def critics(config: ProgressConfig, setting: Setting, folder: RunFolder) -> tuple[ProgressModel, ProgressModel | None]:
    """The estimator that rewards and ends episodes, and the gate's judge, which is of another family.

    The judge reads end conditions off the demonstrations where the estimator does not; otherwise it is a network, which
    compares with the episode's beginning unless the estimator's compares. On frames there is none, and so no gate,
    where the estimator compares.
    """
    from ..families import families_of
    from ..rewards.progress.critics import CriticTraining, ProgressCritic
    from ..rewards.progress.end_conditions import EndConditions
    from ..rewards.progress.frame_critics import FrameCritic

    features, shown = seen_relations(setting, config.goal_features), setting.all_demonstrations
    progress = estimator(config, setting, folder, features)
    if config.obs_type == "pixels":
        if families_of(progress) & families_of(FrameCritic("pairwise")):
            return progress, None
        return progress, looking(config, setting, folder, "judge", "pairwise", config.seed + 1)
    if config.critic in CONDITIONED:
        other: Literal["absolute", "pairwise"] = "absolute" if config.critic == "advance" else "pairwise"
        network = ProgressCritic(other, features, CriticTraining(seed=config.seed + 1))
        return progress, learned(folder, "judge", network, lambda: network.fit(shown))
    conditions = EndConditions(features)
    conditions.fit(shown)
    return progress, conditions


def looking(
    config: ProgressConfig,
    setting: Setting,
    folder: RunFolder,
    name: str,
    kind: Literal["absolute", "pairwise"],
    seed: int,
) -> ProgressModel:
    """A critic of frames. Play helps one that compares, and harms one that does not; see docs/results.md."""
    from ..rewards.progress.frame_critics import FrameCritic, FrameTraining

    critic = FrameCritic(kind, FrameTraining(steps=config.frame_steps, seed=seed))

    def fit() -> None:
        critic.fit(setting.all_demonstrations, setting.play(config.play) if kind == "pairwise" else ())

    return learned(folder, name, critic, fit)


def seen_relations(setting: Setting, goals: bool) -> Features:
    """Relations between hand, objects and goal where an observation names them, else its plain numbers."""
    from ..rewards.progress.features import PARTS, RelationFeatures, StateFeatures, relations_in

    layout = setting.pool.layout(setting.names[0])
    strange = [name for name in layout if name not in PARTS]
    if strange:
        logger.warning("no relation knows %r in the layout of %s: %s are known", strange[0], setting.names[0], PARTS)
    names = relations_in(layout, goals=goals)
    return RelationFeatures(layout, names) if names else StateFeatures()


def named_model(name: str, shown: Sequence[Any], device: str) -> ProgressModel:
    """A progress model by its name or place, fitted to demonstrations where there are some and it can be.

    A class is called, with the device if it takes one.
    """
    from inspect import signature

    from ..plugins import named

    made = named("progress", name)
    if isinstance(made, type):
        made = made(device=device) if "device" in signature(made).parameters else made()
    model: ProgressModel = made
    if shown and hasattr(model, "fit"):
        model.fit(shown)
    return model


def estimator(config: ProgressConfig, setting: Setting, folder: RunFolder, features: Features) -> ProgressModel:
    """The progress model that ``config.critic`` names, fitted to the demonstrations if it can be."""
    from ..rewards.progress.critics import CriticTraining, ProgressCritic
    from ..rewards.progress.end_conditions import EndConditions
    from ..rewards.progress.estimates import MeanAdvance, MeanProgress, sees
    from ..rewards.progress.pretrained_critics import Pretraining
    from .environments import view_of
    from .practice import pretrained_critic

    shown, kind = setting.all_demonstrations, KINDS.get(config.critic)
    if kind and config.obs_type == "pixels":
        alone = looking(config, setting, folder, "reward", kind, config.seed)
        if config.critic != "own":
            return alone
        return MeanProgress([alone, looking(config, setting, folder, "pairs", "pairwise", config.seed + 2)])
    if config.obs_type == "pixels" and config.critic in CONDITIONED:
        raise UsageError(f"the critic {config.critic!r} sees states: take --critic own for frames")
    conditions = EndConditions(features)
    if config.critic in CONDITIONED:
        conditions.fit(shown)
    if kind:
        critic = ProgressCritic(kind, features, CriticTraining(seed=config.seed))
        network = learned(folder, "reward", critic, lambda: critic.fit(shown))
        if config.critic not in CONDITIONED:
            return network
        return (MeanProgress if kind == "absolute" else MeanAdvance)([network, conditions])
    if config.critic == "ends":
        return conditions
    if config.critic == "pretrained":
        reader = pretrained_critic(setting.names, training=Pretraining(seed=config.seed)).adapt(shown)
        return MeanProgress([reader.to(setting.policy.device), conditions])
    model = named_model(config.critic, shown, str(setting.policy.device))
    if sees(model) == "frames" and setting.watched is None:
        setting.watched = view_of(config)
    return model
