"""Every knob of the recipes for models that speak is felt: in the weights, in the choices, or in its own metric.

Two runs differ in the knob alone: they start from the same weights, answer with the same random numbers and are scored
alike. Learning rates are large, so that a few updates reach what clips and references are there for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.errors import UsageError
from autotelic.recipes import all_recipes
from autotelic.trainers.scoring import score
from autotelic.types import Rollout
from autotelic.vlm.small import glimpse_training
from autotelic.vlm.small.glimpse_training import Schooling

TASKS, ANSWERS, VOTES = 4, 4, 24
FELT = 1e-3
"""Of an update's norm: the least by which weights differ."""

_start = ""


@pytest.fixture(scope="module", autouse=True)
def start_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A model that ends its answers and knows little else; what runs learned is kept, as many knobs turn on one run."""
    global _start
    _start = str(tmp_path_factory.mktemp("start"))
    model = glimpse_training.new_model(0).eval()
    items, _ = glimpse_training.demonstrated(28, 0, 0)
    glimpse_training.learn_answers(model, items, Schooling(batch=16), 40)
    model.save_pretrained(_start)
    yield
    learned.cache_clear()


def planted(rollouts: list[Rollout], round_: int) -> None:
    """Scores of the place in a group alone, whatever was said; questions differ in level and in spread."""
    for number, rollout in enumerate(rollouts):
        question, place = divmod(number, ANSWERS)
        rollout.scores["total"] = float((place * 7 + round_) % 4 > question % 3) * (1 + question) / 4


class Said:
    """What a recipe's learner did in some rounds: the change of all weights, each round's metrics, the rollouts."""

    def __init__(self, recipe: str, rounds: int, scored: bool, stage: int, changes: dict[str, Any]) -> None:
        module = all_recipes()[f"vlm/{recipe}"].load()
        fields = {"model": _start, "gate": "none", "lr": 5e-3, "tasks_per_step": TASKS, "group_size": ANSWERS}
        fields |= {"demonstrations": 14, "eval_episodes": 2, "sft_coef": 0.0, "max_new_tokens": 8, "max_steps": 4}
        config = module.Config(**fields | changes)
        self.stages = module.build(config, None).stages
        chosen = self.stages[stage]
        policy = chosen.learners["policy"].policy
        before = [p.detach().clone() for p in policy.parameters()]
        self.metrics: list[dict[str, float]] = []
        self.rollouts: list[Rollout] = []
        for number in range(rounds):
            tasks = chosen.curriculum.sample(chosen.tasks_per_step)
            rollouts = chosen.actor.act(tasks, chosen.group_size, key=(config.seed, number), **chosen.sampling)
            told = score(rollouts, chosen.reward) if scored else {}
            if not scored:
                planted(rollouts, number)
            told |= chosen.learners["policy"].update(rollouts)
            chosen.curriculum.update(rollouts)
            self.metrics.append({name: float(value) for name, value in told.items()})
            self.rollouts += rollouts
        self.moved: Tensor = torch.cat(
            [(p.detach() - old).flatten() for p, old in zip(policy.parameters(), before, strict=True)]
        )

    def most(self, metric: str) -> float:
        return max(told.get(metric, 0.0) for told in self.metrics)

    def first(self) -> list[str]:
        return [f"{r.task.id}: {r.output}" for r in self.rollouts[: TASKS * ANSWERS]]


@cache
def learned(recipe: str, rounds: int, scored: bool, stage: int, changes: tuple[tuple[str, Any], ...]) -> Said:
    return Said(recipe, rounds, scored, stage, dict(changes))


def run(recipe: str, rounds: int = 2, scored: bool = False, stage: int = -1, **changes: Any) -> Said:
    return learned(recipe, rounds, scored, stage, tuple(sorted(changes.items())))


def felt(one: Said, other: Said) -> float:
    """How far two updates of the same answers are apart, of the first one's norm."""
    assert one.first() == other.first(), "they learn from the same answers"
    assert float(one.moved.norm()) > 0
    return float((one.moved - other.moved).norm() / one.moved.norm())


SLOW: dict[str, Any] = {"objective": "dapo", "lr": 2e-3, "epochs": 4}
"""Ratios pass 1.2 before they pass 1.28."""
GRPO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Dr.GRPO": ({}, {"objective": "dr_grpo"}),
    "DAPO": ({}, {"objective": "dapo"}),
    "GSPO": ({}, {"objective": "gspo"}),
    "RLOO": ({}, {"objective": "rloo"}),
    "NFT": ({}, {"objective": "nft"}),
    "CoPG": ({}, {"objective": "copg"}),
    "IPO": ({}, {"objective": "ipo"}),
    "CoPG's beta": ({"objective": "copg"}, {"objective": "copg", "pairwise_beta": 1.0}),
    "IPO's tau": ({"objective": "ipo"}, {"objective": "ipo", "pairwise_beta": 1.0}),
    "clip-higher": (SLOW, {**SLOW, "clip_high": 0.2}),
    "GSPO's clip": ({"objective": "gspo"}, {"objective": "gspo", "clip_low": 1.0, "clip_high": 9.0}),
    "the lower clip": ({}, {"clip_low": 0.02}),
    "more steps": ({}, {"minibatches": 4}),
    "more epochs": ({}, {"epochs": 3}),
    "KL": ({}, {"kl_coef": 0.5}),
    "whose KL": ({"kl_coef": 0.5}, {"kl_coef": 0.5, "reference": "proximal"}),
    "entropy": ({}, {"entropy_coef": 0.1}),
    "floor": ({}, {"std_floor": 0.5}),
    "advantage": ({}, {"advantage": "rloo"}),
    "replay": ({}, {"sft_coef": 0.5}),
    "weight decay": ({}, {"weight_decay": 0.5}),
    "clipping of gradients": ({}, {"max_grad_norm": 0.01, "lr_schedule": "constant"}),
    "truncated answers": ({}, {"mask_truncated": True}),
}


@pytest.mark.parametrize("knob", GRPO)
def test_a_knob_of_grpo_is_felt_in_the_weights(knob: str) -> None:
    without, with_it = (run("grpo", **changes) for changes in GRPO[knob])
    assert felt(without, with_it) > FELT


@pytest.mark.parametrize("objective", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_clips_act_by_default_and_cannot_in_a_single_step(objective: str) -> None:
    assert run("grpo", objective=objective).most("objective/clip_fraction") > 0
    assert run("grpo", objective=objective, minibatches=1).most("objective/clip_fraction") == 0


def test_gspo_is_grpo_in_a_single_step_and_nowhere_else() -> None:
    single = [run("grpo", 1, objective=objective, minibatches=1) for objective in ("grpo", "gspo")]
    assert felt(*single) < 1e-2 * felt(run("grpo"), run("grpo", objective="gspo"))


def test_a_wider_clip_clips_less() -> None:
    narrow, wide = (run("grpo", objective="dapo", clip_high=high) for high in (0.05, 1.0))
    assert narrow.most("objective/clip_fraction") > wide.most("objective/clip_fraction")


def test_overlong_answers_lose_by_the_tokens_beyond() -> None:
    """Of answers of up to 8 tokens."""
    plain, shaped = (run("grpo", 1, scored=True, **changes) for changes in ({}, {"overlong_buffer": 6}))
    assert felt(shaped, plain) > FELT
    lengths = [int(rollout.mask.sum()) for rollout in shaped.rollouts]
    assert min(lengths) < 8 == max(lengths)
    without = [r.scores["total"] for r in plain.rollouts]
    lost = [r.scores["total"] - value for r, value in zip(shaped.rollouts, without, strict=True)]
    assert lost == pytest.approx([-max(n - 2, 0) / 6 for n in lengths])
    half = run("grpo", 1, scored=True, overlong_buffer=6, overlong_penalty=0.5)
    assert half.metrics[0]["reward/overlong"] == pytest.approx(shaped.metrics[0]["reward/overlong"] / 2)
    with pytest.raises(UsageError, match="--overlong-buffer is 1 to the 8 tokens of an answer, not 9"):
        run("grpo", 1, overlong_buffer=9)
    with pytest.raises(UsageError, match="--overlong-buffer adds to --rewards, which this recipe's method fixes"):
        run("ttrl", 1, overlong_buffer=2)


def test_a_bandit_over_types_asks_other_questions() -> None:
    """SEC draws from what it learned of; the uniform one takes every type in turn."""
    even, bandit = (run("grpo", 3, curriculum=name) for name in ("uniform", "sec"))
    assert [r.task.id for r in even.rollouts] != [r.task.id for r in bandit.rollouts]


# --- SCoRe -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("agree", [False, True], ids=["first attempts differ", "first attempts agree"])
def test_alpha_keeps_its_strength(agree: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where first attempts agree: by standard deviations all alphas would be one. (The optimiser divides a lone
    gradient's size away; here the KL to the start stands beside it.)"""
    from autotelic.vlm import credit

    firsts, seconds = [0.0, 0.0, 0.0, 0.0] if agree else [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]

    def told(reward: Any, outputs: Any, columns: Any) -> list[list[float]]:
        return [[firsts[i % 4], seconds[i % 4]][: len(said.turns)] for i, said in enumerate(outputs)]

    monkeypatch.setattr(credit, "turn_scores", told)
    runs = {alpha: Said("score", 3, True, -1, {"bonus": alpha, "kl_coef": 0.1}) for alpha in (0.0, 1.0, 10.0)}
    for one, other in ((0.0, 1.0), (1.0, 10.0), (0.0, 10.0)):
        assert felt(runs[one], runs[other]) > FELT, (one, other)
    sizes = {alpha: max(r.info["abs_advantage"] for r in said.rollouts) for alpha, said in runs.items()}
    if agree:  # r2 + alpha r2, less its mean
        assert sizes[1.0] == pytest.approx(2 * sizes[0.0]) and sizes[10.0] == pytest.approx(11 * sizes[0.0])
    else:
        assert sizes[0.0] < sizes[1.0] < sizes[10.0]


def test_score_holds_the_first_attempt_in_stage_one_and_both_later() -> None:
    assert len(run("score").stages) == 2 and run("score").stages[0].steps == 1
    assert run("score", stage_one=0.5).stages[0].steps == 2
    held, free = (run("score", 3, stage=0, kl_first=weight) for weight in (10.0, 0.0))
    assert felt(free, held) > FELT
    assert felt(run("score", 3), run("score", 3, kl_coef=1.0)) > FELT


def test_what_is_said_between_attempts_is_read() -> None:
    plain, other = run("score", 1), Said("score", 1, False, -1, {"again": "check"})
    assert plain.first()[0] and [str(r.output) for r in plain.rollouts] != [str(r.output) for r in other.rollouts]


# --- RAFT ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"best": 2}),
        ({}, {"select": "threshold"}),
        ({"select": "threshold"}, {"select": "threshold", "threshold": 0.8}),
    ],
)
def test_what_raft_selects_is_felt(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert felt(run("raft", 1, **one), run("raft", 1, **other)) > FELT


# --- rewards without labels ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "without"),
    [
        ("evol_rl", {"novelty": False}),
        ("evol_rl", {"kl_coef": 0.0}),
        ("evol_rl", {"entropy_coef": 0.0}),
        ("evol_rl", {"minibatches": 1}),
        ("evol_rl", {"clip_low": 0.02}),
        ("ttrl", {"minibatches": 1}),
        ("ttrl", {"kl_coef": 0.5}),
    ],
)
def test_a_knob_of_majorities_is_felt_in_the_weights(recipe: str, without: dict[str, Any]) -> None:
    assert felt(run(recipe, scored=True), run(recipe, scored=True, **without)) > FELT


def test_evol_rls_clip_is_wider_above_and_acts() -> None:
    slow: dict[str, Any] = {"lr": 2e-3, "epochs": 4}
    higher, even = (run("evol_rl", **slow, **changes) for changes in ({}, {"clip_high": 0.2}))
    assert felt(higher, even) > FELT and higher.most("objective/clip_fraction") > 0


def test_without_novelty_the_majority_is_paid_one_and_the_others_minus_one() -> None:
    assert {r.scores["total"] for r in run("evol_rl", scored=True, novelty=False).rollouts} == {1.0, -1.0}
    assert {r.scores["total"] for r in run("ttrl", scored=True).rollouts} == {1.0, 0.0}
    with pytest.raises(UsageError, match="--embedding has no effect with --no-novelty"):
        run("evol_rl", novelty=False, embedding="minilm")


def test_more_answers_vote_than_are_learned_from() -> None:
    """The first four of each question are learned from, whose answers are those without the vote."""
    few, many = (run("ttrl", 1, scored=True, votes=votes) for votes in (0, VOTES))
    assert (len(few.rollouts), len(many.rollouts)) == (4 * TASKS, VOTES * TASKS)
    assert few.metrics[0]["rollouts"] == many.metrics[0]["rollouts"] == 4 * TASKS
    by_task = [many.rollouts[VOTES * i + j] for i in range(TASKS) for j in range(4)]
    assert [str(r.output) for r in by_task] == [str(r.output) for r in few.rollouts]
    assert [r.scores["total"] for r in by_task] != [r.scores["total"] for r in few.rollouts], "others voted too"
    assert float((few.moved - many.moved).norm() / few.moved.norm()) > FELT
    with pytest.raises(UsageError, match="--votes 3 are fewer than --group-size 4"):
        run("ttrl", votes=3)


# --- imitation -------------------------------------------------------------------------------------


def test_what_is_imitated_is_felt() -> None:
    shown, labels = (
        Said("sft", 1, True, -1, {"target": t, "tasks_per_step": 1, "group_size": 1, "gate": "none"})
        for t in ("demonstrations", "answers")
    )
    assert [str(r.output) for r in shown.rollouts] != [str(r.output) for r in labels.rollouts]
    assert float((shown.moved - labels.moved).norm() / shown.moved.norm()) > FELT
