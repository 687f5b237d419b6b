"""What the loop asks for: each contract on toys, by a run or a number that is another one without it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from autotelic.errors import UsageError
from autotelic.testing.vlms import text
from autotelic.trainers.actors import Demonstrations, SystemWrapper
from autotelic.trainers.advantages import GroupRelative, ReinforcePlusPlus, drop_zero_spread, grpo
from autotelic.trainers.contracts import Advantage, Learner, Shaping
from autotelic.trainers.gates import Gate
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.loop import Stage, train
from autotelic.trainers.objectives import Entropy, KLPenalty, PPOClip, Term, WeightedImitation
from autotelic.trainers.objectives.base import k3
from autotelic.trainers.policy import TorchPolicy
from autotelic.trainers.shaping import PerTokenKL
from autotelic.types import Batch, Evaluation, Mode, Rollout, Task, Verdict
from autotelic.vlm.conversation import Conversation, Script
from autotelic.vlm.evaluation import evaluate as evaluate_answers
from autotelic.vlm.policy import TokenPolicy

from .small_drawing import TASKS as PICTURES
from .small_drawing import shapes_policy
from .test_loop import same
from .toy_run import WORDS, build, folder_at, honest, spelled, spelling_task
from .toys import TokenToy

QUESTIONS = [spelling_task(category, i) for category in WORDS for i in range(2)]
"""Four words, numbered 0 to 3."""


def uneven(policy: Any = None, seed: int = 0) -> Any:
    """A speller that is undecided about nothing."""
    policy = TokenToy(len(QUESTIONS)) if policy is None else policy
    with torch.no_grad():
        policy.module.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return policy


def attempts(policy: Any, scores: Sequence[float | None], n: int = 2, key: int = 0) -> list[Rollout]:
    """n scored attempts per question."""
    rollouts: list[Rollout] = policy.act(QUESTIONS[: len(scores) // n], n, key=(key,))
    for rollout, value in zip(rollouts, scores, strict=True):
        rollout.scores["total"] = value
    return rollouts


def gradient(policy: Any, rollouts: Sequence[Rollout], objective: Term, **options: Any) -> Tensor:
    """Of one update, not clipped."""
    learner = PolicyLearner(policy, objective, Optimisation(lr=0.0, max_grad_norm=1e9), **options)
    learner.update(rollouts)
    return torch.as_tensor(policy.module.weight.grad).clone()


# --- n: what an evaluation needs is passed to it, and what it keeps is its own ---------------------


def test_a_second_learner_that_never_learns_changes_nothing() -> None:
    """The first one's exact KL to "proximal" is 0 at the first step of every update, whoever else knows the policy."""
    runs = []
    for second in (False, True):
        policy = uneven()
        objective = PPOClip() + 0.5 * KLPenalty("proximal", "exact")
        first = PolicyLearner(policy, objective, Optimisation(lr=0.1), advantage=grpo())
        idle = PolicyLearner(policy, objective, Optimisation(), advantage=grpo()) if second else None
        told = [first.update(attempts(policy, [1.0, 0.0] * 4, key=key)) for key in range(3)]
        assert [metrics["objective/kl_proximal"] for metrics in told] == [0.0] * 3
        assert idle is None or idle.updates == 0
        runs.append((told, policy.module.weight.detach()))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])


def test_two_learners_may_give_one_name_to_different_references() -> None:
    policy = uneven()
    others = [policy.fork("now"), uneven(seed=1), uneven(seed=2)]
    learners = [
        PolicyLearner(policy, KLPenalty("reference", "exact"), Optimisation(lr=0.0), references={"reference": other})
        for other in others
    ]
    rollouts = attempts(policy, [1.0, 0.0] * 4)
    where = policy.collate(rollouts).payload
    previous = torch.cat([torch.full_like(where["task"], policy.VOCABULARY), where["tokens"][:, :-1]], 1)
    logits = [p.logits(where["task"], torch.arange(3), previous).detach() for p in (policy, *others)]
    by_hand = [float((logits[0].exp() * (logits[0] - other)).sum(-1).mean()) for other in logits[1:]]
    for order in ((0, 1, 2), (2, 1, 0)):
        for i in order:
            assert learners[i].update(rollouts)["objective/kl_reference"] == pytest.approx(by_hand[i], abs=1e-6)
    assert by_hand[0] == 0 and min(by_hand[1:]) > 0.1


def graphs(policy: TorchPolicy) -> list[weakref.ref[Tensor]]:
    """Weak references to every log-probability with graph that the policy computes from now on."""
    made: list[weakref.ref[Tensor]] = []
    forward = policy.forward_decisions

    def spied(*arguments: Any) -> Evaluation:
        now = forward(*arguments)
        made.append(weakref.ref(now.log_probs))
        return now

    policy.forward_decisions = spied  # type: ignore[method-assign]
    return made


def test_a_kept_graph_ends_with_its_backward_or_with_its_evaluation() -> None:
    policy = uneven()
    batch, made = policy.collate(attempts(policy, [1.0, 0.0] * 4)), graphs(policy)
    now = policy.evaluate_actions(batch).leaves()
    assert made[0]() is not None
    cotangents = now.gradient_of(now.log_probs.sum())
    policy.backward(batch, cotangents)
    assert made[0]() is None and len(made) == 1, "pulled through, and let go of while its evaluation lives"
    policy.backward(batch, cotangents)
    assert len(made) == 2, "a second backward computes it anew"
    dropped = policy.evaluate_actions(batch)
    assert made[2]() is not None
    del dropped
    assert made[2]() is None


def everything_on(policy: Any) -> dict[str, int]:
    return {name: id(value) for name, value in vars(policy).items()}


def test_acting_and_learning_leave_nothing_on_a_policy() -> None:
    speaker, questions = (
        TokenPolicy.of(*text("llama"), horizon=3),
        [Task("a", "how many ?"), Task("b", "what is red ?")],
    )
    cases: list[tuple[Any, list[Task], dict[str, Any], dict[str, Any]]] = [
        (uneven(), QUESTIONS, {}, {}),
        (speaker, questions, {"keep_prefix": True}, {}),
        (shapes_policy(), list(PICTURES), {"keep_graph": True}, {}),
    ]
    for policy, tasks, keeping, _ in cases:
        before = everything_on(policy)
        rollouts = policy.act(tasks, 2, **keeping)
        batch, references = policy.collate(rollouts), {"start": policy.fork("start")}
        assert everything_on(policy) == before
        now = policy.evaluate_actions(batch, {"kl:start"}, references).leaves()
        assert everything_on(policy) == before
        policy.backward(batch, now.gradient_of(now.log_probs.sum() + now.kl["start"].sum()))
        assert everything_on(policy) == before, type(policy).__name__


# --- o: groups without spread ---------------------------------------------------------------------


ONE_OF_FOUR = [1.0, 0.0, *[0.5] * 6]


def test_the_gradient_is_that_of_the_mean_over_all_rollouts() -> None:
    """As TRL has it: sum over rollouts of mean_t(-A log pi), over all eight of them, though six have A = 0."""
    policy = uneven()
    rollouts = attempts(policy, ONE_OF_FOUR)
    now = policy.forward_decisions(policy.collate(rollouts), frozenset(), {})
    size = 0.5 / (0.5**0.5 + 1e-6)
    loss = -(size * now.log_probs[0].mean() - size * now.log_probs[1].mean()) / 8
    (by_hand,) = torch.autograd.grad(loss, policy.module.weight)
    found = gradient(policy, rollouts, PPOClip(), advantage=grpo())
    torch.testing.assert_close(found, by_hand)
    dropped = gradient(policy, rollouts, PPOClip(), advantage=grpo(), prepare=[drop_zero_spread])
    torch.testing.assert_close(dropped, 4 * by_hand)


def test_groups_without_spread_are_kept_near_the_reference_and_undecided() -> None:
    policy, reference = uneven(), uneven(seed=1)
    rollouts = attempts(policy, ONE_OF_FOUR)
    batch = policy.collate(rollouts)
    now = policy.forward_decisions(batch, frozenset({"entropy"}), {})
    ratio = now.log_probs - reference.evaluate_actions(batch).log_probs
    regularisers = {"reference": KLPenalty(), "entropy": Entropy()}
    by_hand = {"reference": k3(ratio).mean(), "entropy": now.entropy.mean()}
    none = gradient(policy, rollouts, PPOClip(), advantage=grpo())
    for name, term in regularisers.items():
        (right,) = torch.autograd.grad(by_hand[name], policy.module.weight, retain_graph=True)
        options = {"advantage": grpo(), "references": {"reference": reference}}
        found = gradient(policy, rollouts, PPOClip() + term, **options) - none
        torch.testing.assert_close(found, right, atol=1e-6, rtol=1e-4)
        rows = found.view(4, -1).abs().amax(1)
        assert float(rows[1:].min()) > 1e-4, "of the three words that all attempts spelled alike, too"


# --- k: the order of an update --------------------------------------------------------------------


class Spy(Shaping, Advantage):
    """Writes down what is there when it is called."""

    needs = frozenset({"log_probs:reference", "log_probs:proximal"})  # type: ignore[assignment]

    def __init__(self, name: str, seen: list[Any], change: Callable[[Batch], Any] = lambda batch: batch) -> None:
        self.name, self.seen, self.change = name, seen, change

    def __call__(self, batch: Batch) -> Any:
        there = {*batch.log_probs} - {"behaviour"}, batch.shaping is not None, len(batch.groups)
        self.seen.append((self.name, *there, batch.advantages is not None))
        return self.change(batch)


def whole(batch: Batch) -> Batch:
    """One comparison set of everything."""
    return replace(batch, groups=torch.ones(1, len(batch), dtype=torch.bool))


def test_log_probs_then_shaping_then_sets_then_advantages_then_the_rest() -> None:
    policy, seen = uneven(), list[Any]()
    learner = PolicyLearner(
        policy,
        PPOClip(),
        Optimisation(lr=0.0),
        shape=[Spy("shape", seen, lambda batch: replace(batch, shaping=torch.zeros(batch.mask.shape)))],
        sets=[Spy("sets", seen, whole)],
        advantage=Spy("advantage", seen, grpo()),
        prepare=[Spy("prepare", seen)],
        references={"reference": uneven(seed=1)},
    )
    learner.update(attempts(policy, [1.0, 0.0] * 4))
    both = {"reference", "proximal"}
    assert seen == [
        ("shape", both, False, 4, False),
        ("sets", both, True, 4, False),
        ("advantage", both, True, 1, False),
        ("prepare", both, True, 1, True),
    ]


def advantages(policy: Any, rollouts: Sequence[Rollout], advantage: Any, **options: Any) -> Tensor:
    """[B, T] as the objective sees them."""
    batches: list[Batch] = []
    learner = PolicyLearner(
        policy,
        PPOClip(),
        Optimisation(lr=0.0),
        advantage=advantage,
        prepare=[lambda batch: batches.append(batch) or batch],  # type: ignore[func-returns-value]
        **options,
    )
    learner.update(rollouts)
    assert batches[0].advantages is not None
    return batches[0].advantages


def test_a_per_token_kl_in_the_reward_by_hand() -> None:
    """Reward r at the end and -beta (log pi_old - log pi_ref) at every token, from which returns are made."""
    policy, reference, beta = uneven(), uneven(seed=1), 0.3
    scores = [1.0, 0.0, 0.2, 0.4]
    rollouts = attempts(policy, scores)
    there = reference.evaluate_actions(policy.collate(rollouts)).log_probs
    penalty = beta * (torch.stack([r.log_probs for r in rollouts]) - there)  # type: ignore[misc]
    options = {"shape": [PerTokenKL(beta)], "references": {"reference": reference}}
    rewards = torch.tensor(scores)
    to_go = rewards[:, None] - torch.stack([penalty[:, t:].sum(1) for t in range(3)], 1)
    torch.testing.assert_close(
        advantages(policy, rollouts, ReinforcePlusPlus(), **options), (to_go - to_go.mean()) / to_go.std()
    )
    returns = (rewards - penalty.sum(1)).view(2, 2)
    right = (returns - returns.mean(1, keepdim=True)) / returns.std(1, keepdim=True)
    found = advantages(policy, rollouts, grpo(), **options)
    torch.testing.assert_close(found, right.view(4, 1).expand(4, 3), atol=1e-4, rtol=1e-4)


def test_sets_replace_groups_before_advantages() -> None:
    """Compared with all four, 0.9, 0.7, 0.3, 0.1 are worth their distance from 0.5, and not from 0.8 and 0.2."""
    policy = uneven()
    rollouts = attempts(policy, [0.9, 0.7, 0.3, 0.1])
    plain = GroupRelative(scale="none")
    assert advantages(policy, rollouts, plain, sets=[whole])[:, 0].tolist() == pytest.approx([0.4, 0.2, -0.2, -0.4])
    assert advantages(policy, rollouts, plain)[:, 0].tolist() == pytest.approx([0.1, -0.1, 0.1, -0.1])


# --- a: the actor is what is evaluated, gated, forked and promoted --------------------------------


class Memory(Learner):
    """The right answers that it saw."""

    players = "all"

    def __init__(self, policy: Any = None) -> None:
        self.answers: dict[str, list[int]] = {}
        self.policy = policy

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        self.answers |= {str(r.task.prompt): list(r.task.reference) for r in rollouts}
        return {"remembered": float(len(self.answers))}

    def state_dict(self) -> dict[str, Any]:
        return {"answers": dict(self.answers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.answers = dict(state["answers"])


class Remembering(SystemWrapper):
    """A speller that says what its memory holds."""

    parts: ClassVar[tuple[str, ...]] = ("policy", "memory", "again")

    def __init__(self, policy: Any, memory: Any) -> None:
        self.policy, self.memory, self.again = policy, memory, policy

    def act(
        self, tasks: Sequence[Task], n: int, *, key: tuple[int, ...] = (0,), mode: Mode = "train", greedy: bool = False
    ) -> list[Rollout]:
        rollouts: list[Rollout] = self.policy.act(tasks, n, key=key, mode=mode, greedy=greedy)
        for rollout in rollouts:
            rollout.output = tuple(self.memory.answers.get(str(rollout.task.prompt), rollout.output))
        return rollouts


class Keeping(Gate):
    """Looks at the actors' answers and always gives the same decision."""

    def __init__(self, decision: Any = "keep") -> None:
        self.decision = decision
        self.heights: list[dict[str, float]] = []

    def __call__(self, candidate: Any, against: Mapping[str, Any]) -> Verdict:
        self.heights.append({name: height(actor) for name, actor in {"candidate": candidate, **against}.items()})
        return Verdict(self.decision)


def height(actor: Any) -> float:
    """The share of right tokens."""
    scores = spelled([r.output for r in actor.act(QUESTIONS, 1, mode="evaluate")], QUESTIONS)
    return sum(scores) / len(scores)


def remembering(gate: Gate) -> tuple[Any, Any]:
    """A run in which the memory alone learns, and its system."""
    system = Remembering(TokenToy(len(QUESTIONS)), Memory())
    experiment = build(honest, 2, lambda *_, **__: gate, actor=system, learners={"memory": system.memory}, gate_every=1)
    return replace(experiment, evaluate=lambda actor: {"height": height(actor.evaluated())}), system


def test_a_memory_is_evaluated_gated_and_promoted_with_its_system(tmp_path: Path) -> None:
    gate, folder = Keeping(), folder_at(tmp_path / "run")
    experiment, system = remembering(gate)
    alone = height(system.bare())
    train(experiment, folder)
    assert alone < 0.6 and height(system.bare()) == alone
    told = folder.evaluations()
    assert (told["before"]["height"], told["after"]["height"]) == (alone, 1.0)
    assert gate.heights[-1] == {"candidate": 1.0, "base": alone, "promoted": gate.heights[0]["candidate"]}
    state = folder.load_checkpoint()
    assert state["promoted_actor"]["memory"] == system.memory.state_dict() and len(system.memory.answers) == 4
    assert state["base"]["memory"] == {"answers": {}}


def test_a_rollback_takes_the_memory_back_too(tmp_path: Path) -> None:
    experiment, system = remembering(Keeping("rollback"))
    train(experiment, folder_at(tmp_path / "run"))
    assert system.memory.answers == {}


def test_a_part_under_two_names_is_forked_saved_and_copied_once() -> None:
    policy = uneven()
    system = Remembering(policy, Memory(policy))
    fork = system.fork("fork")
    assert fork.policy is fork.again is fork.memory.policy is not policy, "also where a part holds it"
    assert not list(fork.policy.parameters()) and list(policy.parameters())
    assert set(system.state_dict()) == {"policy", "memory"}
    system.memory.answers["0"] = [1]
    uneven(policy, seed=1)
    assert fork.memory.answers == {}
    fork.copy_from(system)
    assert same(fork.state_dict(), system.state_dict())
    system.memory.answers["0"].append(2)
    assert fork.memory.answers == {"0": [1]}, "a copy is its own"


def test_what_cannot_be_mixed_is_refused() -> None:
    system = Remembering(uneven(), Memory())
    with pytest.raises(UsageError, match=r"the memory of a Remembering cannot be mixed: copy all of it, not 0\.5"):
        system.copy_from(system.fork("fork"), mix=0.5)


def test_scaffolding_is_dropped_by_forks_and_evaluation(tmp_path: Path) -> None:
    policy = uneven()
    shown = policy.encode(QUESTIONS, [task.reference for task in QUESTIONS])
    actor = Demonstrations(policy, shown)
    assert [r.output for r in actor.act(QUESTIONS, 3)] == [task.reference for task in QUESTIONS]
    plain = [r.output for r in policy.act(QUESTIONS, 3)]
    assert [r.output for r in actor.act(QUESTIONS, 3, mode="evaluate")] == plain
    assert actor.evaluated() is actor.bare() is policy and isinstance(actor.fork("fork"), TokenToy)
    gate, folder = Keeping(), folder_at(tmp_path / "run")
    learner = PolicyLearner(policy, WeightedImitation(), Optimisation(lr=0.1))
    train(build(honest, 1, lambda *_, **__: gate, actor=actor, learners={"policy": learner}, gate_every=1), folder)
    assert gate.heights[0]["candidate"] == height(policy) < 1.0
    assert same(folder.load_checkpoint()["promoted_actor"], policy.state_dict())


class AdaptAndReset(SystemWrapper):
    """Imitates its own first answer before it answers, and forgets that again."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def act(
        self, tasks: Sequence[Task], n: int, *, key: tuple[int, ...] = (0,), mode: Mode = "train", greedy: bool = False
    ) -> list[Rollout]:
        before = deepcopy(self.policy.state_dict())
        self.policy.module.requires_grad_(True)  # a fork's is not
        PolicyLearner(self.policy, WeightedImitation(), Optimisation(lr=1.0)).update(self.policy.act(tasks, 1, key=key))
        rollouts = [replace(r, version="adapted") for r in self.policy.act(tasks, n, key=key, mode=mode)]
        self.policy.load_state_dict(before)
        return rollouts


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """A run that is evaluated after every iteration goes as one that is not, and what it looked at did act."""
    runs = []
    for every in (0, 1):
        folder, experiment = folder_at(tmp_path / f"run-{every}"), build(honest, 3)
        (stage,) = experiment.stages
        system = AdaptAndReset(stage.actor)
        other = system.act(QUESTIONS, 4, mode="evaluate")
        assert [r.output for r in other] != [r.output for r in system.policy.act(QUESTIONS, 4)]
        stages = [replace(stage, actor=system)]
        train(replace(experiment, stages=stages, evaluate_every=every), folder)
        runs.append(folder.load_checkpoint())
    assert same(*runs)


def test_acting_in_evaluate_mode_leaves_every_state_as_it_was() -> None:
    speaker = TokenPolicy.of(*text("llama"), horizon=3)
    questions = [Task("a", "how many ?")]
    actors: list[tuple[Any, list[Task]]] = [
        (Remembering(uneven(), Memory()), QUESTIONS),
        (AdaptAndReset(uneven()), QUESTIONS),
        (Conversation(speaker, Script(("no ?",)), turns=2), questions),
        (shapes_policy(), list(PICTURES)),
    ]
    for actor, tasks in actors:
        before, modes = deepcopy(actor.state_dict()), [m.training for m in bare(actor).module.modules()]
        assert len(actor.act(tasks, 2, mode="evaluate")) == 2 * len(tasks)
        assert same(actor.state_dict(), before), type(actor).__name__
        assert [m.training for m in bare(actor).module.modules()] == modes
        assert all(r.graph is None for r in actor.act(tasks, 1, mode="evaluate"))


def bare(actor: Any) -> Any:
    return actor.bare()


def test_the_report_shows_the_system_and_beside_it_the_policy_alone() -> None:
    system = Remembering(uneven(), Memory())
    system.memory.update([SimpleNamespace(task=task) for task in QUESTIONS])  # type: ignore[list-item]
    questions = SimpleNamespace(held_out=QUESTIONS, verify=spelled, blind={}, small_world=True)
    setting: Any = SimpleNamespace(questions=questions, verify=spelled, config=SimpleNamespace(samples=0))
    told = evaluate_answers(setting, system)
    assert told["outcomes"]["true"]["success"] == [1, 1]
    right = spelled([r.output for r in system.policy.act(QUESTIONS, 1, key=(2**31,))], QUESTIONS)
    alone = [told["figures"][category]["policy alone"] for category in ("true", "lie")]
    assert alone == [sum(right[i : i + 2]) / 2 for i in (0, 2)] and alone != [1.0, 1.0]
    assert "policy alone" not in evaluate_answers(setting, system.policy)["figures"]["true"]
    scaffolded = Demonstrations(system.policy, [])
    assert "policy alone" not in evaluate_answers(setting, scaffolded)["figures"]["true"]


# --- q: nothing is swallowed ----------------------------------------------------------------------


def test_unknown_keywords_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'widnow'"):
        shapes_policy().act(PICTURES, 1, widnow=2)  # type: ignore[call-arg]
    stage: Any = Stage
    with pytest.raises(TypeError, match="unexpected keyword argument 'widnow'"):
        stage(widnow=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        TokenPolicy.of(*text("llama"), horizon=3).act([Task("a", "how many ?")], 1, temprature=2)  # type: ignore[call-arg]


def test_a_greedy_picture_has_no_noise_but_that_of_the_start() -> None:
    policy = shapes_policy()
    one, again = (policy.act(PICTURES, 1, key=(3,), greedy=True) for _ in range(2))
    assert all(not bool(r.mask.any()) for r in one)
    assert all(torch.equal(a.output, b.output) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0].output, policy.act(PICTURES, 1, key=(3,))[0].output)
