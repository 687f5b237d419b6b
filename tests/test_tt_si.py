"""TT-SI: margins by hand, adapting and forgetting: what is evaluated, what stays as it was, what each knob does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autotelic.cli import main
from autotelic.envs.toys import scenes
from autotelic.errors import UsageError
from autotelic.testing.vlms import text
from autotelic.trainers.actors import TrainingWrapper
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.types import Rollout, Task
from autotelic.vlm.adaptation import (
    AdaptAndReset,
    Adaptation,
    AmongAnswers,
    AmongCandidates,
    Sureness,
    Views,
    Written,
    margin_of,
)
from autotelic.vlm.evaluation import evaluate
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.recipes import tt_si

from .small_speaking import asked, teach_quickly, untrained
from .test_loop import same
from .toy_run import WORDS, spelled, spelling_task
from .toys import TokenToy

QUESTIONS = [spelling_task(category, i, "held-out") for category in WORDS for i in range(2)]
"""Four words, numbered 0 to 3."""
MANY = [Task(f"q{i}", i % 4, category="true", horizon=3) for i in range(12)]
ALWAYS = 2.0


def speller(seed: int = 0) -> Any:
    """A speller that is undecided about nothing."""
    policy = TokenToy(len(QUESTIONS))
    with torch.no_grad():
        policy.module.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return policy


def known(policy: Any, task: Task, k: int, key: tuple[int, ...]) -> list[Rollout]:
    """As if the speller could write what is right: k times, each but the first with another first letter."""
    word = WORDS["true" if task.prompt < 2 else "lie"][task.prompt % 2]
    words = [((word[0] + i) % 4, *word[1:]) for i in range(k)]
    rollouts: list[Rollout] = policy.encode([task] * k, words)
    return rollouts


def sure_of(*margins: float) -> Any:
    return lambda policy, tasks: [margins[task.prompt] for task in tasks]


LOW_HIGH = sure_of(0.1, 0.99, 0.3, 0.97)


def system(policy: Any = None, margin: Any = LOW_HIGH, similar: Any = known, **options: Any) -> AdaptAndReset:
    adaptation = Adaptation(options.pop("steps", 30), options.pop("lr", 0.3))
    return AdaptAndReset(policy or speller(), margin, similar, adaptation, **options)


def answers(actor: Any, tasks: Sequence[Task] = QUESTIONS, n: int = 1, key: int = 0) -> list[Any]:
    return [rollout.output for rollout in actor.act(tasks, n, key=(key,), mode="evaluate")]


# --- margins ----------------------------------------------------------------------------------------


def test_a_margin_is_the_best_probability_less_the_second() -> None:
    logs = [math.log(p) for p in (0.1, 0.7, 0.2)]
    assert margin_of(logs) == pytest.approx(0.5)
    assert margin_of([value - 5000 for value in logs]) == pytest.approx(0.5), "shifted by the largest"
    assert margin_of([0.0, math.log(3)]) == pytest.approx(0.5)
    assert margin_of([-2.0, -2.0]) == 0.0 and margin_of([-9.0]) == 1.0 and margin_of([]) == 0.0


def test_candidates_are_compared_by_the_policys_log_probabilities() -> None:
    policy = TokenToy(len(QUESTIONS))
    start = policy.VOCABULARY  # row of task 0, place 0, nothing before
    with torch.no_grad():
        policy.module.weight[start, 2] = math.log(3)  # 3/6 for the token 2, 1/6 for each other
    two = {0: [(2, 1, 0), (0, 1, 0)], 1: [(2, 1, 0), (0, 1, 0), (1, 1, 0)]}
    margin = AmongCandidates(lambda task: two[task.prompt])
    assert margin(policy, QUESTIONS[:2]) == pytest.approx([0.75 - 0.25, 0.0])


def said(output: str, log_prob: float, **info: Any) -> Rollout:
    one = torch.ones(1, dtype=torch.bool)
    return Rollout(QUESTIONS[0], output, {}, torch.tensor([log_prob]), one, torch.zeros(1).long(), info=info)


def test_texts_with_one_answer_are_one_candidate() -> None:
    """x: 0.2 + 0.1 of two texts, one of them sampled twice; y: 0.2; what was cut off counts as none."""
    texts = [("p1 = x", 0.2), ("p2 = x", 0.1), ("p1 = x", 0.2), ("p3 = y", 0.2)]
    attempts = [said(output, math.log(p)) for output, p in texts] + [said("z = z", 0.0, truncated=True)]
    policy = SimpleNamespace(act=lambda tasks, n, mode: attempts)
    assert AmongAnswers(5)(policy, QUESTIONS[:1]) == pytest.approx([(0.3 - 0.2) / 0.5])
    policy = SimpleNamespace(act=lambda tasks, n, mode: attempts[-1:])
    assert AmongAnswers(1)(policy, QUESTIONS[:1]) == [0.0]


def test_choices_are_candidates_where_an_input_names_them() -> None:
    policy = TokenPolicy.of(*text("llama"), horizon=4)
    plain, choice = Task("a", "how many ?"), Task("b", "red or blue ?", extra={"choices": ("red", "blue")})
    both = Sureness(4)(policy, [plain, choice, plain])
    assert both[1] == AmongCandidates(lambda task: ("red", "blue"))(policy, [choice])[0]
    assert both[0] == both[2] == AmongAnswers(4)(policy, [plain])[0]


# --- contract a: the system is what is evaluated, and looking changes nothing ------------------------


def test_an_evaluation_without_the_systems_part_gives_other_answers() -> None:
    questions = SimpleNamespace(held_out=QUESTIONS, verify=spelled, blind={}, small_world=True)
    setting: Any = SimpleNamespace(questions=questions, verify=spelled, config=SimpleNamespace(samples=0))
    actor = system(threshold=ALWAYS)
    report = evaluate(setting, actor)
    alone = evaluate(setting, actor.bare())
    for category in ("true", "lie"):
        figures, outcomes = report["figures"][category], report["outcomes"][category]["success"]
        right = alone["outcomes"][category]["success"]
        assert outcomes == [1, 1] != right, "what adapted"
        assert figures["policy alone"] == sum(right) / 2 and figures["adapted"] == 1.0
        assert "adapted" not in alone["figures"][category]

    class Around(TrainingWrapper):  # scaffolding around the system
        def attempt(self, tasks: Any, n: int, *, key: tuple[int, ...], **sampling: Any) -> list[Rollout]:
            return []

    assert evaluate(setting, Around(actor))["outcomes"] == report["outcomes"]


def everything(policy: TokenPolicy) -> dict[str, Any]:
    """All that a look could leave behind."""
    module = policy.module
    weights = dict(module.named_parameters())
    return {
        "state": deepcopy(module.state_dict()),
        "gradients": {name: w.grad.clone() for name, w in weights.items() if w.grad is not None},
        "learns": [w.requires_grad for w in weights.values()],
        "writes": [w._version for w in weights.values()],
        "modes": [part.training for part in module.modules()],
        "random": torch.get_rng_state(),
    }


class Fault(Exception):
    pass


@pytest.mark.parametrize("raises", ["", "margin", "similar", "adapting", "answering"])
def test_every_state_is_bit_equal_after_acting_also_when_something_raises(raises: str) -> None:
    policy, tasks = untrained(), asked("what is 1st", "how many red")
    for weight in policy.parameters():
        weight.grad = torch.ones_like(weight)  # of a step that is being made

    def fault(*_: Any, **__: Any) -> Any:
        raise Fault

    def similar(given: Any, task: Task, k: int, key: tuple[int, ...]) -> Any:
        pairs = given.encode([task] * k, ["p1 = 3"] * k)
        if raises == "answering":
            patch.setattr(TokenPolicy, "act", fault)
        if raises == "adapting":
            patch.setattr(torch.optim.AdamW, "step", fault)
        return fault() if raises == "similar" else pairs

    actor = AdaptAndReset(
        policy, fault if raises == "margin" else Sureness(2), similar, Adaptation(2, 1e-2), threshold=ALWAYS
    )
    before = everything(policy)
    with pytest.MonkeyPatch.context() as patch:
        if raises:
            with pytest.raises(Fault):
                actor.act(tasks, 1, mode="evaluate", greedy=True)
        else:
            adapted = actor.act(tasks, 1, mode="evaluate", greedy=True)
            assert all(rollout.info["adapted"] for rollout in adapted)
    after = everything(policy)
    assert same(before, after)


def test_an_answer_depends_on_no_other_input_and_the_frozen_weights_are_shared() -> None:
    policy, tasks = untrained(), asked("what is 1st", "how many red", "which is odd")

    def similar(given: Any, task: Task, k: int, key: tuple[int, ...]) -> Any:
        return given.encode([task], [f"p{len(str(task.prompt))} = 3"])

    actor = system(policy, lambda policy, tasks: [0.0] * len(tasks), similar, steps=2, lr=1e-3)
    together = actor.act(tasks, 1, mode="evaluate", greedy=True)
    for task, rollout in zip(tasks, together, strict=True):
        (apart,) = actor.act([task], 1, mode="evaluate", greedy=True)
        assert same(apart.log_probs, rollout.log_probs) and apart.output == rollout.output
    copy = policy.trainable("adapted")
    own = {name for name, weight in policy.module.named_parameters() if weight.requires_grad}
    shared = {n for n, w in policy.module.named_parameters() if w is dict(copy.module.named_parameters())[n]}
    assert own and shared and not own & shared and {n for n, w in copy.trained().items() if w.requires_grad} == own


def test_sure_inputs_are_answered_by_the_untouched_policy() -> None:
    actor = system()
    rollouts = actor.act(QUESTIONS, 4, key=(3,), mode="evaluate")
    plain = actor.policy.act(QUESTIONS, 4, key=(3,))
    for number in range(4):
        mine, its = rollouts[4 * number : 4 * number + 4], plain[4 * number : 4 * number + 4]
        assert [r.info["adapted"] for r in mine] == [number in (0, 2)] * 4
        assert ([r.output for r in mine] == [r.output for r in its]) == (number in (1, 3))
        assert [r.info["margin"] for r in mine] == [(0.1, 0.99, 0.3, 0.97)[number]] * 4
    assert answers(system(margin=sure_of(0.95, 0.95, 0.95, 0.95))) == answers(actor.policy), "u >= tau"


def test_a_fork_adapts_too_and_a_promoted_one_starts_from_the_new_weights() -> None:
    actor = system(threshold=ALWAYS)
    fork = actor.fork("promoted")
    assert answers(fork) == answers(actor) != answers(actor.policy)
    with torch.no_grad():
        actor.policy.module.weight.neg_()
    assert answers(fork.policy) != answers(actor.policy)
    fork.copy_from(actor)
    assert same(fork.state_dict(), actor.state_dict()) and answers(fork.policy) == answers(actor.policy)
    assert not any(weight.requires_grad for weight in fork.policy.module.parameters())


# --- the gate and the knobs -------------------------------------------------------------------------


def test_a_random_gate_adapts_to_as_many_inputs_but_others() -> None:
    chosen = {}
    for way in ("margin", "random"):
        for key in (0, 1):
            rollouts = system(gate_by=way).act(MANY, 1, key=(key,), mode="evaluate")
            chosen[way, key] = [r.task.id for r in rollouts if r.info["adapted"]]
    assert {len(names) for names in chosen.values()} == {6}
    assert chosen["margin", 0] == chosen["margin", 1] == [task.id for task in MANY if task.prompt in (0, 2)]
    assert chosen["random", 0] not in (chosen["margin", 0], chosen["random", 1])


@pytest.mark.parametrize(
    "change", [{"threshold": 0.2}, {"examples": 2}, {"steps": 1}, {"lr": 1e-4}, {"gate_by": "random"}], ids=str
)
def test_each_knob_changes_answers(change: dict[str, Any]) -> None:
    assert answers(system(**change), MANY) != answers(system(), MANY)


def test_what_cannot_be_adapted_is_refused_and_without_pairs_the_policy_answers() -> None:
    for nothing in ({"examples": 0}, {"steps": 0}):
        with pytest.raises(UsageError, match="1 example and 1 step or more"):
            system(**nothing)
    actor = system(similar=lambda *_: [], threshold=ALWAYS)
    rollouts = actor.act(QUESTIONS, 1, mode="evaluate")
    assert [r.output for r in rollouts] == answers(actor.policy) and not any(r.info["adapted"] for r in rollouts)


def test_margin_and_examples_never_see_a_label() -> None:
    inputs: list[Task] = []

    def margin(policy: Any, tasks: Sequence[Task]) -> list[float]:
        inputs.extend(tasks)
        return [0.0] * len(tasks)

    def similar(policy: Any, task: Task, k: int, key: tuple[int, ...]) -> list[Rollout]:
        inputs.append(task)
        return known(policy, task, k, key)

    labelled = [Task(t.id, t.prompt, reference="r", extra={"trace": "r", "choices": "ab"}) for t in QUESTIONS]
    rollouts = system(margin=margin, similar=similar).act(labelled, 1, mode="evaluate")
    assert len(inputs) == 8 and all(t.reference is None and t.extra == {"choices": "ab"} for t in inputs)
    assert [r.task for r in rollouts] == labelled, "what is returned is of the tasks that were asked"


# --- contract d: sampled in one context, trained in another ------------------------------------------


def test_a_written_pair_is_trained_as_the_answer_to_the_new_question_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TokenPolicy.of(*text("llama"), horizon=4)
    written = iter(["Question: how many red ?\n\nAnswer: blue\nand more", "no pair", "question: red ?\nAnswer:"])
    acting = TokenPolicy.act

    def act(self: TokenPolicy, tasks: Sequence[Task], n: int, **sampling: Any) -> list[Rollout]:
        if not tasks[0].id.endswith("/similar"):
            return acting(self, tasks, n, **sampling)
        assert "how many ?" in str(tasks[0].prompt) and "new question" in str(tasks[0].prompt)
        return [said(next(written), 0.0) for _ in range(n)]

    monkeypatch.setattr(TokenPolicy, "act", act)
    task = Task("a", "how many ?")
    (pair,) = Written()(policy, task, 3, (0,))
    assert pair.train_task is not None
    assert (pair.output, pair.train_task.prompt) == ("blue", "how many red ?")
    evaluated: list[torch.Tensor] = []
    evaluating = TokenPolicy.evaluate_actions

    def watched(self: TokenPolicy, *given: Any) -> Any:
        now = evaluating(self, *given)
        evaluated.append(now.log_probs.clone())
        return now

    with monkeypatch.context() as patch:
        patch.setattr(TokenPolicy, "evaluate_actions", watched)
        Adaptation(1, 1e-3)(policy.trainable("adapted"), [pair])
    there, here = (
        policy.evaluate_actions(policy.collate(policy.encode([question], ["blue"]))).log_probs
        for question in (Task("b", "how many red ?"), pair.task)
    )
    assert torch.equal(evaluated[0], there) and not torch.allclose(there, here)


def test_views_vote_for_an_answer_that_is_trained_in_others() -> None:
    policy, (task,) = untrained(), asked("what is up of red_disc")
    question = scenes.Question.parse(str(task.prompt))
    every = [
        scenes.View(turns, mirrored, channels)
        for turns in range(4)
        for mirrored in (False, True)
        for channels in permutations(range(3))
    ]

    def view_of(new: Task) -> scenes.View:
        (view,) = [v for v in every if (v.picture(task.images[0]) == new.images[0]).all()]
        assert new.prompt == view.text(str(task.prompt)) and new.parent == task.id
        return view

    words = ["p6 p2 = blue_plus", "p6 p2 = blue_plus", "p7 p2 = blue_plus", "p1 = 3", "p1 = 3", "rubbish", "= ="]

    def act(tasks: Sequence[Task], n: int, **sampling: Any) -> list[Rollout]:
        assert sampling["greedy"] and len(tasks) == len(words) and view_of(tasks[0]) == scenes.View()
        return [said(view_of(new).text(word), 0.0) for new, word in zip(tasks, words, strict=True)]

    speaker = SimpleNamespace(act=act, encode=policy.encode)
    pairs = Views(len(words))(speaker, task, 3, (0,))
    assert len({str(pair.train_task.prompt) for pair in pairs if pair.train_task}) > 1 < len(pairs)
    for pair in pairs:
        assert pair.train_task is not None and pair.task is task
        assert pair.output == scenes.in_order(question, view_of(pair.train_task).text("p6 p2 = blue_plus"))
    speaker.act = lambda tasks, n, **sampling: [said("rubbish", 0.0) for _ in tasks]
    assert Views(2)(speaker, task, 3, (0,)) == []


# --- the recipe -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tt_si")
    with pytest.MonkeyPatch.context() as patch:
        teach_quickly(patch, folder)  # too few lessons to vote: it is given its answer
        patch.setattr(Views, "__call__", lambda self, policy, task, k, key: policy.encode([task] * k, ["= 3"] * k))
        patch.setattr(scenes, "questions", lru_cache(maxsize=None)(scenes.questions))
        words = ["--threshold", "2", "--adapt-lr", "0.05", "--output-dir", str(folder / "run")]
        assert main(["run", "vlm/tt_si", "--debug", *words]) == 0
        yield folder / "run"


def test_a_run_evaluates_the_policy_before_and_the_system_after(run: Path) -> None:
    folder = RunFolder.open(run)
    before, after = (folder.read_json(f"evaluations/{name}") for name in ("before", "after"))
    assert set(after["outcomes"]) == set(scenes.TYPES)
    for kind, outcome in before["outcomes"].items():
        figures = after["figures"][kind]
        assert figures["policy alone"] == sum(outcome["success"]) / len(outcome["success"])
        assert figures["adapted"] == 1.0 and "policy alone" not in before["figures"][kind]
    assert "gate_labels: none" in (run / "README.md").read_text()
    rows = json.loads((run / "samples" / "answers" / "answers.json").read_text())
    assert any(row["after"]["said"] != row["before"]["said"] for row in rows), "the system's answers are kept"


def test_eval_looks_at_the_system_too(run: Path) -> None:
    assert RunFolder.open(run).load_checkpoint()["stage"] == 1, "a last stage without iterations"
    assert main(["eval", str(run), "--episodes", "1"]) == 0
    assert RunFolder.open(run).read_json("evaluations/best-0-1")["figures"]["odd"]["adapted"] == 1.0


def test_what_would_have_no_effect_is_no_option() -> None:
    for name in ("lr", "max_steps", "gate", "sft_coef", "temperature", "rewards", "eval_every"):
        with pytest.raises(UsageError, match="has no effect in this recipe"):
            tt_si.Config(**{name: "x"})  # type: ignore[arg-type]
    assert (tt_si.Config().threshold, tt_si.Config().resolved(small=False).examples) == (0.95, 1)
