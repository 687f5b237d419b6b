"""Recipes for models that speak from the command line, on a small model of few lessons: presets, trust, bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from autotelic.cli import main
from autotelic.envs.toys import arithmetic, scenes
from autotelic.errors import UsageError
from autotelic.options import parse, run_options
from autotelic.recipes import all_recipes, config_from_json, recipe_of
from autotelic.testing import vlms as tiny
from autotelic.trainers import scoring
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.types import Task
from autotelic.vlm import questions
from autotelic.vlm.evaluation import evaluate
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.recipes import grpo, mstar, self_critique, sft
from autotelic.vlm.setting import LanguageConfig, start
from autotelic.vlm.small import glimpse_training
from autotelic.vlm.small.glimpse_backbone import GlimpseRenderer
from autotelic.vlm.small.glimpse_training import Item, Schooling

from .small_speaking import asked, teach_quickly
from .test_loop import assert_same_run

FREE = ("--gate-labels", "0")
LABEL_FREE: dict[str, tuple[str, ...]] = {
    "vlm/evol_rl": FREE,
    "vlm/ttrl": FREE,
    "vlm/comas": (),
    "vlm/self_critique": (),
    "vlm/self_critique --learn solver": ("--learn", "solver", "--noise", "70"),
    "vlm/self_critique --learn outcome": ("--learn", "outcome"),
    "vlm/self_critique --learn process": ("--learn", "process"),
    "vlm/self_critique --critic asking": ("--learn", "outcome", "--critic", "asking"),
    "vlm/self_rewarding": (),
    "vlm/self_rewarding --ranker looking": ("--ranker", "looking"),
    "vlm/cream": ("--agreement", "extremes"),
    "vlm/temporal": (),
    "vlm/viper": (),
    "vlm/sft": FREE,
}
LABELLED: dict[str, tuple[str, ...]] = {
    "vlm/grpo": ("--samples", "3", "--sampled-questions", "1"),
    "vlm/raft": (),
    "vlm/mstar": ("--samples", "3", "--sampled-questions", "1"),
    "vlm/score": (),
    "vlm/sft --target answers": ("--target", "answers", "--samples", "3", "--sampled-questions", "1"),
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, in which the default model is of few lessons."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        teach_quickly(patch, folder)
        patch.setattr(scenes, "questions", lru_cache(maxsize=None)(scenes.questions))  # the same for every run
        yield folder


def run(recipe: str, path: Path, *options: str) -> int:
    return main(["run", recipe, "--debug", "--output-dir", str(path), *options])


def assert_complete(path: Path, kinds: Sequence[str] = scenes.TYPES) -> RunFolder:
    folder = RunFolder.open(path)
    gate = folder.read("gate")
    assert [row["iteration"] for row in folder.metrics()] == [1, 2]
    assert len(gate) == 2 and {row["decision"] for row in gate} <= {"keep", "wait", "repair"}
    for evaluation in folder.evaluations().values():
        assert evaluation["unit"] == "accuracy" and set(evaluation["outcomes"]) == set(kinds)
        for kind in kinds:
            assert len(evaluation["outcomes"][kind]["success"]) == 2
            assert {"blind", "truncated"} <= evaluation["figures"][kind].keys()
    assert "<html" in (path / "report.html").read_text()
    answers = json.loads((path / "samples" / "answers" / "answers.json").read_text())
    assert len(answers) == 2 and {"question", "right", "before", "after"} <= answers[0].keys()
    assert any((path / "policy").glob("*.safetensors"))
    return folder


# --- whole runs ------------------------------------------------------------------------------------


def test_every_recipe_is_run_here() -> None:
    names = {name for name in all_recipes() if name.startswith("vlm/")}
    elsewhere = {"vlm/arithmetic", "vlm/tt_si"}  # tests/test_vlm_text.py, tests/test_tt_si.py
    assert names == elsewhere | {*(name.partition(" ")[0] for name in (*LABEL_FREE, *LABELLED))}


@pytest.mark.parametrize("name", LABELLED)
def test_debug_presets_run_two_iterations(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name.partition(" ")[0], tmp_path / "run", *LABELLED[name]) == 0
    folder = assert_complete(tmp_path / "run")
    assert "before" in capsys.readouterr().out
    for page in ("README.md", "report.html"):
        assert "gate_labels: 14" in (tmp_path / "run" / page).read_text()
    figures = folder.evaluations()["after"]["figures"]["hop1"]
    assert ("mean@3" in figures and "pass@3" in figures) == ("--samples" in LABELLED[name])
    assert ("policy alone" in figures) == (name == "vlm/score"), "a conversation is more than its policy"


def test_a_reward_that_knows_nothing_reads_no_answer_and_makes_the_same_steps(tmp_path: Path) -> None:
    assert run("vlm/grpo", tmp_path / "run", "--rewards", "random") == 0
    for row in assert_complete(tmp_path / "run").metrics():
        assert 0.3 < row["reward"] < 0.7 and row["objective/grad_norm"] > 0 and row["learned"] > 0


@pytest.mark.parametrize("name", LABEL_FREE)
def test_label_free_recipes_hand_no_answer_to_policy_or_reward(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation alone may: what it asks is called held-out."""
    answered: list[Task] = []
    judged: list[dict[str, Any]] = []
    prompts, columns = GlimpseRenderer.prompts, scoring.columns

    def asking(self: GlimpseRenderer, tasks: Sequence[Task]) -> Any:
        answered.extend(tasks)
        return prompts(self, tasks)

    def judging(rollouts: Any) -> dict[str, Any]:
        table = columns(rollouts)
        judged.append(table)
        return table

    monkeypatch.setattr(GlimpseRenderer, "prompts", asking)
    monkeypatch.setattr(scoring, "columns", judging)
    assert run(name.partition(" ")[0], tmp_path / "run", *LABEL_FREE[name]) == 0
    assert_complete(tmp_path / "run")
    for page in ("README.md", "report.html"):
        assert "gate_labels: none" in (tmp_path / "run" / page).read_text()
    trained = [task for task in answered if not task.id.startswith("held-out/")]
    tables = [table for table in judged if not table["tasks"][0].id.startswith("held-out/")]
    assert trained and tables and len(tables) < len(judged)
    for task in [*trained, *(task for table in tables for task in table["tasks"])]:
        assert task.reference is None and not {"scene", "trace"} & set(task.extra), task.id
    for table in tables:
        assert set(table["references"]) == {None} and not {"scene", "trace"} & set(table)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--objective", "gspo"), ["clip_low, clip_high, level of the objective has no effect"]),
        (("--objective", "gspo", "--minibatches", "2"), []),
        (("--objective", "gspo", "--epochs", "2"), []),
        (("--clip-high", "0.28"), ["clip_high of the objective has no effect"]),
        (("--kl-coef", "0.1", "--reference", "proximal"), ["reference of the objective has no effect"]),
        ((), []),
    ],
)
def test_what_acts_through_ratios_is_told_to_be_idle_in_a_single_step(
    options: tuple[str, ...], told: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = parse(run_options(grpo.Config.tiny()), options, "run vlm/grpo").config
    words = replace(words, minibatches=words.minibatches or 1)
    grpo.build(words, RunFolder.create(tmp_path / "run", recipe="vlm/grpo", config={}, command=""))
    found = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert len(found) == len(told) and all(part in line for part, line in zip(told, found, strict=True))


FRAGILE = """
import os

class Wordy:
    calls = 0

    def __call__(self, completions, **_):
        self.calls += 1
        if self.calls >= int(os.environ.get("BREAKS_AT", 10**6)):
            raise RuntimeError("the judge is gone")
        return [len(set(str(said).split())) / 14 for said in completions]
"""


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward of one's own that differs between answers."""
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(FRAGILE)
    return f"{path}:Wordy"


def test_a_run_resumes_as_if_nothing_had_happened(wordy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--max-steps", "4", "--rewards", wordy, "--deterministic")
    assert run("vlm/grpo", tmp_path / "whole", *options) == 0
    # A round asks once, and the gate once per policy that it does not know: base and promoted, then candidates.
    monkeypatch.setenv("BREAKS_AT", str((1 + 3) + (1 + 1) + 1))
    assert run("vlm/grpo", tmp_path / "cut", *options) == 2
    assert len(RunFolder.open(tmp_path / "cut").metrics()) == 2, "it broke off in the third"
    monkeypatch.delenv("BREAKS_AT")
    assert main(["resume", str(tmp_path / "cut")]) == 0
    whole, cut = (RunFolder.open(tmp_path / name) for name in ("whole", "cut"))
    assert_same_run(cut, whole)
    first, last = (whole.load_checkpoint(which)["now"]["policy"]["policy"] for which in ("iteration-000003", "latest"))
    assert any(not torch.equal(weight, last[name]) for name, weight in first.items())
    assert main(["eval", str(tmp_path / "cut"), "--episodes", "1", "--offset", "1"]) == 0


def test_a_run_goes_on_from_the_policy_of_another(tmp_path: Path) -> None:
    assert run("vlm/raft", tmp_path / "one") == 0
    assert run("vlm/grpo", tmp_path / "two", "--model", str(tmp_path / "one" / "policy")) == 0
    before = assert_complete(tmp_path / "two").evaluations()["before"]["outcomes"]
    assert before == RunFolder.open(tmp_path / "one").evaluations()["after"]["outcomes"]


# --- what is evaluated -----------------------------------------------------------------------------


def test_imitation_is_evaluated_by_what_the_policy_says(tmp_path: Path) -> None:
    """Not by the demonstrations or the labels that the actor shows in training."""
    shared: dict[str, Any] = {
        "samples": 2,
        "sampled_questions": 2,
        "eval_episodes": 2,
        "gate": "none",
        "demonstrations": 14,
    }
    configs: list[tuple[Any, Any]] = [
        (sft, sft.Config(**shared)),
        (sft, sft.Config(**shared, target="answers")),
        (mstar, mstar.Config(**shared, temperature=0.1)),
        (grpo, grpo.Config(**shared)),
    ]
    found = [module.build(config, None) for module, config in configs]
    results = [experiment.evaluate(experiment.stages[0].actor) for experiment in found]
    assert all(result == results[-1] for result in results)


def test_figures_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy right on one of two; of three samples each two are right on the first and none on the second."""
    setting = start(grpo.Config(samples=3, sampled_questions=2, eval_episodes=2, demonstrations=14))
    policy, chosen = setting.policy, [t for t in setting.questions.held_out if t.category == "kth"]
    setting.questions = replace(setting.questions, held_out=chosen, blind={"kth": 0.125})

    def act(tasks: Sequence[Task], n: int, **sampling: Any) -> Any:
        right = [True, False] if n == 1 else [True, True, False, False, False, False]
        rollouts = policy.encode([task for task in tasks for _ in range(n)], ["= 0"] * (n * len(tasks)))
        for rollout, well in zip(rollouts, right, strict=True):
            rollout.output = f"p1 = {rollout.task.reference}" if well else "= 12"
            rollout.info["truncated"] = not well and n == 1
        return rollouts

    monkeypatch.setattr(policy, "act", act)
    told = evaluate(setting, policy)
    assert told["outcomes"]["kth"] == {"success": [1, 0], "seeds": [task.id for task in chosen]}
    assert told["figures"]["kth"] == {"truncated": 0.5, "blind": 0.125, "mean@3": pytest.approx(1 / 3), "pass@3": 0.5}


# --- the standing test of the gate -----------------------------------------------------------------


def rows_of(folder: Path, count: int, **changes: Any) -> list[dict[str, Any]]:
    """Questions about pictures of their own, all of which one is right about."""
    rows = []
    for number, task in enumerate(asked(*["how many red"] * count)):
        Image.fromarray(task.images[0]).save(folder / f"{number}.png")
        rows.append({"prompt": task.prompt, "image": f"{number}.png", "answer": "1", **changes})
    return rows


def lines_of(folder: Path, rows: Sequence[Any], name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_a_majority_that_is_wrong_sounds_the_alarm_and_the_start_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likeliest words are right, but most answers are wrong: 30 % say "= 1", 70 % "= 0" by seven ways."""
    rows = rows_of(tmp_path, 60)
    model = glimpse_training.new_model(0).train()
    pictures = [task.images[0] for task in asked(*["how many red"] * 60)]
    said = [*["= 1"] * 3, *(f"p{cell} = 0" for cell in range(7))]
    items = [Item("how many red", picture, answer) for picture in pictures for answer in said]
    with torch.random.fork_rng(), monkeypatch.context() as patch:
        patch.setattr(glimpse_training, "in_view", lambda item, draw, split: item)
        torch.manual_seed(0)
        glimpse_training.learn_answers(model, items, Schooling(batch=40), 60)
    model.save_pretrained(tmp_path / "start")
    options = ["--model", str(tmp_path / "start"), "--data", lines_of(tmp_path, rows), "--max-steps", "12"]
    options += ["--group-size", "16", "--gate-every", "2", "--gate-labels", "9", "--eval-episodes", "12"]
    assert run("vlm/ttrl", tmp_path / "run", *options) == 0
    folder = RunFolder.open(tmp_path / "run")
    before, after = (folder.evaluations()[name]["outcomes"]["questions"]["success"] for name in ("before", "after"))
    assert before == [1] * 12, "the greedy start is right"
    gate, rewards = folder.read("gate"), [row["reward"] for row in folder.metrics()]
    alarms = [row for row in gate if row["decision"] in ("repair", "rollback")]
    assert alarms and alarms[0]["evidence"]["canary"] == pytest.approx({"base": 1, "promoted": 1, "candidate": 0})
    assert max(rewards) > rewards[0] + 0.2, "its own reward rose"
    assert gate[-1]["decision"] == "rollback" and gate[-1]["stop"] and after == before
    assert "gate_labels: 9" in (tmp_path / "run" / "README.md").read_text()


# --- models and questions of one's own -------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny Qwen2-VL and a tiny Llama, saved."""
    found = {}
    for name, (model, reader) in {"qwen2_vl": tiny.vlm("qwen2_vl"), "llama": tiny.text("llama")}.items():
        path = tmp_path_factory.mktemp(name)
        model.save_pretrained(path)
        reader.save_pretrained(path)
        found[name] = str(path)
    return found


@pytest.mark.parametrize("family", ["qwen2_vl", "llama"])
def test_a_model_of_ones_own_learns_and_its_adapters_are_kept(
    family: str, folders: dict[str, str], wordy: str, tmp_path: Path
) -> None:
    cheap = ("--rewards", wordy, "--max-new-tokens", "4", "--lora-rank", "2", "--lr", "0.02", "--gate-labels", "2")
    cheap += ("--dtype", "fp32")  # on a GPU too: what is saved is compared with what is loaded
    data = ("--data", lines_of(tmp_path, rows_of(tmp_path, 12))) if family == "qwen2_vl" else ()
    assert run("vlm/grpo", tmp_path / "run", "--model", folders[family], *cheap, *data) == 0
    folder = RunFolder.open(tmp_path / "run")
    kinds = {"questions"} if data else {"sum", "difference"}
    assert set(folder.evaluations()["after"]["outcomes"]) == kinds
    assert folder.metrics()[0]["objective/grad_norm"] > 0 and "anchors/loss" not in folder.metrics()[0]
    config = recipe_of(folder)[1]
    setting = start(config)
    asked_now = list(setting.questions.held_out)[:2]
    untouched = setting.policy.act(asked_now, 2, key=(1,))
    setting.policy.load_state_dict(folder.load_checkpoint()["now"]["policy"]["policy"])
    trained = setting.policy.act(asked_now, 2, key=(1,))
    again_loaded = TokenPolicy.from_pretrained(tmp_path / "run" / "policy", horizon=4, device=setting.policy.device)
    saved = again_loaded.act(asked_now, 2, key=(1,))

    def log_probs(rollouts: Any) -> torch.Tensor:
        return torch.cat([rollout.log_probs for rollout in rollouts])

    assert [r.output for r in saved] == [r.output for r in trained]
    torch.testing.assert_close(log_probs(saved), log_probs(trained), rtol=0, atol=1e-5)
    assert not torch.equal(log_probs(untouched), log_probs(trained)), "it learned something"
    again = ("--model", str(tmp_path / "run" / "policy"), "--max-steps", "1")
    assert run("vlm/raft", tmp_path / "again", *cheap, *data, *again) == 0, "and a run goes on from them"


@pytest.mark.parametrize("family", ["qwen2_vl", "llama"])
def test_a_model_of_ones_own_criticises_itself(family: str, folders: dict[str, str], tmp_path: Path) -> None:
    """Asked in words, no label read; the gate compares views that must not change an answer."""
    rows = [{**row, "answer": row["answer"]} for row in rows_of(tmp_path, 20)]
    data = ("--data", lines_of(tmp_path, rows)) if family == "qwen2_vl" else ()
    cheap = ("--max-new-tokens", "4", "--lora-rank", "2", "--gate-every", "2")
    assert run("vlm/self_critique", tmp_path / "run", "--model", folders[family], *cheap, *data) == 0
    folder = RunFolder.open(tmp_path / "run")
    assert [look["decision"] for look in folder.read("gate")] and "reward/self-critique" in folder.metrics()[0]
    setting = start(config_from_json(self_critique.Config, folder.config), labels=False)
    pairs = list(setting.questions.probes)
    assert all(task.reference is None for task in pairs) and pairs[1].parent == pairs[0].id
    train = next(iter(setting.questions.train.values()))
    assert (train(0) if callable(train) else train[0]).reference is None


def test_sums_are_learned_by_a_model_of_text(folders: dict[str, str], tmp_path: Path) -> None:
    """vlm/arithmetic takes SmolLM2, which is not here, and any other model of text."""
    assert run("vlm/arithmetic", tmp_path / "run", "--model", folders["llama"], "--dtype", "fp32") == 0
    folder = RunFolder.open(tmp_path / "run")
    assert len(folder.metrics()) == 2 and len(folder.read("gate")) == 2
    assert {kind: len(row["success"]) for kind, row in folder.evaluations()["after"]["outcomes"].items()} == {
        "sum": 2,
        "difference": 2,
    }
    adapters = json.loads((tmp_path / "run" / "policy" / "adapter_config.json").read_text())
    assert (adapters["r"], adapters["lora_alpha"]) == (16, 32)


def test_a_model_that_sees_is_told_of_the_small_world(folders: dict[str, str]) -> None:
    setting = start(LanguageConfig(model=folders["qwen2_vl"], eval_episodes=1, gate_labels=7))
    task, world = setting.questions.held_out[0], questions.small_world(0, 0, labels=True, gate_labels=7, held_out=1)
    plain = world.held_out[0]
    assert f"Question: {plain.prompt}? Name the cells" in task.prompt and task.reference == plain.reference
    assert task.images[0].shape == (224, 224, 3) and (task.images[0][::7, ::7] == plain.images[0]).all()
    assert setting.encoded == [] and not setting.questions.small_world
    train = setting.questions.train["odd"]
    assert callable(train) and "which is odd?" in train(0).prompt and train(0).images[0].shape == (224, 224, 3)
    with pytest.raises(UsageError, match="a second look at cells is known for the default model in its small world"):
        _ = setting.eyes


def test_the_gate_of_sums_reads_what_is_counted() -> None:
    made = questions.sums(0, 0, labels=False, gate_labels=5, held_out=4, offset=2)
    assert [task.category for task in made.probes] == ["canary"] * 5 and all(t.reference for t in made.probes)
    assert [task.category for task in made.held_out] == ["sum"] * 4 + ["difference"] * 4
    longer = questions.sums(0, 0, labels=True, gate_labels=0, held_out=6)
    assert [t.prompt for t in made.held_out] == [t.prompt for i, t in enumerate(longer.held_out) if i % 6 >= 2]
    assert {task.reference for task in longer.probes} == {None} and len(longer.probes) == 2 * 60, "two views of each"
    for kind, source in made.train.items():
        assert callable(source) and source(3).reference is None
        known = longer.train[kind]
        assert callable(known) and (known(3).prompt, known(3).category) == (source(3).prompt, kind)
        a, sign, b = known(3).prompt.removeprefix("What is ").partition("?")[0].split()
        assert int(known(3).reference) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
    numbers = {
        part: {frozenset(t.prompt.split()) & set(map(str, range(100))) for t in tasks}
        for part, tasks in {"probe": made.probes, "eval": longer.held_out}.items()
    }
    assert not numbers["probe"] & numbers["eval"]
    assert arithmetic.ONLY in made.probes[0].prompt


def test_a_file_of_questions_is_dealt_out(tmp_path: Path) -> None:
    """Of 20 rows in two categories a fifth is held out, and a fifth of the 16 others is the gate's."""
    rows: list[Any] = [
        {"prompt": f"q {i}", "answer": i, "category": "ab"[i % 2], "demonstration": f"= {i}"} for i in range(20)
    ]
    path = lines_of(tmp_path, rows)
    made = questions.from_file(path, gate_labels=3)
    assert [task.category for task in made.held_out].count("a") == 2 == len(made.held_out) // 2
    assert {task.category for task in made.probes} == {"canary"} and len(made.probes) == 3
    trained = {task.prompt: task for source in made.train.values() for task in source}  # type: ignore[union-attr]
    sides = [{task.prompt for task in side} for side in (made.held_out, made.probes)]
    assert set(trained) | sides[0] | sides[1] == {f"q {i}" for i in range(20)} and len(trained) == 13
    assert set(made.train) == {"a", "b"}
    for prompt, task in trained.items():
        number = int(prompt[2:])
        assert (task.reference, task.id) == (number, f"data/{number + 1}")
    assert {(task.prompt, said) for task, said in made.demonstrations} == {(p, f"= {p[2:]}") for p in trained}
    assert made.blind == {"a": 0.0, "b": 0.0}
    free = questions.from_file(path, labels=False)
    hidden = [*free.probes, *(task for source in free.train.values() for task in source)]  # type: ignore[union-attr]
    assert len(hidden) == 2 * 4 + 12 and all(t.reference is None and "demonstration" not in t.extra for t in hidden)
    assert len(free.demonstrations) == 12, "which are there to be imitated"


def test_an_evaluation_asks_a_window_of_what_a_run_held_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}", "answer": i, "category": "ab"[i % 2]} for i in range(40)]
    path = lines_of(tmp_path, rows)
    first, second, both = (
        questions.from_file(path, held_out=count, offset=offset, reserved=4)
        for count, offset in ((2, 0), (2, 2), (4, 0))
    )
    prompts = [{task.prompt for task in made.held_out} for made in (first, second, both)]
    assert prompts[0] | prompts[1] == prompts[2] and len(prompts[0]) == len(prompts[1]) == 4
    assert [list(made.train["a"]) != [] for made in (first, second)] == [True, True]
    kept = [[task.id for source in made.train.values() for task in source] for made in (first, second)]  # type: ignore[union-attr]
    assert kept[0] == kept[1], "whatever is asked, the run is trained on the same"
    with pytest.raises(UsageError, match="no held-out question is left after the first 99"):
        questions.from_file(path, held_out=1, offset=99, reserved=4)
    other = lines_of(tmp_path, [{"prompt": f"other {i}", "answer": i} for i in range(3)], "other.jsonl")
    apart = questions.from_file(path, evaluation=other)
    assert [task.id for task in apart.held_out] == ["other/1", "other/2", "other/3"] and len(apart.probes) == 2 * 8
    with pytest.raises(UsageError, match=r'other\.jsonl line 4: other/4 has no "answer"'):
        questions.from_file(path, evaluation=lines_of(tmp_path, [*rows[:3], {"prompt": "x"}], "other.jsonl"))


def test_a_file_of_questions_is_learned_from(tmp_path: Path) -> None:
    """With pictures, own columns, and demonstrations that are replayed."""
    rows = rows_of(tmp_path, 12, demonstration="p1 = 1", id=None)
    for number, row in enumerate(rows):
        row["id"] = f"row-{number}"
        row["images"] = [row.pop("image")]
    data = lines_of(tmp_path, rows)
    assert run("vlm/grpo", tmp_path / "run", "--data", data, "--gate-labels", "2") == 0
    folder = assert_complete_file(tmp_path / "run", 2)
    assert "anchors/loss" in folder.metrics()[0]
    assert run("vlm/mstar", tmp_path / "mstar", "--data", data, "--gate-labels", "2", "--no-process") == 0
    assert_complete_file(tmp_path / "mstar", 2)


def assert_complete_file(path: Path, count: int) -> RunFolder:
    folder = RunFolder.open(path)
    assert len(folder.metrics()) == 2
    assert len(folder.evaluations()["after"]["outcomes"]["questions"]["success"]) == count
    return folder


# --- bad input -------------------------------------------------------------------------------------

GOOD: list[Any] = [{"prompt": f"q {i}", "answer": "1"} for i in range(12)]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "data.jsonl line 13 is no JSON object: "),
        ("[1]", "data.jsonl line 13 is no JSON object"),
        ({"answer": "1"}, 'data.jsonl line 13 has neither "prompt" nor "question": it has answer'),
        ({"prompt": "x", "image": "no.png"}, "data.jsonl line 13 names an image that is not there: .*no.png"),
        ({"prompt": "x", "images": "no.png"}, 'data.jsonl line 13 wants "image": a path, or "images": a list of paths'),
        ({"prompt": "x", "image": 3}, 'data.jsonl line 13 wants "image": a path, or "images": a list of paths'),
        ({"prompt": "x", "id": "data/2"}, 'data.jsonl line 13 has the "id" of line 2: data/2'),
    ],
)
def test_a_row_that_is_no_question_is_named(row: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        questions.from_file(lines_of(tmp_path, [*GOOD, row]))


def test_too_few_questions_and_none_to_evaluate_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.jsonl has 1 questions: a run needs 10 or more"):
        questions.from_file(lines_of(tmp_path, GOOD[:1]))
    with pytest.raises(UsageError, match='no question has an "answer", and the evaluation needs one'):
        questions.from_file(lines_of(tmp_path, [{"prompt": str(i)} for i in range(12)]))
    unanswered = questions.from_file(lines_of(tmp_path, [{"prompt": "x"}, *GOOD]))
    assert "x" in {task.prompt for task in unanswered.train["questions"]}, "it is trained on alone"  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"there is no file nowhere\.jsonl"):
        questions.from_file("nowhere.jsonl")


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("vlm/grpo", ("--group-size", "0"), "--group-size is a finite number of 1 or more, not 0"),
        ("vlm/grpo", ("--rewards", "exakt"), "did you mean exact"),
        ("vlm/grpo", ("--gate-labels", "1"), "a canary compares 2 or more probes, not 1"),
        ("vlm/sft", ("--data", "FILE", "--gate-labels", "2"), "there are no demonstrations to imitate"),
        ("vlm/viper", ("--data", "FILE", "--gate-labels", "2"), "a second look at cells is known for the default"),
        ("vlm/self_critique", ("--critic", "asking"), "--critic asking goes with --learn outcome"),
        ("vlm/grpo", ("--model", "./nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_run_is_told_in_a_line(
    name: str,
    options: tuple[str, ...],
    told: str,
    folders: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"FILE": lines_of(tmp_path, rows_of(tmp_path, 12)), "llama": folders["llama"]}
    assert run(name, tmp_path / "run", *(given.get(word, word) for word in options)) == 2
    said = capsys.readouterr().err
    assert said.startswith("autotelic: ") and said.count("\n") == 1 and told in said, said
    assert not (tmp_path / "run").exists()
