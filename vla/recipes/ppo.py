"""A policy learns from an environment's own reward, from yours, or from a progress model; nobody has to demonstrate.

Paper: PPO (Schulman et al., arXiv:1707.06347), with generalised advantage estimation (arXiv:1506.02438).
Faithful: clipped ratios, values that a critic learns beside the policy, several epochs over minibatches of all that a
round brought. The clip, the loss of values, lambda, the learning rate and the clipping of gradients are
Stable-Baselines3's defaults, read in its code; measured beside it at equal steps of the environment.
Left out: checks against either paper.
Differs: a round is a number of whole episodes instead of a number of steps; advantages are normalised over all of it
instead of within a minibatch; the statistics that normalise observations and rewards move between rounds; a network's
layers are this house's. Nothing is compared within groups, so one episode of each initial state will do.
Demonstrations, where there are some, are imitated first.
Labels: what the environment pays, and where it ends, in every episode; none with ``--rewards progress`` alone.
Expected: not measured yet as one figure; beside Stable-Baselines3, environment by environment, see docs/results.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...errors import UsageError
from ...families import GROUND_TRUTH, of_family
from ...trainers.config import NO_GATE, grouped
from ...trainers.ranges import Amount, Count, Number, Positive, Share, Whole
from ..setting import RobotConfig, start

if TYPE_CHECKING:
    from ...rewards.progress.estimates import ProgressModel
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder
    from ..setting import Setting


CITATION = "Proximal policy optimization: Schulman, Wolski, Dhariwal, Radford, Klimov, arXiv:1707.06347"


@dataclass(frozen=True)
class Config(RobotConfig):
    """Numbers without a source were chosen on this project's own tuning seeds."""

    SMALL: ClassVar[Mapping[str, Any]] = {"lr": 3e-4, "group_size": 1}
    LOADED: ClassVar[Mapping[str, Any]] = {"lr": 1e-5, "group_size": 1}
    TINY: ClassVar[Mapping[str, Any]] = {"minibatches": 2, "epochs": 2, "group_size": 1}
    FIXED: ClassVar[tuple[str, ...]] = (*NO_GATE, "gate_states", "objective", "advantage", "std_floor", "batch_size")
    OWN: ClassVar[Mapping[str, tuple[str, ...]]] = {"rewards": ("environment", "progress")}

    demonstrations: Whole = grouped("data", 0)
    """Demonstrations of a task that does not say; 0 starts from random weights."""
    rewards: tuple[str, ...] = ("environment",)
    """environment (what it pays for each chunk), progress (what a progress model's estimate rises by in each chunk),
    NAME:WEIGHT, package.module:NAME or FILE.py:NAME; several are weighted and added."""
    critic: str = ""
    """Who estimates progress: a registered name, package.module:NAME or FILE.py:NAME; empty learns it from
    demonstrations."""
    rho: float = grouped("sampling", 0.0)
    log_std_init: Number | None = grouped("model", None)
    """Log of the Gaussian's standard deviation at the start, in units of the action; None: -0.5, or -1.6 where
    demonstrations are imitated."""
    critic_trunk: Literal["separate", "shared"] = grouped("model", "separate")
    """Values are of a network of their own, or of a head on the policy's layers."""
    norm_obs: bool = grouped("model", True)
    """Running statistics normalise observations, where the policy starts from random weights; a clone keeps those of
    its demonstrations."""
    norm_reward: bool = grouped("objective", True)
    """Rewards are divided by the running standard deviation of discounted returns, in learning alone."""
    gamma: Share = grouped("objective", 0.99)
    """Discount per chunk."""
    gae_lambda: Share = grouped("objective", 0.95)
    """GAE's lambda: 1 trusts what came, 0 the values."""
    normalize_advantage: bool = grouped("objective", True)
    """Advantages have mean 0 and standard deviation 1 over a round."""
    value_coef: Amount = grouped("objective", 0.5)
    """Weight of the loss of values."""
    clip_range_vf: Positive | None = grouped("objective", None)
    """How far a value may move from what it was as the round began; None does not clip."""
    epochs: Count = 10
    minibatches: Count | None = 32
    """Gradient steps per epoch, each on a share of a round's chunks."""
    max_grad_norm: Positive = 0.5
    max_steps: Whole = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.demonstrations_from and not self.demonstrations:
            raise UsageError("--demonstrations-from: say how many of each dataset by --demonstrations")
        if self.critic and not any(name.partition(":")[0] == "progress" for name in self.rewards):
            raise UsageError("--critic is about --rewards progress")


def build(config: Config, folder: RunFolder) -> Experiment:
    from contextlib import nullcontext
    from functools import partial

    from ...envs.oracle import sealed
    from ...rewards.progress.estimates import ProgressGain
    from ...trainers.advantages import GAE
    from ...trainers.normalization import RewardNormalizer
    from ...trainers.objectives import ValueLoss
    from ...trainers.published import clipped
    from ..normalization import ObservationNormalizer

    setting = start(config, folder, critic=config.critic_trunk, log_std=config.log_std_init)
    reward = setting.reward(
        {"environment": lambda: environment, "progress": lambda: ProgressGain(progress_model(config, setting, folder))}
    )
    scale = RewardNormalizer(config.gamma) if config.norm_reward else None
    flow = config.head == "flow"
    learner = setting.learner(
        clipped(config, aggregate="decision", per_dimension=flow) + config.value_coef * ValueLoss(config.clip_range_vf),
        GAE(config.gamma, config.gae_lambda, config.normalize_advantage),
        sets=[] if scale is None else [scale],
        how={"cut": "segments", "eps": 1e-5},
    )
    learners: dict[str, Any] = {"rewards": scale} if scale is not None else {}
    learners["policy"] = learner
    if config.norm_obs and not setting.encoded and not config.model and setting.policy.normalises:
        learners["observations"] = ObservationNormalizer(setting.policy)
    alone = all(name.partition(":")[0] == "progress" for name in config.rewards)
    guard = partial(sealed, "a progress model alone is learned from") if alone else nullcontext
    setting.pays, setting.citation = not alone, CITATION
    sampling = {} if alone else {"oracle": True, "rewards": True}
    stage = setting.stage(learner, reward, learners=learners, sampling=sampling, guard=guard)
    if not alone:
        setting.read.append("training: what the environment pays, and where it ends, in every episode")
    return setting.experiment([stage], reward)


@of_family(GROUND_TRUTH)
def environment(episodes: Sequence[Any], **columns: Any) -> list[list[float]]:
    """What each chunk of an episode was paid by the environment; nothing for one that was over before it began."""
    return [episode.rewards.tolist() or [0.0] for episode in episodes]


def progress_model(config: Config, setting: Setting, folder: RunFolder) -> ProgressModel:
    """The model that ``--critic`` names, fitted to demonstrations where it can be; or a network that learns from them.

    Raises:
        UsageError: neither a critic nor demonstrations of states.
    """
    from ...rewards.progress.critics import CriticTraining, ProgressCritic
    from ..progress import named_model, seen_relations
    from ..setting import learned

    shown = setting.all_demonstrations
    if config.critic:
        return named_model(config.critic, shown, str(setting.policy.device))
    if not shown or config.obs_type == "pixels":
        raise UsageError("--rewards progress: name a progress model by --critic, or give --demonstrations of states")
    critic = ProgressCritic("absolute", seen_relations(setting, True), CriticTraining(seed=config.seed))
    return learned(folder, "reward", critic, lambda: critic.fit(shown))
