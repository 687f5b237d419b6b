"""Comparisons: a plan before the runs, one start and one budget for all, contrasts whose words follow the interval."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotelic import sweep
from autotelic.cli import main as autotelic
from autotelic.comparing import arms as arms_module
from autotelic.comparing import study
from autotelic.comparing.arms import read_arms, read_flags
from autotelic.comparing.budget import Budget, Cost
from autotelic.comparing.command import main, pair_of, seeds_of
from autotelic.comparing.contrasts import by_category, contrasts, curve, front, fronts, word_of
from autotelic.comparing.study import Comparison
from autotelic.errors import UsageError
from autotelic.recipes import find_recipe
from autotelic.statistics import holm, holm_levels, mean_interval
from autotelic.sweep import Results, Run
from autotelic.trainers.runs.run_folder import RunFolder

from . import toy_recipe
from .test_loop import same
from .test_sweep import state

ROOT = Path(__file__).parents[1]
TOY = "toy/spelling"
ARMS = {"learns": {"recipe": TOY}, "still": {"recipe": TOY, "learn": False}}


def toys(name: str) -> Any:
    return toy_recipe.TOY if name == TOY else find_recipe(name)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy is a recipe; processes find its module."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sweep, "find_recipe", toys)
    monkeypatch.setattr(arms_module, "find_recipe", toys)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("comparison")
    made = Comparison(ARMS, (3, 4, 5, 6, 7), Budget("steps", 8), folder, (("learns", "still"),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "find_recipe", toys)
        return made, made.run()


# --- what it shows ------------------------------------------------------------------------------


def test_learning_is_shown_over_standing_still(done: tuple[Comparison, dict[str, Any]]) -> None:
    _, document = done
    (row,) = document["contrasts"]
    assert (row["better"], row["than"], row["word"]) == ("learns", "still", "shown") and row["corrected"][0] > 0
    runs = document["arms"]["learns"]["runs"]
    assert row["seeds"] == pytest.approx(
        [a.measures("after")["mean"] - b.measures("after")["mean"] for a, b in paired(document)]
    )
    assert len(runs) == 5 and document["fronts"]["divergence"]["front"] == ["still", "learns"]
    assert [point["at"] for point in document["curves"]["reward"]["learns"]] == [*range(1, 9)]
    assert [point["at"] for point in document["curves"]["outcome"]["learns"]] == [0, 8]


def paired(document: dict[str, Any]) -> list[tuple[Run, Run]]:
    results = Results.from_json(document)
    return list(zip(results.runs["learns"], results.runs["still"], strict=True))


def test_divergence_is_zero_where_nothing_is_learned(done: tuple[Comparison, dict[str, Any]]) -> None:
    for learns, still in paired(done[1]):
        assert still.divergence == 0 and learns.divergence is not None and learns.divergence > 0.1


def test_the_page_is_one_file_that_says_the_same(done: tuple[Comparison, dict[str, Any]]) -> None:
    made, _ = done
    page = made.path.with_suffix(".html").read_text()
    assert "learns is better than still" in page and "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == 5, "differences, two curves, two fronts"
    assert "8 steps" in page and "Written down before any seed ran" in page


def test_arms_share_the_start_of_their_seed(done: tuple[Comparison, dict[str, Any]]) -> None:
    for learns, still in paired(done[1]):
        assert learns.before == still.before and still.after == still.before != learns.after


# --- the plan -----------------------------------------------------------------------------------


def test_the_plan_stands_before_anything_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> Any:
        raise KeyboardInterrupt(json.loads((tmp_path / "comparison.json").read_text())["plan"]["primary"])

    monkeypatch.setattr(sweep.Sweep, "run", read)
    with pytest.raises(KeyboardInterrupt) as stopped:
        Comparison(ARMS, (0,), Budget("steps", 1), tmp_path).run()
    assert stopped.value.args == ([["still", "learns"]],), "every other arm against the first"


def test_a_comparison_goes_on_where_it_stood(done: tuple[Comparison, dict[str, Any]], tmp_path: Path) -> None:
    made, document = done
    copy = replace(made, folder=tmp_path / "copy")
    shutil.copytree(made.folder, copy.folder)
    shutil.rmtree(copy.folder / "learns-4")
    again = copy.run()
    assert again["contrasts"] == document["contrasts"] and again["plan"] == document["plan"]
    assert same(state(copy.folder / "learns-4"), state(made.folder / "learns-4"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"primary": (("still", "learns"),)}, "primary"),
        ({"seeds": (3, 4)}, "seeds"),
        ({"budget": Budget("steps", 5)}, "budget"),
        ({"measures": ("true",)}, "measures"),
        ({"arms": ARMS | {"more": {"recipe": TOY, "lr": 0.1}}}, "arms"),
    ],
)
def test_a_plan_is_not_changed_afterwards(
    change: dict[str, Any], what: str, done: tuple[Comparison, dict[str, Any]]
) -> None:
    with pytest.raises(UsageError, match=f"with other {what}: choose another folder"):
        replace(done[0], **change).run()


def test_processes_show_the_same(done: tuple[Comparison, dict[str, Any]], tmp_path: Path) -> None:
    made, document = done
    several = replace(made, folder=tmp_path / "several", seeds=(3,), jobs=2).run()
    for arm in ARMS:
        one, other = (each["arms"][arm]["runs"][0] for each in (several, document))
        assert {**one, "cpu_seconds": 0} == {**other, "cpu_seconds": 0}


# --- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("90", Budget("seconds", 90)),
        ("1.5s", Budget("seconds", 1.5)),
        ("4000queries", Budget("queries", 4000)),
        ("16 steps", Budget("steps", 16)),
        ("own", Budget("own")),
    ],
)
def test_a_budget_is_read(text: str, budget: Budget) -> None:
    assert Budget.of(text) == budget


@pytest.mark.parametrize("text", ["", "0", "many", "-3s", "5 minutes"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no budget"):
        Budget.of(text)


def test_seconds_pay_for_critics_rounds_and_looks() -> None:
    cost = Cost("cpu", setup=10, round=2, look=3, gate_every=4, queries=8)
    assert cost.of(4) == 10 + 8 + 3 and cost.of(5) == 10 + 10 + 6, "the last round is looked at"
    for budget, rounds in ((21, 4), (25.9, 4), (26, 5), (15, 1)):
        assert cost.rounds(Budget("seconds", budget), "a") == rounds and cost.of(rounds) <= budget < cost.of(rounds + 1)
    with pytest.raises(UsageError, match=r'14\.9 seconds is too small for a round of "a", which takes 15 seconds, 10'):
        cost.rounds(Budget("seconds", 14.9), "a")


def test_queries_are_rollouts_that_are_judged() -> None:
    cost = Cost("cpu", 0, 1, 0, 1, queries=32)
    assert cost.rounds(Budget("queries", 100), "a") == 3 and cost.rounds(Budget("queries", 96), "a") == 3
    with pytest.raises(UsageError, match="too small for a round"):
        cost.rounds(Budget("queries", 31), "a")
    with pytest.raises(UsageError, match="no rollout judged"):
        replace(cost, queries=0.0).rounds(Budget("queries", 100), "a")


def test_a_budget_of_queries_becomes_rounds_that_are_frozen(tmp_path: Path) -> None:
    made = Comparison(ARMS, (0,), Budget("queries", 70), tmp_path)
    plan = made.plan()
    cost = plan["arms"]["learns"]["cost"]
    assert plan["arms"]["learns"]["rounds"] == 2 and cost["queries"] == 4 * 8 and cost["round"] > 0
    assert {path.name for path in (tmp_path / "calibration").iterdir()} == {"start-0", "learns-9001", "still-9001"}
    assert not RunFolder.open(tmp_path / "calibration" / "start-0").metrics(), "the start alone is made"
    assert not (tmp_path / "learns-0").exists() and made.plan() == plan
    document = made.run()
    assert document["plan"] == plan and document["arms"]["learns"]["runs"][0]["rollouts"] == 64


def test_an_arm_may_stop_before_its_budget_is_spent(tmp_path: Path) -> None:
    """Such as imitation, whose number of steps was chosen on other seeds."""
    usual = toy_recipe.Config().max_steps
    arms = {"all": {"recipe": TOY}, "fewer": {"recipe": TOY, "max_steps": usual}}
    plan = Comparison(arms, [0], Budget.of(f"{usual + 1}steps"), tmp_path / "c").plan()
    assert {arm: entry["rounds"] for arm, entry in plan["arms"].items()} == {"all": usual + 1, "fewer": usual}
    with pytest.raises(UsageError, match="are the same run"):
        Comparison(arms, [0], Budget.of("own"), tmp_path / "d").plan()


def test_own_rounds_leave_each_arm_its_flags(tmp_path: Path) -> None:
    arms = {"short": {"recipe": TOY, "max_steps": 1}, "long": {"recipe": TOY, "max_steps": 2}}
    document = Comparison(arms, (0,), Budget("own"), tmp_path).run()
    assert [document["arms"][arm]["runs"][0]["rollouts"] for arm in arms] == [32, 64]


# --- statistics ---------------------------------------------------------------------------------


def a_run(arm: str, seed: int, before: float, after: float, other: float = 0.0, **more: Any) -> Run:
    """Outcomes that are plain numbers, one per category."""
    sides = ({"outcomes": {"a": {"success": [x]}, "b": {"success": [other]}}} for x in (before, after))
    return Run(arm, seed, *sides, cpu_seconds=1.0, rollouts=8, labels="none", **more)


def results_of(**after: list[float]) -> Results:
    return Results({arm: [a_run(arm, s, 1.0, x) for s, x in enumerate(values)] for arm, values in after.items()})


def test_differences_by_hand() -> None:
    # 3, 1, 2 above the base: mean 2, standard deviation 1, standard error 1/sqrt(3), t = 2 sqrt(3) with 2 degrees
    (row,) = contrasts(results_of(base=[1.0, 2.0, 4.0], arm=[4.0, 3.0, 6.0]), [("arm", "base")], ["a"])
    assert row.seeds == (3.0, 1.0, 2.0) and row.mean == 2 and row.of == "after"
    half = 4.302653 / 3**0.5
    assert row.interval == row.corrected == pytest.approx((2 - half, 2 + half), abs=1e-5)
    t = 2 * 3**0.5
    assert row.p == row.holm == pytest.approx(1 - t / (t**2 + 2) ** 0.5)  # two degrees in closed form
    assert row.word == "undecided"


def test_seeds_are_paired_and_not_pooled() -> None:
    rows = contrasts(results_of(base=[0.0, 10.0, 20.0], arm=[1.0, 11.1, 20.9]), [("arm", "base")], ["a"])
    assert rows[0].p is not None and rows[0].p < 0.01, "the seeds' own spread was not taken out"
    assert rows[0].word == "shown"


def test_a_claim_can_come_out_reversed() -> None:
    (row,) = contrasts(results_of(base=[0.0, 10.0, 20.0], arm=[1.0, 11.1, 20.9]), [("base", "arm")], ["a"])
    assert row.word == "reversed" and row.corrected is not None and row.corrected[1] < 0


def test_holm_counts_every_contrast_of_the_family() -> None:
    both = results_of(base=[1.0, 2.0, 4.0], arm=[4.0, 3.0, 6.0], other=[1.0, 2.5, 4.1])
    alone = contrasts(both, [("arm", "base")], ["a"])[0].holm
    assert alone is not None
    pairs = [("arm", "base"), ("other", "base")]
    assert contrasts(both, pairs, ["a"])[0].holm == pytest.approx(2 * alone)
    assert contrasts(both, pairs, ["a", "mean"])[0].holm == pytest.approx(4 * alone)
    assert by_category(both, [("arm", "base")])[0].holm == pytest.approx(2 * alone), "a and b are two tests"


@pytest.mark.parametrize("seed", range(20))
def test_the_corrected_interval_says_what_holm_says(seed: int) -> None:
    import random

    draw = random.Random(seed)
    arms = {f"arm{i}": [draw.gauss(draw.choice([0, 0.4, 1.5]), 0.5) for _ in range(5)] for i in range(6)}
    rows = contrasts(results_of(base=[0.0] * 5, **arms), [(arm, "base") for arm in arms], ["a"])
    for row in rows:
        assert row.corrected is not None and row.holm is not None and row.interval is not None
        assert (row.holm <= 0.05) == (row.word != "undecided"), row
        assert row.corrected[0] <= row.interval[0] + 1e-12 and row.interval[1] <= row.corrected[1] + 1e-12


def test_levels_step_down_until_the_first_that_stands() -> None:
    values = [0.001, 0.03, 0.02, 0.9]  # tested at .05/4, then .02 at .05/3 fails, and all behind it share that level
    assert holm_levels(values) == pytest.approx([1 - 0.05 / 4, 1 - 0.05 / 3, 1 - 0.05 / 3, 1 - 0.05 / 3])
    assert [p <= 0.05 for p in holm(values)] == [True, False, False, False]
    assert holm_levels([0.01, 0.02]) == pytest.approx([0.975, 0.95])


def test_a_word_follows_the_interval() -> None:
    words = {(0.1, 2.0): "shown", (-2.0, -0.1): "reversed", (-0.1, 0.1): "undecided", (0.0, 1.0): "undecided"}
    assert {bounds: word_of(bounds) for bounds in words} == words and word_of(None) == "undecided"


def test_arms_with_other_starts_are_compared_in_what_they_changed() -> None:
    runs = {"base": [a_run("base", s, 1.0, 2.0) for s in (0, 1)], "arm": [a_run("arm", s, 3.0, 3.5) for s in (0, 1)]}
    (row,) = contrasts(Results(runs), [("arm", "base")], ["a"])
    assert row.of == "change" and row.seeds == (-0.5, -0.5)
    (row,) = contrasts(Results(runs), [("arm", "base")], ["a"], common=True)
    assert row.of == "after" and row.seeds == (1.5, 1.5), "equal weights that act in two ways"


def test_one_seed_has_a_difference_and_no_word() -> None:
    (row,) = contrasts(results_of(base=[1.0], arm=[2.0]), [("arm", "base")], ["a"])
    assert (row.mean, row.interval, row.corrected, row.p, row.word) == (1.0, None, None, None, "undecided")


def test_only_seeds_that_both_have_are_compared() -> None:
    results = results_of(base=[1.0, 2.0, 3.0], arm=[2.0, 4.0])
    assert contrasts(results, [("arm", "base")], ["a"])[0].seeds == (1.0, 2.0)
    lone = Results({"base": [a_run("base", 7, 0, 0)], "arm": [a_run("arm", 8, 0, 0)]})
    with pytest.raises(UsageError, match="no seed in common"):
        contrasts(lone, [("arm", "base")])


def test_a_curve_is_a_mean_over_seeds_with_their_interval() -> None:
    rows = curve([[(1, 0.0), (2, 1.0)], [(1, 2.0), (2, float("nan"))]])
    low, high = mean_interval([0.0, 2.0])
    assert rows == [{"at": 1, "mean": 1.0, "low": round(low, 6), "high": round(high, 6)}], "a seed lacks the second"


def test_the_front_holds_whom_nobody_beats() -> None:
    points = {"cheap": (1.0, 0.2), "beaten": (3.0, 0.4), "good": (2.0, 0.5), "best": (4.0, 0.9), "twin": (2.0, 0.5)}
    assert front(points) == ["cheap", "good", "twin", "best"]
    results = Results({"a": [a_run("a", 0, 0, 1, divergence=2.0)], "b": [a_run("b", 0, 0, 1)]})
    found = fronts(results, "a", {"divergence": lambda run: run.divergence})["divergence"]
    assert found == {"points": {"a": (2.0, 1.0)}, "front": ["a"], "unknown": ["b"]}


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([TOY, TOY], 'two arms are called "spelling"'),
        ([TOY, f"twin={TOY}"], '"spelling" and "twin" are the same run'),
        ([TOY, f"{TOY}:--lr 0.3"], '"spelling" and "spelling --lr 0.3" are the same run'),
        ([TOY, f"{TOY}:--spread 2"], "no common start: --spread is 1.0 in the one and 2.0 in the other"),
        ([TOY, f"{TOY}:--max-steps 4"], "has --max-steps 4, of which 3 steps pay for 3"),
        ([TOY, f"{TOY}:--rte 2"], 'unknown option of autotelic run toy/spelling "--rte"'),
        ([TOY, f"{TOY}:lr 2"], '"lr" in the flags of an arm is no flag'),
        ([TOY], "needs two arms"),
        (["vla/evolve_vla", "vlm/grpo"], '"evolve_vla" is of vla and "grpo" of vlm'),
        (["vla/evolve_vla", "vla/raft:--bc-steps 3"], "no common start: --bc-steps is 0 in the one and 3 in the other"),
        (
            ["vlm/grpo", "vlm/sft:--demonstrations 10"],
            "--demonstrations is 150 in the one and 10 in the other",
        ),
        (
            ["diffusion/ddpo", "diffusion/prdp:--lora-rank 4"],
            "--lora-rank is 8 in the one and 4 in the other",
        ),
        (["vlm/grpo", "vlm/grop"], "did you mean"),
    ],
)
def test_arms_that_cannot_be_compared_are_told_in_a_line(arms: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as told:
        main([*arms, "--seeds", "2", "--budget", "3steps", "--output-dir", str(tmp_path / "c")])
    assert message in str(told.value) and "\n" not in str(told.value) and not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "2"], "--budget"),
        (["--seeds", "2", "--budget", "0.5steps"], "too small for a round"),
        (["--seeds", "2", "--budget", "8queries"], 'too small for a round of "spelling", which has 32 rollouts judged'),
        (["--seeds", "0", "--budget", "1steps"], "are no seeds"),
        (["--seeds", "1", "1", "--budget", "1steps"], "are no seeds"),
        (["--seeds", "2", "--budget", "1steps", "--primary", "spelling"], "is not A>B"),
        (["--seeds", "2", "--budget", "1steps", "--primary", "spelling>stll"], "still"),
        (["--seeds", "2", "--budget", "1steps", "--primary", "still>still"], "cannot be shown"),
        (["--seeds", "2", "--budget", "1steps", "--primary", "still>spelling", "spelling>still"], "cannot be shown"),
    ],
)
def test_bad_words_end_in_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as told:
        main([TOY, f"still={TOY}:--no-learn", *words, "--output-dir", str(tmp_path / "c")])
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_measure_that_is_none_is_told_after_the_first_seed(tmp_path: Path) -> None:
    wrong = Comparison(ARMS, (0, 1), Budget("steps", 1), tmp_path, measures=("mean", "tru"))
    with pytest.raises(UsageError, match='unknown measure "tru": did you mean true'):
        wrong.run()
    assert (tmp_path / "learns-0").exists() and not (tmp_path / "learns-1").exists()


def test_a_knob_without_effect_is_told(tmp_path: Path) -> None:
    arms = {"a": {"recipe": TOY, "lr": 0.2, "learn": False}, "b": {"recipe": TOY, "lr": 0.1, "learn": False}}
    document = Comparison(arms | {"c": {"recipe": TOY}}, (0, 1), Budget("steps", 2), tmp_path).run()
    assert document["notes"] == ['"a" and "b" end with equal weights: what tells them apart has no effect here']


def test_what_a_reader_has_to_know_is_noted() -> None:
    runs = {"a": [a_run("a", 0, 0, 1)], "b": [replace(a_run("b", 0, 1, 1), labels="14", diverged="steps")]}
    told = study.notes(Results(runs))
    said = ("1 of 1 runs diverged", "b and a do not begin", "label accounts differ: a: none; b: 14")
    assert len(told) == 3 and all(words in line for words, line in zip(said, told, strict=True))


# --- the command --------------------------------------------------------------------------------


def test_arms_are_read() -> None:
    arms = read_arms([TOY, f"{TOY}:--lr 0.1 --words true lie", f"still={TOY}:--no-learn --lr=2"], "--lr 0.5 --spread 3")
    assert arms == {
        "spelling": {"recipe": TOY, "lr": "0.5", "spread": "3"},
        "spelling --lr 0.1 --words true lie": {"recipe": TOY, "lr": "0.1", "spread": "3", "words": ("true", "lie")},
        "still": {"recipe": TOY, "lr": "2", "spread": "3", "no_learn": True},
    }
    assert read_flags("--name 'two words' --clip None") == {"name": "two words", "clip": "None"}
    assert seeds_of([3]) == (0, 1, 2) and seeds_of([3, 7]) == (3, 7) and pair_of("a > b c") == ("a", "b c")


def test_the_command_compares_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", TOY, f"still={TOY}:--no-learn", "--seeds", "2", "--budget", "2steps", "--set", "--lr 0.2"]
    words += ["--primary", "spelling>still", "--debug", "--output-dir", str(tmp_path / "c")]
    assert autotelic([*words, "--json", str(tmp_path / "out.json")]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert document == json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert document["plan"]["primary"] == [["spelling", "still"]] and list(document["arms"]) == ["spelling", "still"]
    config = RunFolder.open(tmp_path / "c" / "still-1").config
    assert (config["lr"], config["learn"], config["max_steps"], config["seed"]) == (0.2, False, 2, 1)
    said = capsys.readouterr().out
    assert "spelling over still, mean: +" in said and str(tmp_path / "c" / "comparison.html") in said
    stamp = (tmp_path / "c" / "still-1" / "report.html").stat().st_mtime_ns
    assert autotelic(words) == 0 and (tmp_path / "c" / "still-1" / "report.html").stat().st_mtime_ns == stamp
