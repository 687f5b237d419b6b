"""Knobs of recipes that learn from a model's own judgements: from one start, with the same random numbers, each of them
makes other weights, by more than a thousandth of the update, and moves what it is about."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.envs.toys import scenes
from autotelic.errors import UsageError
from autotelic.recipes import find_recipe
from autotelic.trainers.scoring import score

from .small_speaking import teach_quickly


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A default model that knows what an answer is."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        teach_quickly(patch, folder, naming=60, answering=300, batch=32)
        patch.setattr(scenes, "questions", functools.cache(scenes.questions))
        yield folder
        learned.cache_clear()


@dataclass(frozen=True)
class Learned:
    """What a run of some rounds made."""

    start: dict[str, Tensor]
    end: dict[str, Tensor]
    said: list[str]
    metrics: list[Mapping[str, float]]

    def mean(self, name: str) -> float:
        return sum(row[name] for row in self.metrics) / len(self.metrics)


@functools.cache
def learned(recipe: str, rounds: int = 1, **flags: Any) -> Learned:
    """Rounds of a recipe as the loop plays them, without a gate."""
    module = find_recipe(recipe).load()
    given = {"tasks_per_step": 14, "group_size": 4, "lr": 3e-3, "seed": 3, "gate": "none", "trackers": ()}
    experiment = module.build(module.Config.tiny(max_steps=rounds, **given | flags), None)
    stages = experiment.stages
    policy = stages[0].actor.bare()
    start = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    said, metrics, iteration = [], [], 0
    for stage in stages:
        for _ in range(stage.steps):
            tasks = stage.curriculum.sample(stage.tasks_per_step)
            rollouts = stage.actor.act(tasks, stage.group_size, key=(3, iteration), **stage.sampling)
            told = dict(score(rollouts, stage.reward))
            for learner in stage.learners.values():
                told |= learner.update(rollouts)
            said += [str(rollout.output) for rollout in rollouts]
            metrics.append(told)
            iteration += 1
    return Learned(start, {name: tensor.clone() for name, tensor in policy.state_dict().items()}, said, metrics)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return float(torch.stack([(one[name] - other[name]).square().sum() for name in one]).sum().sqrt())


def assert_apart(one: Learned, other: Learned) -> None:
    update = distance(one.start, one.end)
    assert update > 0 and distance(one.start, other.start) == 0
    assert distance(one.end, other.end) > 1e-3 * update


# --- self-rewarding --------------------------------------------------------------------------------

RUNS = {"minibatches": 4, "epochs": 2}


@pytest.mark.parametrize("recipe", ["vlm/self_rewarding", "vlm/cream", "vlm/temporal"])
def test_a_round_is_a_dpo_run_of_several_steps_from_its_own_opening(recipe: str) -> None:
    """In the first step the margin to the policy of the round's opening is 0, in later ones it is not."""
    run, single = learned(recipe, **RUNS), learned(recipe, minibatches=1)
    assert single.mean("objective/margin") == pytest.approx(0.0, abs=1e-5)
    assert run.mean("objective/margin") > 1e-3 and run.mean("objective/accuracy") > 0.5
    assert_apart(run, single)
    assert "anchors/weight" not in run.metrics[0], "no demonstration is replayed"
    again = learned(recipe, rounds=2, **RUNS)
    first = again.metrics[1]["objective/margin"]
    assert first < 3 * run.mean("objective/margin"), "the second round is measured from its own opening"


@pytest.mark.parametrize("recipe", ["vlm/self_rewarding", "vlm/cream", "vlm/temporal"])
def test_beta_holds_the_policy_to_the_rounds_opening(recipe: str) -> None:
    loose, held = (learned(recipe, beta=beta, **RUNS) for beta in (0.1, 5.0))
    assert_apart(loose, held)
    assert loose.said == held.said and held.mean("objective/margin") != loose.mean("objective/margin")


@pytest.mark.parametrize("recipe", ["vlm/self_rewarding", "vlm/temporal"])
def test_the_ranker_is_the_model_itself_unless_it_is_told_to_look(recipe: str) -> None:
    asking, looking = (learned(recipe, ranker=ranker, **RUNS) for ranker in ("asking", "looking"))
    assert_apart(asking, looking)
    assert asking.mean("reward") != looking.mean("reward")


def test_the_judge_is_the_policy_that_opened_the_round() -> None:
    """After a round the same answers are judged by other weights; a second look stays as it was."""
    module = find_recipe("vlm/self_rewarding").load()
    for ranker, same in (("asking", False), ("looking", True)):
        config = module.Config.tiny(seed=3, gate="none", trackers=(), ranker=ranker, lr=3e-3, tasks_per_step=14)
        (stage,) = module.build(config, None).stages
        rollouts = stage.actor.act(stage.curriculum.sample(14), 4, key=(1,))
        score(rollouts, stage.reward)
        before = [rollout.scores["total"] for rollout in rollouts]
        for learner in stage.learners.values():
            learner.update(rollouts)
        score(rollouts, stage.reward)
        assert (before == [rollout.scores["total"] for rollout in rollouts]) == same


def test_the_future_chooses() -> None:
    guided, present = (learned("vlm/temporal", future=future, ranker="looking", **RUNS) for future in (True, False))
    assert_apart(guided, present)
    assert guided.said != present.said and guided.mean("reward") >= present.mean("reward")


# --- CREAM -----------------------------------------------------------------------------------------


def test_consistency_softens_and_lies_where_the_paper_has_it() -> None:
    soft, hard = (learned("vlm/cream", rounds=2, soften=soften, **RUNS) for soften in (True, False))
    assert all(0.55 < row["cream/consistency"] < 0.97 for row in soft.metrics), soft.metrics
    assert soft.metrics[0]["objective/label"] == pytest.approx(soft.metrics[0]["cream/consistency"], abs=1e-5)
    assert hard.mean("objective/label") == 1.0
    assert_apart(soft, hard)
    assert soft.mean("objective/margin") < hard.mean("objective/margin")


@pytest.mark.parametrize("flags", [{"label": "question"}, {"agreement": "extremes"}, {"imitation_steps": 3}])
def test_what_consistency_is_matters(flags: dict[str, Any]) -> None:
    plain, other = learned("vlm/cream", **RUNS), learned("vlm/cream", **RUNS, **flags)
    assert_apart(plain, other)
    if "imitation_steps" in flags:
        assert len(other.metrics) == 2 and "objective/margin" not in other.metrics[0]
    else:
        assert plain.said == other.said and plain.mean("objective/label") != other.mean("objective/label")


# --- self-critique ---------------------------------------------------------------------------------


def test_what_is_made_of_a_second_look_matters() -> None:
    ways: list[dict[str, Any]] = [{"learn": learn} for learn in ("standing", "solver", "outcome", "process")]
    ways.append({"learn": "outcome", "critic": "asking"})
    runs = [learned("vlm/self_critique", **way) for way in ways]
    for row, one in enumerate(runs):
        for other in runs[row + 1 :]:
            assert_apart(one, other)
    assert runs[2].said == runs[4].said and runs[2].mean("reward") != runs[4].mean("reward")


@pytest.mark.parametrize(
    "flags", [{"outcome": 0.0}, {"gamma": 0.0}, {"confidence": 0.0}, {"kappa": 0.0}, {"repair_cost": 1.0}]
)
def test_weights_of_the_steps_matter(flags: dict[str, float]) -> None:
    plain, other = (learned("vlm/self_critique", learn="process", **more) for more in ({}, flags))
    assert_apart(plain, other)
    assert plain.mean("reward") != other.mean("reward")


def test_a_noisy_world_has_a_start_of_its_own_and_refuses_what_has_no_such_pictures(tmp_path: Path) -> None:
    clear, noisy = learned("vlm/self_critique"), learned("vlm/self_critique", noise=70.0)
    assert distance(clear.start, noisy.start) > 0
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "what is p3", "answer": "red_disc"}\n')
    for flags, said in (
        ({"data": str(rows), "noise": 70.0}, "--noise is of the small world's pictures, and --data asks about others"),
        ({"data": str(rows), "learn": "solver"}, "--learn solver is of the small world"),
        ({"model": "smollm2", "learn": "process"}, "--learn process is of the small world"),
    ):
        with pytest.raises(UsageError, match=said):
            learned("vlm/self_critique", **flags)
