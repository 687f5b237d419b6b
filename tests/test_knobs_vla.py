"""Every knob of the recipes for robots is felt: in the weights, in the episodes, or in the mechanism's own metric.

Two runs differ in the knob alone: they start from the same clone, and act with the same random numbers. The learning
rate is large, so that a few updates reach what clips and references are there for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from autotelic.envs.gym_simulator import GymSimulator
from autotelic.errors import UsageError
from autotelic.recipes import all_recipes
from autotelic.rewards.progress.estimates import _ahead
from autotelic.rewards.progress.features import RelationFeatures
from autotelic.rewards.progress.frame_critics import FrameCritic
from autotelic.trainers.config import fixed
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.trainers.scoring import score
from autotelic.vla import progress
from autotelic.vla.recipes import evolve_vla

from . import point_mass

TASKS, EPISODES = 4, 4
CLONED = "gate_labels: none; 6 demonstrations, imitated before training"
REPAIRED, ALWAYS = "and in every gradient step after a repair", "and in every gradient step"
CRITICS = "critics: 6 demonstrations and when they succeeded"
FELT = 1e-3
"""Of an update's norm: the least by which weights differ."""


class Nearer:
    """What of the way that was left is gone, squared: small advances are underrated, so it matters who is compared."""

    kind: Literal["pairwise"] = "pairwise"
    families = frozenset({"test: distance"})

    def __call__(self, observations: Any, initial: Any, instructions: Any, references: Any = None) -> Any:
        ahead = _ahead(near(observations), near(references))
        return (np.sign(ahead) * ahead**2).astype(np.float32)


class Near:
    """The share of the way to the mark that is gone."""

    kind: Literal["absolute"] = "absolute"
    families = frozenset({"test: distance"})

    def __call__(self, observations: Any, initial: Any, instructions: Any, references: Any = None) -> Any:
        return near(observations)


def near(observations: Any) -> Any:
    gone = np.linalg.norm(observations[:, :2] - observations[:, 2:], axis=1)
    return (1 - np.clip(gone, 0, 1)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where runs begin; what they learned is kept, since many knobs turn on the same run."""
    global _place
    _place = tmp_path_factory.mktemp("runs")
    point_mass.register_point_mass()
    yield
    learned.cache_clear()


_place = Path()
Run = tuple[Tensor, list[dict[str, float]], list[int]]


@cache
def learned(recipe: str, rounds: int, changes: tuple[tuple[str, Any], ...]) -> Run:
    """What a recipe's learner did: the change of all weights, each round's metrics, and the steps of each episode."""
    metrics, steps = [], []
    with closing(built(recipe, **dict(changes))) as experiment:
        recorded()
        (stage,) = experiment.stages
        policy = stage.learners["policy"].policy
        before = {name: tensor.detach().clone() for name, tensor in policy.trained().items()}
        for number in range(rounds):
            drawn = stage.curriculum.sample(TASKS)
            rollouts = stage.actor.act(drawn, EPISODES, key=(0, number), **stage.sampling)
            score(rollouts, stage.reward)
            kept = rollouts if stage.dynamic is None else stage.dynamic.kept(rollouts)
            metrics.append(stage.learners["policy"].update(kept) | {"kept": len(kept) / len(rollouts)})
            stage.curriculum.update(rollouts)
            steps += [rollout.output.steps for rollout in rollouts if hasattr(rollout.output, "steps")]
        moved = [(tensor.detach() - before[name]).flatten() for name, tensor in policy.trained().items()]
    return torch.cat(moved), [{k: float(v) for k, v in each.items()} for each in metrics], steps


def recorded() -> None:
    """What a test does once demonstrations are recorded."""


def built(recipe: str, **changes: Any) -> Any:
    """A small experiment in a folder of its own."""
    module = all_recipes()[f"vla/{recipe}"].load()
    fields = {
        "tasks": (f"{point_mass.NAME}:6",),
        "bc_steps": 200,
        "workers": -1,
        "videos": 0,
        "hidden_size": 32,
        "chunk": 1,
    }
    fields |= {"gate": "none", "tasks_per_step": TASKS, "group_size": EPISODES, "lr": 3e-3, "batch_size": 8}
    fields |= {"eval_episodes": 2, "max_steps": 2}
    fields |= {} if recipe in ("oracle_grpo", "more_imitation", "ppo") else {"critic": f"{__name__}:Nearer"}
    fields |= changes
    if "minibatches" in fields:
        del fields["batch_size"]
    fields = {name: value for name, value in fields.items() if name not in fixed(module.Config) or name in changes}
    run = RunFolder.create(_place / str(len(list(_place.iterdir()))), recipe=f"vla/{recipe}", config={}, command="")
    return module.build(module.Config(**fields), run)


def run(recipe: str = "evolve_vla", rounds: int = 2, **changes: Any) -> Run:
    return learned(recipe, rounds, tuple(sorted(changes.items())))


def differ(one: Run, other: Run) -> bool:
    assert float(one[0].norm()) > 0
    return float((one[0] - other[0]).norm()) > FELT * float(one[0].norm())


KNOBS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "accumulation": ("evolve_vla", {}, {"accumulate": "last"}),
    "VLAC's mix": ("evolve_vla", {"milestone_interval": 2}, {"milestone_interval": 2, "accumulate": "mix_f"}),
    "milestones": ("evolve_vla", {}, {"milestone_interval": 2}),
    "checks": ("evolve_vla", {"milestone_interval": 6}, {"milestone_interval": 6, "check_interval": 3}),
    "threshold": ("evolve_vla", {}, {"threshold": 0.4}),
    "termination": ("evolve_vla", {}, {"termination": False}),
    "horizon": ("evolve_vla", {}, {"horizon_shares": (1.0,)}),
    "critic": ("evolve_vla", {"accumulate": "last"}, {"accumulate": "last", "critic": f"{__name__}:Near"}),
    "reward": ("evolve_vla", {}, {"rewards": ("random",)}),
    "aggregation": ("evolve_vla", {}, {"loss_agg_mode": "token-mean"}),
    "temperature": ("evolve_vla", {}, {"temperature": 1.6}),
    "temperature of tokens": ("evolve_vla", {"head": "tokens"}, {"head": "tokens", "temperature": 1.6}),
    "correlation of noise": ("evolve_vla", {}, {"rho": 0.0}),
    "clips": ("evolve_vla", {}, {"clip_low": 0.01, "clip_high": 0.01}),
    "clip-higher": ("evolve_vla", {}, {"clip_high": 0.02}),
    "floor of the deviation": ("evolve_vla", {}, {"std_floor": 1.0}),
    "epochs": ("evolve_vla", {}, {"epochs": 3}),
    "minibatches": ("evolve_vla", {}, {"minibatches": 4}),
    "dynamic sampling": (
        "evolve_vla",
        {"dynamic_sampling": True},
        {"dynamic_sampling": True, "score_range": (0.05, 0.33)},
    ),
    "imitation beside it": ("evolve_vla", {}, {"sft_coef": 1.0}),
    "divergence": ("evolve_vla", {}, {"kl_coef": 1.0}),
    "entropy": ("evolve_vla", {}, {"entropy_coef": 0.1}),
    "an oracle's aggregation": ("oracle_grpo", {}, {"loss_agg_mode": "token-mean"}),
    "completion": ("best_progress", {}, {"completion": 0.0}),
    "the best or the newest": ("best_progress", {}, {"accumulate": "last"}),
    "the best or the mean": ("best_progress", {}, {"accumulate": "mean"}),
    "how many are imitated": ("raft", {}, {"best": 2}),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_weights_differ_with_the_knob(knob: str) -> None:
    recipe, plain, turned = KNOBS[knob]
    assert differ(run(recipe, **plain), run(recipe, **turned))


def test_the_same_run_twice_is_the_same() -> None:
    once = run()
    learned.cache_clear()
    assert torch.equal(once[0], run()[0])


def test_clips_act() -> None:
    wide, narrow = (
        run(**changes)[1][-1]["objective/clip_fraction"] for changes in ({"clip_high": 0.03}, {"clip_high": 0.005})
    )
    assert 0 < wide < narrow


def test_horizon_and_termination_cut_episodes() -> None:
    cut, whole = run()[2], run(horizon_shares=(1.0,))[2]
    half = len(cut) // 2
    longest = max(whole)
    assert max(cut[:half]) == round(0.6 * longest) and max(cut[half:]) == longest
    assert min(whole) < longest and set(run(horizon_shares=(1.0,), termination=False)[2]) == {longest}


def test_dynamic_sampling_keeps_fewer() -> None:
    kept = [run(dynamic_sampling=True, **changes)[1][0]["kept"] for changes in ({}, {"score_range": (0.05, 0.33)})]
    assert 0 < kept[1] < kept[0]
    assert run()[1][0]["kept"] == 1.0


def test_a_random_reward_ends_episodes_by_progress_all_the_same_or_not_at_all() -> None:
    assert run(rewards=("random",))[2][:16] == run()[2][:16], "of the first round, before anything was learned"
    assert len(set(run(rewards=("random",), termination=False, horizon_shares=(1.0,))[2])) == 1


def test_features_of_the_goal_are_seen_or_not() -> None:
    layout = {"hand": slice(0, 3), "object": slice(3, 6), "goal": slice(6, 9)}
    setting: Any = SimpleNamespace(names=("a",), pool=SimpleNamespace(layout=lambda name: layout))
    with_goal, without = (progress.seen_relations(setting, seen) for seen in (True, False))
    assert isinstance(with_goal, RelationFeatures) and isinstance(without, RelationFeatures)
    assert set(without.names) < set(with_goal.names)


def test_play_is_given_to_a_critic_of_frames_that_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(progress, "learned", lambda folder, name, critic, fit: fit())
    monkeypatch.setattr(FrameCritic, "fit", lambda self, shown, play=(): given.append(len(play)))
    setting: Any = SimpleNamespace(all_demonstrations=[], play=lambda episodes: ["an episode"] * episodes)
    for kind, play in (("pairwise", 3), ("pairwise", 0), ("absolute", 3)):
        config: Any = SimpleNamespace(frame_steps=1, play=play)
        progress.looking(config, setting, None, "reward", kind, 0)  # type: ignore[arg-type]
    assert given == [3, 0, 0]


@pytest.mark.parametrize(("changes", "told"), [
    ({"check_interval": 3}, "--check-interval 3: a multiple of the 5"),
    ({"milestone_interval": 5}, "--milestone-interval 5: twice or more --check-interval, which is 5"),
    ({"check_interval": 10, "milestone_interval": 25}, "--milestone-interval 25"),
])  # fmt: skip
def test_intervals_that_decisions_do_not_meet(changes: dict[str, int], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        progress.accumulation(evolve_vla.Config(**changes), 5, "milestones")  # type: ignore[arg-type]


def test_intervals_are_in_environment_steps() -> None:
    config = evolve_vla.Config(check_interval=16, milestone_interval=64)
    made = progress.accumulation(config, 8, "milestones")
    assert (made.milestone, made.check) == (4, 2)
    made = progress.accumulation(evolve_vla.Config(), 5, "milestones")
    assert (made.milestone, made.check) == (4, 1), "20 and 5 steps"
    with pytest.raises(UsageError, match="--milestone-interval is about --accumulate milestones"):
        evolve_vla.Config(accumulate="last", milestone_interval=20)


# labels


@pytest.mark.parametrize(("recipe", "reads"), [
    ("evolve_vla", False), ("best_progress", False), ("raft", False), ("more_imitation", False), ("oracle_grpo", True),
])  # fmt: skip
def test_only_what_says_so_learns_from_success(recipe: str, reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state but the demonstrations' is a success where it was none, and the other way round."""
    changes: dict[str, Any] = {"epochs": 2} if recipe == "more_imitation" else {}
    before, judge = run(recipe, **changes), GymSimulator.success
    learned.cache_clear()
    monkeypatch.setattr(f"{__name__}.recorded", lambda: monkeypatch.setattr(GymSimulator, "success", contrary))

    def contrary(self: GymSimulator) -> bool:
        return not judge(self)

    after = run(recipe, **changes)
    learned.cache_clear()
    assert differ(before, after) if reads else torch.equal(before[0], after[0])


ACCOUNTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "progress": ("evolve_vla", {}, f"{CLONED}; {CRITICS}"),
    "a repair": ("evolve_vla", {"gate": "non_inferiority"}, f"{CLONED} {REPAIRED}; {CRITICS}"),
    "imitation beside it": ("evolve_vla", {"sft_coef": 0.1}, f"{CLONED} {ALWAYS}; {CRITICS}"),
    "rejection sampling": ("raft", {}, f"{CLONED}; {CRITICS}"),
    "imitation": ("more_imitation", {}, f"{CLONED} {ALWAYS}"),
    "the oracle": ("oracle_grpo", {}, f"{CLONED}; training: the oracle's success of every episode"),
    "the environment": (
        "ppo",
        {},
        f"{CLONED}; training: what the environment pays, and where it ends, in every episode",
    ),
}


@pytest.mark.parametrize("case", ACCOUNTS)
def test_the_account_tells_all_that_is_read(case: str) -> None:
    recipe, changes, told = ACCOUNTS[case]
    with closing(built(recipe, **changes)) as experiment:
        assert experiment.label_account == told
