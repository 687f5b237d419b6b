"""Agents solve questions, criticise each other's solutions and score them, and learn from what the others said of them.

Paper: CoMAS (arXiv:2510.08529).
Faithful: m rounds with agents drawn uniformly; n critics that look for flaws; a scorer of every solution and critique,
tau in 1..3, which nobody hears; r = (tau - 1) / 2 for the solution, 1 - r for the critique, 0 or -1 for the scorer; for
every agent a buffer of all that it did in any role, A_t = r - beta sum_{>= t} ln pi / pi_ref normalised over all its
tokens (REINFORCE++), PPO's clip. Checked against the paper's formulas as notes on it quote them, and read beside the
published code by way of a fork (wt-2048/comas at 4092f80: its prompts, rewards, clip, temperature, two references).
Left out: the paper's data and its four 3B models.
Differs: a grade that cannot be read pays solution and critique nothing instead of 0 (they are not learned from). The
paper's text is followed where the code differs from it: there every agent solves at once in 2 rounds, hears 2
discussions of the round before, drawn at random, and critics hear none. Two epochs, so that the clip acts. Losses are
means over an agent's tokens. The small default model speaks its own few words (``discussion.SmallRoles``): a critic has
only a verdict, no argument. beta and lr are ours; the paper's beta is not known to us.
Labels: training reads none; the default start has imitated 150 traced demonstrations, which are not replayed; the gate
compares views and reads none.
Expected: tables of logits whose verdicts are right with q = .8 gain .32 in accuracy (95 % interval .23 to .40 over
five seeds), with q = .5 nothing (.01, -.08 to .11; benchmarks/comas.json). The default model is not measured yet on
what is held out by content; asked to check, it tells right from wrong at chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...trainers.ranges import Amount, Count, Whole
from ..setting import LanguageConfig, is_small, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder
    from ...types import Actor, Learner
    from ..setting import Setting


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Numbers with a source are the paper's."""

    FIXED: ClassVar[tuple[str, ...]] = ("rewards", "objective", "advantage", "std_floor")
    SMALL: ClassVar[Mapping[str, Any]] = {"lr": 3e-4, "weight_decay": 0.0, "entropy_coef": 0.0, "group_size": 1}
    LOADED: ClassVar[Mapping[str, Any]] = {"group_size": 1}
    TINY: ClassVar[Mapping[str, Any]] = {"group_size": 1, "gate_labels": 0}

    agents: Count = 2  # the paper's main runs have 4, its ablation 2
    """Copies of the model that play, each trained by itself. The first is evaluated."""
    rounds: Whole = 0
    """Solutions per discussion (m); 0 takes twice the number of agents, as the paper does."""
    critics: Whole = 1  # n
    """Critiques per solution; 0 scores solutions alone, the paper's ablation."""
    history: Whole = 2  # kappa
    """Rounds that solvers and critics hear of."""
    scorer: bool = True
    """Let another agent score; without, a critic scores what it criticises, the paper's ablation."""
    beta: Amount = 0.01
    """Weight of the per-token KL to the start, in the reward."""
    epochs: int = 2
    minibatches: int | None = 2
    max_steps: int = 100
    sft_coef: float = 0.0
    gate_labels: int = 0


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...rewards.reward import Reward
    from ..discussion import ChatRoles, Discussion, Interaction, SmallRoles
    from ..watch import Watch

    setting = start(config, folder, labels=False)
    policies: list[Any] = [setting.policy, *(setting.policy.trainable(f"agent{i}") for i in range(1, config.agents))]
    agents = {f"agent{number}": policy for number, policy in enumerate(policies)}
    game = Discussion(
        agents,
        SmallRoles() if is_small(config) else ChatRoles(),
        rounds=config.rounds or 2 * config.agents,
        critics=config.critics,
        history=config.history,
        scorer=config.scorer,
    )
    learners = {name: learner_of(config, setting, name, agent) for name, agent in agents.items()}
    sampling = {"temperature": config.temperature}
    everyone: dict[str, Learner] = {**learners, "watch": Watch()}
    sampling = {"temperature": config.temperature}
    first = learners[game.judged]
    stage = setting.stage(first, Reward(Interaction()), actor=game, learners=everyone, sampling=sampling)
    experiment = setting.experiment([stage])
    experiment.evaluate = lambda actor: evaluate(setting, actor)
    return experiment


def learner_of(config: Config, setting: Setting, name: str, agent: Any) -> Learner:
    """REINFORCE++ with the KL in the reward, of one agent's own rollouts."""
    from ...trainers.advantages import ReinforcePlusPlus
    from ...trainers.published import clipped
    from ...trainers.shaping import PerTokenKL

    return replace(setting, policy=agent).learner(
        clipped(config, aggregate="decision"),
        ReinforcePlusPlus(),
        shape=[PerTokenKL(config.beta, "start")] if config.beta else [],
        references={"start": setting.start},
        anchors=setting.anchors() if config.sft_coef else None,  # a repair must not bring in demonstrations
        players=(name,),
    )


def evaluate(setting: Setting, actor: Actor) -> Mapping[str, Any]:
    """The judged agent alone, as which a game acts when it is evaluated, and beside it the mean of all agents."""
    from ..evaluation import evaluate as evaluate_one

    game: Any = actor.evaluated()
    results = {name: evaluate_one(setting, agent) for name, agent in game.agents.items()}
    judged = results[game.judged]
    for category, figures in judged["figures"].items():
        successes = [result["outcomes"][category]["success"] for result in results.values()]
        figures["mean of agents"] = sum(map(sum, successes)) / sum(map(len, successes))
    return judged
