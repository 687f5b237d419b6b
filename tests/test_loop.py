"""The loop on toys: what a run leaves behind, kills, interrupts, rollbacks, and what is refused at build."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.rewards.reward import Reward
from autotelic.trainers import learner as learning
from autotelic.trainers.advantages import ReinforcePlusPlus, drop_zero_spread, grpo
from autotelic.trainers.gates import CHUNK, BestSoFar, Gate
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.loop import Stage, train
from autotelic.trainers.objectives import Entropy, KLPenalty, PPOClip, Reinforce, Term
from autotelic.trainers.policy import TorchPolicy
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.trainers.scoring import RewardError, score
from autotelic.types import Actor, Batch, Verdict

from .toy_run import ITERATIONS, Moments, build, folder_at, honest, lying, spelled, spelling_task
from .toys import DenoiserToy, TokenToy

ROOT = Path(__file__).parents[1]


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, tensors and all."""
    if isinstance(a, Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    for name in ("latest", "best"):
        assert same(one.load_checkpoint(name), other.load_checkpoint(name)), name
    assert untimed(one.metrics()) == untimed(other.metrics())
    for name in ("gate", "alarms"):
        assert one.read(name) == other.read(name), name
    assert one.evaluations() == other.evaluations()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, int]:
    """Four iterations at one go, with a repair in the third, and how many calls the third makes."""
    folder, moments = folder_at(tmp_path_factory.mktemp("straight") / "run"), Moments()
    train(build(guard=moments.guard), folder)
    return folder, moments.calls


def test_a_run_leaves_everything_behind(straight: tuple[RunFolder, int]) -> None:
    folder, _ = straight
    assert [row["iteration"] for row in folder.metrics()] == [1, 2, 3, 4]
    wanted = {"reward", "rollouts", "groups/zero_spread", "objective/loss", "curriculum/horizon_share", "category/true"}
    assert wanted | {"time/act", "time/learn"} <= set(folder.metrics()[0])
    shares = [round(3 * row["curriculum/horizon_share"]) for row in folder.metrics()]
    assert shares == [2, 2, 3, 2]  # rolled back in the third
    assert list(folder.evaluations()) == ["before", "after"]
    assert RunFolder.open(folder.path).config == {"iterations": ITERATIONS}
    assert folder.read_json("config")["label_account"] == "gate_labels: none"
    state = folder.load_checkpoint("latest")
    assert state["iteration"] == ITERATIONS and set(state["now"]) == {"policy", "curriculum"}


def test_a_clean_run_learns_and_raises_no_alarm(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "run")
    train(build(honest, iterations=10), folder)
    before, after = (folder.evaluations()[name]["spelled"] for name in ("before", "after"))
    assert sum(after.values()) > sum(before.values()) + 0.5
    assert {row["decision"] for row in folder.read("gate")} == {"keep"}
    assert folder.read("alarms") == []


def failing(reward: Any, after: int) -> Any:
    """The reward until it was called so often, then an error."""
    calls = []

    @wraps(reward)
    def fragile(**columns: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise ZeroDivisionError("no tokens")
        return reward(**columns)

    return fragile


# ------------------------------------------------------------------------------------------------ resume


def run_copies(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "tests.toy_run", *arguments], cwd=ROOT, check=True, capture_output=True)


def test_killed_runs_resume_bit_for_bit(straight: tuple[RunFolder, int], tmp_path: Path) -> None:
    """SIGKILL at random calls inside the iteration that ends in a repair, between any two of its file operations."""
    folder, calls = straight
    assert [row["decision"] for row in folder.read("gate")] == ["repair", "keep"]
    chance = random.Random(2)
    early = [str(chance.randrange(1, calls // 2)) for _ in range(2)]
    # Most of the second half is saving. A copy may make a few calls less: other paths, other garbage.
    saving = [str(chance.randrange(calls // 2, calls - 500)) for _ in range(6)]
    moments = early + saving
    run_copies("kill", str(tmp_path), *moments)
    for moment in moments:
        assert_same_run(RunFolder.open(tmp_path / moment), folder)


def test_ctrl_c_ends_after_the_iteration_and_the_run_goes_on(straight: tuple[RunFolder, int], tmp_path: Path) -> None:
    run_copies("interrupt", str(tmp_path / "run"))
    assert_same_run(RunFolder.open(tmp_path / "run"), straight[0])


def test_a_second_stage_resumes_too(tmp_path: Path) -> None:
    """The second stage's gate has the policy that the stage began with as its base, also after a resume."""

    def two_stages(reward: Any = honest) -> Any:
        experiment = build(honest, iterations=2)
        (first,) = experiment.stages
        second = replace(first, steps=3, reward=reward, gate_every=1)
        return replace(experiment, stages=[replace(first, gate=None), second], evaluate_every=1)

    whole, cut = folder_at(tmp_path / "whole"), folder_at(tmp_path / "cut")
    train(two_stages(), whole)
    with pytest.raises(RewardError):
        train(two_stages(failing(honest, after=1)), cut)
    assert cut.load_checkpoint()["iteration"] == 3
    train(two_stages(), cut, resume=True)
    names = ["iteration-000001", "iteration-000003", "iteration-000004"]
    assert list(whole.evaluations()) == ["before", *names, "after"]
    assert len(whole.read("gate")) == 3
    assert_same_run(cut, whole)


# ---------------------------------------------------------------------------------------------- rollback


class Told(Gate):
    """A gate that gives these answers in turn, then the last for ever."""

    def __init__(self, *decisions: str) -> None:
        self.left: list[Any] = list(decisions)

    def __call__(self, candidate: Actor, against: Mapping[str, Actor]) -> Verdict:
        answer = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return Verdict(answer, "told to", ("lie",))


def always(*decisions: str) -> Any:
    """Makes such a gate, whatever a run gives it."""
    return lambda *_, **__: Told(*decisions)


def test_rollback_restores_every_learner_to_the_bit(tmp_path: Path) -> None:
    experiment = build(gate=None)
    (stage,) = experiment.stages
    parts = {**stage.learners, "curriculum": stage.curriculum}
    start = {name: deepcopy(part.state_dict()) for name, part in parts.items()}
    folder = folder_at(tmp_path / "run")
    train(replace(experiment, stages=[replace(stage, gate=Told("rollback"), gate_every=4)]), folder)
    metrics = folder.metrics()
    assert {name: part.state_dict() for name, part in parts.items()}.keys() == start.keys()
    assert all(same(part.state_dict(), start[name]) for name, part in parts.items())
    again = folder_at(tmp_path / "again")
    train(experiment, again)  # the same objects, rolled back, with the same random numbers
    assert untimed(again.metrics()) == untimed(metrics)
    assert not same(stage.learners["policy"].state_dict(), start["policy"])


def test_a_kept_candidate_is_what_later_rollbacks_restore(tmp_path: Path) -> None:
    kept, folder = folder_at(tmp_path / "kept"), folder_at(tmp_path / "run")
    train(build(iterations=2, gate_every=1, gate=always("keep")), kept)
    train(build(iterations=4, gate_every=1, gate=always("keep", "keep", "rollback")), folder)
    state = folder.load_checkpoint("best")
    assert same(state["now"], kept.load_checkpoint("best")["now"])
    assert same(state["promoted_actor"], state["now"]["policy"]["policy"])
    assert not same(state["base"], state["promoted_actor"])


def test_best_is_what_the_gate_last_let_through(tmp_path: Path) -> None:
    """Looks after iterations 2 and 4, and a run that breaks off in the fourth."""
    folder, experiment = folder_at(tmp_path / "run"), build(honest, iterations=5, gate_every=2)
    (stage,) = experiment.stages
    with pytest.raises(RewardError):
        train(replace(experiment, stages=[replace(stage, reward=failing(honest, after=3))]), folder)
    assert [folder.load_checkpoint(which)["iteration"] for which in ("best", "latest")] == [2, 3]
    best = folder.load_checkpoint("best")
    assert same(best["promoted_actor"], best["now"]["policy"]["policy"])


# --------------------------------------------------------------------------------- waiting and stopping


def test_who_waits_is_neither_promoted_nor_undone(tmp_path: Path) -> None:
    """The first is kept, the second waits, and the run breaks off in the third iteration."""
    kept, waiting = folder_at(tmp_path / "kept"), folder_at(tmp_path / "waiting")
    for folder, decisions in ((kept, ["keep"]), (waiting, ["keep", "wait"])):
        with pytest.raises(RewardError):
            train(build(failing(honest, after=2), gate_every=1, gate=always(*decisions)), folder)
    once = folder_at(tmp_path / "once")
    train(build(honest, iterations=1, gate_every=1, gate=always("keep")), once)
    latest, best = (waiting.load_checkpoint(which) for which in ("latest", "best"))
    assert (latest["iteration"], best["iteration"]) == (2, 1)
    assert same(latest["now"], kept.load_checkpoint()["now"]), "it learns on from where it was"
    assert not same(latest["now"], best["now"])
    for state in (latest, best):
        assert same(state["promoted"], once.load_checkpoint()["now"])
        assert same(state["promoted_actor"], state["promoted"]["policy"]["policy"])


def test_who_still_waits_at_the_end_goes_back_to_what_was_kept(tmp_path: Path) -> None:
    once, folder = folder_at(tmp_path / "once"), folder_at(tmp_path / "run")
    train(build(honest, iterations=1, gate_every=1, gate=always("keep")), once)
    train(build(honest, iterations=3, gate_every=1, gate=always("keep", "wait")), folder)
    for which in ("latest", "best"):
        state = folder.load_checkpoint(which)
        assert state["iteration"] == 3 and same(state["now"], once.load_checkpoint()["now"])
    assert folder.evaluations()["after"]["spelled"] == once.evaluations()["after"]["spelled"]


def early(probes: Any, judge: Any, reward: Any = None, **_: Any) -> BestSoFar:
    return BestSoFar(probes, judge, reward=reward)


def test_a_stopped_run_ends_early_with_the_best_weights_and_says_so(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "run")
    train(build(honest, iterations=60, gate_every=1, gate=early), folder)
    rows, state = folder.read("gate"), folder.load_checkpoint()
    decisions = [row["decision"] for row in rows]
    assert decisions[-3:] == ["keep", "wait", "wait"] and len(decisions) < 60
    assert [row["stop"] for row in rows] == [False] * (len(rows) - 1) + [True]
    assert [row["iteration"] for row in folder.metrics()] == list(range(1, len(rows) + 1))
    assert (state["iteration"], state["step"]) == (len(rows), 60)
    assert same(folder.load_checkpoint("best"), state)
    best = folder_at(tmp_path / "best")
    train(build(honest, iterations=len(rows) - 2, gate_every=1, gate=early), best)
    assert same(state["now"], best.load_checkpoint()["now"])
    assert folder.evaluations()["after"]["spelled"] == best.evaluations()["after"]["spelled"]


def test_a_run_that_stops_early_resumes_to_the_same_end(tmp_path: Path) -> None:
    """It breaks off at a waiting candidate, or after it stopped and before its last evaluation."""
    whole = folder_at(tmp_path / "whole")
    train(build(honest, iterations=60, gate_every=1, gate=early), whole)
    end = len(whole.metrics())
    waiting = folder_at(tmp_path / "waiting")
    looks = -(-80 // CHUNK)  # calls for a gate's probes: the base's once, then each iteration's beside its own
    with pytest.raises(RewardError):
        train(build(failing(honest, looks + (end - 1) * (looks + 1)), iterations=60, gate_every=1, gate=early), waiting)
    assert waiting.read("gate")[-1]["decision"] == "wait"
    stopped = folder_at(tmp_path / "stopped")
    experiment = build(honest, iterations=60, gate_every=1, gate=early)
    with pytest.raises(RewardError):
        train(replace(experiment, evaluate=failing_evaluation(experiment.evaluate)), stopped)
    assert len(stopped.metrics()) == end and "after" not in stopped.evaluations()
    for folder in (waiting, stopped):
        train(build(honest, iterations=60, gate_every=1, gate=early), folder, resume=True)
        assert_same_run(folder, whole)


def failing_evaluation(evaluate: Any) -> Any:
    """The evaluation before, and an error afterwards."""
    calls: list[Actor] = []

    def once(actor: Actor) -> Any:
        calls.append(actor)
        if len(calls) > 1:
            raise RewardError("the judge is gone")
        return evaluate(actor)

    return once


# ---------------------------------------------------------------------------------------------- repair


def test_repair_quarantines_what_was_harmed_and_holds_on_to_demonstrations(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "run")
    experiment = build(iterations=3, gate_every=1, gate=always("repair", "keep"))
    train(experiment, folder)
    weights = [row.get("anchors/weight", 0.0) for row in folder.metrics()]
    assert weights == [0.0, 0.1, 0.1]
    assert [row["curriculum/open"] for row in folder.metrics()] == [2, 1, 1]
    assert all("category/lie" not in row for row in folder.metrics()[1:])
    (stage,) = experiment.stages
    assert stage.learners["policy"].anchors.categories == ("lie",)  # type: ignore[attr-defined]


def test_a_planted_harmful_reward_is_caught_and_repaired(straight: tuple[RunFolder, int], tmp_path: Path) -> None:
    """Where reward is one minus the judge the gate steps in; without it the category is ruined."""
    folder, _ = straight
    (repair,) = [row for row in folder.read("gate") if row["decision"] == "repair"]
    assert repair["harmed"] == ["lie"] and repair["iteration"] == 3
    assert [(row["alarm"], row["detail"][:4]) for row in folder.read("alarms")] == [("reward hacking", "lie:")]
    gated, free = folder_at(tmp_path / "gated"), folder_at(tmp_path / "free")
    train(build(iterations=12, gate_every=1), gated)
    train(build(iterations=12, gate=None), free)
    with_gate, without = (f.evaluations()["after"]["spelled"]["lie"] for f in (gated, free))
    assert with_gate > without + 0.2
    assert gated.evaluations()["after"]["spelled"]["true"] > 0.6


def test_a_run_that_fails_ends_with_rollbacks_alone(tmp_path: Path) -> None:
    """After ``repairs`` failures nothing is repaired any more, and the weights stay those last let through."""
    folder = folder_at(tmp_path / "run")

    def worse(tasks: list[Any], **columns: Any) -> list[float]:
        return [-s for s in spelled(tasks=tasks, **columns)]

    train(build(worse, iterations=16, gate_every=1), folder)
    decisions = [row["decision"] for row in folder.read("gate")]
    assert decisions.count("repair") == 1
    after = decisions[decisions.index("repair") + 1 :]
    assert after.count("rollback") >= 2 and after[-1] == "rollback"


# ------------------------------------------------------------------------------------------------ errors


def test_a_failing_reward_keeps_the_rollouts_of_its_iteration(tmp_path: Path) -> None:
    folder, experiment = folder_at(tmp_path / "run"), build(failing(honest, after=1), gate=None)
    with pytest.raises(RewardError, match=r"reward honest raised ZeroDivisionError: no tokens .*16 rollouts are kept"):
        train(experiment, folder)
    rollouts = folder.load_rollouts("failed-000001")
    (stage,) = experiment.stages
    actor: Any = stage.actor
    again = actor.act([r.task for r in rollouts[::4]], 4, key=(0, 1))
    assert [tuple(r.output) for r in rollouts] == [r.output for r in again]
    assert all(torch.equal(a.log_probs, b.log_probs) for a, b in zip(rollouts, again, strict=True))
    assert score(rollouts, honest)["reward"] >= 0
    train(build(honest, gate=None), folder, resume=True)
    assert len(folder.metrics()) == ITERATIONS


# ---------------------------------------------------------------------------------------- refused at build


@pytest.mark.parametrize(
    ("reward", "judge"),
    [
        (spelled, spelled),
        (Reward(spelled), spelled),
        (0.5 * Reward(honest) + Reward(spelled), Reward(spelled, "other")),
    ],
)
def test_a_judge_of_a_family_that_trains_is_refused(reward: Any, judge: Any) -> None:
    (stage,) = build(lying).stages
    gate = replace(stage.gate, judge=judge)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="both of the family 'spelling'"):
        replace(stage, reward=reward, gate=gate)


@pytest.mark.parametrize("advantage", [grpo(), ReinforcePlusPlus("group")], ids=["grpo", "reinforce++ baseline"])
def test_a_group_of_one_is_refused_with_a_group_relative_advantage(advantage: Any) -> None:
    (stage,) = build().stages
    learner = PolicyLearner(TokenToy(4), Reinforce(), Optimisation(), advantage=advantage)
    with pytest.raises(ValueError, match="2 or more per task, not 1"):
        replace(stage, learners={"policy": learner}, group_size=1)
    plain = PolicyLearner(TokenToy(4), Reinforce(), Optimisation(), advantage=ReinforcePlusPlus())
    assert isinstance(replace(stage, learners={"policy": plain}, group_size=1), Stage)


class ForwardOnly(DenoiserToy):
    capabilities = frozenset({"forward"})


@pytest.mark.parametrize(
    ("policy", "objective", "message"),
    [
        (DenoiserToy, PPOClip() - 0.01 * Entropy(), "Entropy needs entropy, .* DenoiserToy has exact, forward"),
        (ForwardOnly, PPOClip(), "PPOClip needs log_probs.* exact or composite; ForwardOnly has forward"),
        (ForwardOnly, Reinforce(), "Reinforce needs log_probs"),
        (ForwardOnly, PPOClip() + KLPenalty(estimator="exact"), "capability"),
        (DenoiserToy, PPOClip() + KLPenalty(), "KLPenalty needs log_probs:reference: pass references="),
    ],
)
def test_what_a_policy_lacks_is_refused_by_name(policy: type[TorchPolicy], objective: Term, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyLearner(policy(4), objective, Optimisation(), advantage=grpo())  # type: ignore[call-arg, arg-type]


def test_an_objective_without_its_advantage_is_refused() -> None:
    with pytest.raises(ValueError, match="PPOClip needs advantages: pass advantage="):
        PolicyLearner(TokenToy(4), PPOClip(), Optimisation())


def test_scored_rollouts_without_partners_do_not_stop_a_run() -> None:
    """None for three of a group's four leaves one that nobody can be compared with, and is left out; two are not."""
    policy = TokenToy(4)
    learner = PolicyLearner(policy, Reinforce(), Optimisation(), advantage=grpo())
    rollouts = policy.act([spelling_task("true", 0), spelling_task("lie", 0)], 4)
    for unscored, learned in ((3, 4), (2, 6)):
        for number, rollout in enumerate(rollouts):
            rollout.scores["total"] = None if number < unscored else float(number % 3)
        assert learner.update(rollouts)["rollouts"] == learned
    with pytest.raises(ValueError, match="sample 2 or more per task"):  # one from the start is a mistake, and told
        learner.update(rollouts[-1:])
    for rollout in rollouts:
        rollout.scores["total"] = None
    told = learner.update(rollouts)
    assert (told["rollouts"], told["steps/skipped"], told["learned"]) == (0.0, 0.0, 0.0)


def test_a_process_without_rollouts_takes_part_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of an advantage wait for every process: one row stands in, without decision, return or group."""
    seen: list[Batch] = []

    def elsewhere(counts: dict[str, float]) -> dict[str, float]:
        return {name: value + 2 for name, value in counts.items()}  # another process has two

    def recorded(batch: Batch) -> torch.Tensor:
        seen.append(batch)
        return grpo()(batch) + ReinforcePlusPlus()(batch)

    monkeypatch.setattr(learning, "reduce_counts", elsewhere)
    policy = TokenToy(4)
    before = [p.detach().clone() for p in policy.parameters()]
    assert PolicyLearner(policy, Reinforce(), Optimisation(), advantage=recorded).update([])["learned"] == 1.0
    assert all(map(torch.equal, policy.parameters(), before))
    (batch,) = seen
    assert batch.mask.tolist() == [[False]] and batch.segments.tolist() == batch.dims.tolist() == [[0]]
    assert batch.rewards["total"].shape == (1, 1) and batch.returns.isnan().all() and batch.groups.shape == (0, 1)
    assert recorded(batch).tolist() == [[0.0]]


def test_harm_without_demonstrations_is_answered_by_all_of_them() -> None:
    learner: Any = build().stages[0].learners["policy"]
    learner.repair(Verdict("repair", "a category that was never shown", ("unheard of",)))
    assert learner.anchors.categories == () and learner.anchors.weight == 0.1
    assert learner.anchors.backpropagate(learner.policy, (0,))["anchors/weight"] == 0.1
    learner.repair(Verdict("repair", "one that was", ("unheard of", "lie")))
    assert learner.anchors.categories == ("lie",)


def test_without_a_signal_only_anchors_and_regularisers_move_the_weights() -> None:
    """All scores equal: the clipped objective has no gradient, KL and entropy do, and so do anchors."""
    tasks = [spelling_task("true", 0), spelling_task("lie", 0)]

    def moved(objective: Term, **changes: Any) -> bool:
        (stage,) = build().stages
        own: Any = stage.learners["policy"]
        options = {"advantage": grpo(), "references": own.references} | changes
        learner = PolicyLearner(own.policy, objective, Optimisation(lr=0.1), **options)
        own.policy.module.weight.data[:, 0] = 0.5  # away from the reference, and not of the greatest entropy
        rollouts = own.policy.act(tasks, 4)
        for rollout in rollouts:
            rollout.scores["total"] = 0.5
        start = own.policy.module.weight.detach().clone()
        assert learner.update(rollouts)["groups/zero_spread"] == 1
        return not torch.equal(own.policy.module.weight, start)

    anchors = deepcopy(build().stages[0].learners["policy"].anchors)  # type: ignore[attr-defined]
    anchors.weight = 0.1
    assert not moved(PPOClip())
    assert moved(PPOClip() + 0.01 * KLPenalty()) and moved(PPOClip() - 0.001 * Entropy())
    assert not moved(PPOClip() + 0.01 * KLPenalty(), prepare=[drop_zero_spread])
    for prepare in ([], [drop_zero_spread]):
        assert moved(PPOClip(), anchors=anchors, prepare=prepare)
