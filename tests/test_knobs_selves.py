"""Knobs of recipes that learn from a model's own judgements: from one start, with the same random numbers, each of them
makes other weights, by more than a thousandth of the update, and moves what it is about."""

from __future__ import annotations

import functools
import random
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
from autotelic.trainers.actors import Demonstrations
from autotelic.trainers.scoring import score
from autotelic.types import Rollout
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.small.glimpse_training import corrupted

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
def learned(recipe: str, rounds: int = 1, recorded: bool = True, **flags: Any) -> Learned:
    """Rounds of a recipe as the loop plays them, without a gate, on ``answers`` or on what its actor says."""
    module = find_recipe(recipe).load()
    given = {"tasks_per_step": 28, "group_size": 4, "lr": 3e-4, "seed": 3, "gate": "none", "trackers": ()}
    experiment = module.build(module.Config.tiny(max_steps=rounds, **given | flags), None)
    policy = experiment.stages[0].actor.bare()
    start = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    said, metrics = [], []
    for stage in experiment.stages:
        for _ in range(stage.steps):
            if recorded and not isinstance(stage.actor, Demonstrations):
                rollouts = answers(policy, len(metrics), labels=recipe == "vlm/mstar")
            else:
                tasks, key = stage.curriculum.sample(stage.tasks_per_step), (3, len(metrics))
                rollouts = stage.actor.act(tasks, stage.group_size, key=key, **stage.sampling)
            told = dict(score(rollouts, stage.reward))
            for learner in stage.learners.values():
                told |= learner.update(rollouts)
            said += [str(rollout.output) for rollout in rollouts]
            metrics.append(told)
    return Learned(start, {name: tensor.clone() for name, tensor in policy.state_dict().items()}, said, metrics)


def answers(policy: TokenPolicy, round_: int, labels: bool = False) -> list[Rollout]:
    """Four answers to each of 28 questions as if the policy had given them: one is right, three have a mistake."""
    draw = random.Random(round_)
    drawn = [item for kind in scenes.TYPES for item in scenes.questions(kind, 4, f"recorded {round_}")]
    tasks = scenes.tasks(drawn, f"recorded-{round_}", labels=labels, known=False)
    right = [str(scenes.answer(*item)) for item in drawn]
    said = [[answer, *(corrupted(answer, draw) for _ in range(3))] for answer in right]
    rollouts = policy.encode([task for task in tasks for _ in range(4)], [text for texts in said for text in texts])
    log_probs = policy.evaluate_actions(policy.collate(rollouts)).log_probs
    for rollout, row in zip(rollouts, log_probs, strict=True):
        rollout.log_probs = row[: len(rollout.mask)].detach() * rollout.mask
    return rollouts


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return float(torch.stack([(one[name] - other[name]).square().sum() for name in one]).sum().sqrt())


def assert_apart(one: Learned, other: Learned) -> None:
    update, started, apart = (
        distance(*ends) for ends in ((one.start, one.end), (one.start, other.start), (one.end, other.end))
    )
    assert started == 0 and 0 < 1e-3 * update < apart


# --- self-rewarding --------------------------------------------------------------------------------

RUNS = {"minibatches": 4, "epochs": 2}
DPO = ["vlm/self_rewarding", "vlm/cream", "vlm/temporal"]


def run(recipe: str, **flags: Any) -> Learned:
    """Pairs of several times have to be sampled, the others are of recorded answers."""
    return learned(recipe, recorded=recipe != "vlm/temporal", **flags)


@pytest.mark.parametrize("recipe", DPO)
def test_a_round_is_a_dpo_run_of_several_steps_from_its_own_opening(recipe: str) -> None:
    """In the first step the margin to the policy of the round's opening is 0, in later ones it is not."""
    several, single = run(recipe, **RUNS), run(recipe, minibatches=1)
    assert single.mean("objective/margin") == pytest.approx(0.0, abs=1e-5)
    assert abs(several.mean("objective/margin")) > 1e-3
    assert_apart(several, single)
    assert "anchors/weight" not in several.metrics[0], "no demonstration is replayed"
    second = run(recipe, rounds=2, minibatches=1).metrics[1]
    assert second["objective/margin"] == pytest.approx(0.0, abs=1e-5), "the next round has an opening of its own"


@pytest.mark.parametrize("recipe", DPO)
def test_beta_holds_the_policy_to_the_rounds_opening(recipe: str) -> None:
    loose, held = (run(recipe, beta=beta, **RUNS) for beta in (0.1, 2.0))
    assert_apart(loose, held)
    assert abs(held.mean("objective/margin")) > abs(loose.mean("objective/margin")) > 0


@pytest.mark.parametrize("recipe", ["vlm/self_rewarding", "vlm/temporal"])
def test_the_ranker_is_the_model_itself_unless_it_is_told_to_look(recipe: str) -> None:
    asking, looking = (run(recipe, ranker=ranker, **RUNS) for ranker in ("asking", "looking"))
    assert_apart(asking, looking)
    assert asking.mean("reward") != looking.mean("reward")


@pytest.mark.parametrize(("ranker", "same"), [("asking", False), ("looking", True)])
def test_the_judge_is_the_policy_that_opened_the_round(ranker: str, same: bool) -> None:
    """After a round the same answers are judged by other weights; a second look stays as it was."""
    module = find_recipe("vlm/self_rewarding").load()
    config = module.Config.tiny(seed=3, gate="none", trackers=(), ranker=ranker, lr=3e-4)
    (stage,) = module.build(config, None).stages
    rollouts = answers(stage.actor.bare(), 0)
    score(rollouts, stage.reward)
    before = [rollout.scores["total"] for rollout in rollouts]
    for learner in stage.learners.values():
        learner.update(rollouts)
    score(rollouts, stage.reward)
    assert (before == [rollout.scores["total"] for rollout in rollouts]) == same


def test_the_future_chooses() -> None:
    guided, present = (run("vlm/temporal", future=future, **RUNS) for future in (True, False))
    assert_apart(guided, present)
    assert guided.said != present.said and guided.mean("reward") > present.mean("reward")


# --- CREAM -----------------------------------------------------------------------------------------


def test_consistency_softens_and_lies_where_the_paper_has_it() -> None:
    """At a temperature at which this hardly taught model gives many equal answers, whose ordinal ranks agree.

    So the range says that ties count as in the released code; at temperatures of .3 and .5 it is below a half.
    """
    how = {"rounds": 2, "recorded": False, "temperature": 0.1, **RUNS}
    soft, hard = (learned("vlm/cream", soften=soften, **how) for soften in (True, False))
    assert all(0.55 < row["cream/consistency"] < 0.97 for row in soft.metrics), soft.metrics
    assert soft.metrics[0]["objective/label"] == pytest.approx(soft.metrics[0]["cream/consistency"], abs=1e-5)
    assert hard.mean("objective/label") == 1.0
    assert_apart(soft, hard)
    assert soft.metrics[0]["objective/margin"] < hard.metrics[0]["objective/margin"]


@pytest.mark.parametrize("flags", [{"label": "question"}, {"agreement": "extremes"}, {"imitation_steps": 3}])
def test_what_consistency_is_matters(flags: dict[str, Any]) -> None:
    plain, other = learned("vlm/cream", **RUNS), learned("vlm/cream", **RUNS, **flags)
    assert_apart(plain, other)
    if "imitation_steps" in flags:
        assert len(other.metrics) == 2 and "objective/margin" not in other.metrics[0]
    else:
        assert plain.mean("objective/label") != other.mean("objective/label")


# --- self-critique ---------------------------------------------------------------------------------


def test_what_is_made_of_a_second_look_matters() -> None:
    ways = [{"learn": learn} for learn in ("standing", "solver", "outcome", "process")]
    ways.append({"learn": "outcome", "critic": "asking"})
    runs = [learned("vlm/self_critique", recorded=False, **way) for way in ways]
    for row, one in enumerate(runs):
        for other in runs[row + 1 :]:
            assert_apart(one, other)
    assert len({one.mean("reward") for one in runs[2:]}) == 3
    assert "anchors/weight" not in runs[0].metrics[0], "no demonstration is replayed"


@pytest.mark.parametrize(
    "flags", [{"outcome": 0.0}, {"gamma": 0.0}, {"confidence": 0.0}, {"kappa": 0.0}, {"repair_cost": 1.0}]
)
def test_weights_of_the_steps_matter(flags: dict[str, float]) -> None:
    plain, other = (learned("vlm/self_critique", learn="process", minibatches=4, **more) for more in ({}, flags))
    assert_apart(plain, other)
    assert plain.mean("reward") != other.mean("reward")


def test_the_solver_answers_by_what_is_read_and_the_policy_learns_to() -> None:
    module = find_recipe("vlm/self_critique").load()
    config = module.Config.tiny(seed=3, gate="none", trackers=(), learn="solver", tasks_per_step=28, noise=70.0)
    (stage,) = module.build(config, None).stages
    tasks = stage.curriculum.sample(28)
    rollouts = stage.actor.act(tasks, 4, key=(1,))
    seen = dict(zip((task.id for task in tasks), stage.actor.eyes([task.images[0] for task in tasks]), strict=True))
    assert 0 < len(rollouts) <= 28
    for rollout in rollouts:
        question = scenes.Question.parse(str(rollout.task.prompt))
        assert str(rollout.output) == str(scenes.answer(question, seen[rollout.task.id]))


def test_a_noisy_world_has_a_start_of_its_own_and_refuses_what_has_no_such_pictures(tmp_path: Path) -> None:
    clear, noisy = (learned("vlm/self_critique", recorded=False, noise=noise) for noise in (12.0, 70.0))
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


# --- M-STaR and ViPER ------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{"process": False}, {"keep": 1}])
def test_which_right_answers_are_imitated_matters(flags: dict[str, Any]) -> None:
    plain, other = learned("vlm/mstar", sft_coef=0.0), learned("vlm/mstar", sft_coef=0.0, **flags)
    assert_apart(plain, other)
    if "process" in flags:
        assert plain.mean("reward") < other.mean("reward"), "unsound steps cost something"
    else:
        assert plain.mean("objective/loss") != other.mean("objective/loss")


@pytest.mark.parametrize("flags", [{"form": 1.0}, {"stages": "captions"}, {"clip_low": 0.01, "clip_high": 0.01}])
def test_what_pays_a_caption_and_how_far_it_moves_matters(flags: dict[str, Any]) -> None:
    how: dict[str, Any] = {"rounds": 2, "recorded": False, "lr": 3e-3, "minibatches": 2, "epochs": 2}
    plain, other = learned("vlm/viper", **how), learned("vlm/viper", **how, **flags)
    assert_apart(plain, other)
    assert plain.mean("objective/clip_fraction") > 0 and "anchors/weight" not in plain.metrics[0]
    name = "objective/clip_fraction" if "clip_low" in flags else "reward"
    assert plain.mean(name) != other.mean(name)
