"""What the loop asks for, by whole runs: players, other contexts, rounds without a reward, families, callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from autotelic.errors import UsageError
from autotelic.families import GROUND_TRUTH
from autotelic.rewards.reward import Reward
from autotelic.trainers.actors import Actor, Demonstrations, Game
from autotelic.trainers.advantages import ReinforcePlusPlus, grpo
from autotelic.trainers.contracts import Learner
from autotelic.trainers.gates import BestSoFar, NonInferiority
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.loop import OutOfTime, train
from autotelic.trainers.objectives import PPOClip, Reinforce
from autotelic.trainers.runs.callbacks import Callback, RunInfo
from autotelic.trainers.scoring import RewardError
from autotelic.types import Batch, Decisions, Mode, Rollout, Task, Verdict

from .test_contracts import QUESTIONS, Keeping, Memory, attempts, gradient, uneven
from .test_loop import always, assert_same_run, failing
from .toy_run import build, folder_at, honest, spelled
from .toys import TokenToy

# --- b: players -----------------------------------------------------------------------------------


class Spellers(Game):
    """Two players spell the same words, one after the other."""

    parts: ClassVar[tuple[str, ...]] = ("policy", "rival")
    players = ("first", "second")

    def __init__(self, judged: str = "first") -> None:
        self.both = {name: TokenToy(len(QUESTIONS)) for name in self.players}
        self.policy, self.rival, self.judged = self.both[judged], self.both["second"], judged

    def play(self, tasks: Sequence[Task], n: int, *, key: tuple[int, ...], **sampling: Any) -> list[Rollout]:
        rollouts = []
        for player, policy in self.both.items():
            for rollout in policy.act(tasks, n, key=(*key, player), **sampling):
                rollout.player = player
                rollouts.append(rollout)
        return rollouts


def learners(game: Any, **players: Any) -> dict[str, PolicyLearner]:
    how = Optimisation(lr=0.1)
    return {
        name: PolicyLearner(policy, PPOClip(), how, advantage=grpo(), players=players.get(name, (name,)))
        for name, policy in game.both.items()
    }


def paid(second: Callable[[float], float | None]) -> Any:
    """Right tokens for the first player; what ``second`` makes of them for the other."""

    def reward(players: Sequence[str], **columns: Any) -> list[float | None]:
        scores = spelled(**columns)
        return [second(s) if player == "second" else s for s, player in zip(scores, players, strict=True)]

    return reward


def played(path: Path, second: Callable[[float], float | None], judged: str = "first") -> tuple[Any, Any]:
    game, folder = Spellers(judged), folder_at(path)
    train(build(paid(second), 3, None, actor=game, learners=learners(game)), folder)
    return game, folder


def test_each_player_learns_from_its_own_rewards_alone(tmp_path: Path) -> None:
    runs = [played(tmp_path / str(i), second)[0] for i, second in enumerate((lambda s: s, lambda s: -s))]
    first, second = ([run.both[name].module.weight for run in runs] for name in ("first", "second"))
    assert torch.equal(*first) and not torch.equal(*second)
    assert bool(first[0].any())


def test_metrics_say_whose_they_are(tmp_path: Path) -> None:
    _, folder = played(tmp_path / "run", lambda s: 7.0 + s)
    (row, *_) = folder.metrics()
    assert {"first/objective/loss", "second/objective/loss", "first/rollouts"} <= row.keys()
    assert row["first/rollouts"] == row["second/rollouts"] == 16
    assert row["category/first/true"] <= 1 and row["category/second/true"] >= 7 and "category/true" not in row


def test_a_player_without_a_reward_is_skipped_while_the_other_learns(tmp_path: Path) -> None:
    game, folder = played(tmp_path / "run", lambda s: None)
    assert not bool(game.both["second"].module.weight.any()) and bool(game.both["first"].module.weight.any())
    told = [(row["first/learned"], row["second/learned"], row["rounds/idle"]) for row in folder.metrics()]
    assert told == [(1, 0, 0)] * 3


def test_players_are_not_compared_with_each_other() -> None:
    """Each player's four are alike, so that nobody is better than anybody it is compared with."""
    game = Spellers()
    rollouts = game.act(QUESTIONS[:1], 4)
    for rollout in rollouts:
        rollout.scores["total"] = float(rollout.player == "first")
    batch = game.policy.collate(rollouts)
    assert batch.groups.sum(1).tolist() == [4, 4] and not bool(grpo()(batch).any())
    assert [r.group_key for r in rollouts[::4]] == ["first/train-true-0", "second/train-true-0"]


@pytest.mark.parametrize("judged", ["first", "second"])
def test_one_player_is_evaluated_gated_and_copied_with_all(judged: str) -> None:
    game = Spellers(judged)
    uneven(game.both["first"])
    uneven(game.both["second"], seed=1)
    rollouts = game.act(QUESTIONS, 2, mode="evaluate")
    alone = game.both[judged].act(QUESTIONS, 2)
    assert [(r.player, r.output) for r in rollouts] == [(judged, r.output) for r in alone]
    assert game.bare() is game.both[judged]
    with pytest.raises(TypeError, match="widnow"):
        Spellers.act(_Strict(), QUESTIONS, 1, mode="evaluate", widnow=1)  # type: ignore[arg-type]


class _Strict(Spellers):
    def __init__(self) -> None:
        super().__init__()
        self.policy = Wordless()


class Wordless(Actor):
    """Says the right words, without any weights."""

    def act(
        self, tasks: Sequence[Task], n: int, *, key: tuple[int, ...] = (0,), mode: Mode = "train", greedy: bool = False
    ) -> list[Rollout]:
        return [Rollout.plain(task, tuple(task.reference)) for task in tasks for _ in range(n)]


def test_a_learner_of_a_game_says_whose_rollouts_it_learns_from() -> None:
    game = Spellers()
    for chosen, message in (
        (None, "the learner 'second' names no players: of first, second, whose rollouts are its"),
        (("thrid",), "the learner 'second' names the player 'thrid': there is first, second"),
    ):
        with pytest.raises(UsageError, match=message):
            build(honest, 1, None, actor=game, learners=learners(game, second=chosen))
        scaffolded = Demonstrations(game, [])
        with pytest.raises(UsageError, match=message):
            build(honest, 1, None, actor=scaffolded, learners=learners(game, second=chosen))
    assert build(honest, 1, None, actor=game, learners=learners(game, second="all"))


def test_a_rollout_of_nobody_is_refused() -> None:
    game = Spellers()
    game.both["third"] = TokenToy(len(QUESTIONS))
    with pytest.raises(UsageError, match="Spellers returned a rollout of 'third'"):
        game.act(QUESTIONS, 1)


# --- d: trained in another context than sampled ---------------------------------------------------


class Rereading(TokenToy):
    """Trains in the context of ``train_task``."""

    def collate(self, rollouts: Sequence[Rollout], decisions: Decisions = "sampled") -> Batch:
        batch = super().collate(rollouts, decisions)
        words = torch.tensor([[(r.train_task or r.task).prompt] for r in rollouts])
        return replace(batch, payload={**batch.payload, "task": words})


def elsewhere(policy: Any) -> list[Rollout]:
    """Scored attempts at words 0 and 1, to be trained as attempts at 2 and 3, with senseless log-probabilities."""
    rollouts = attempts(policy, [1.0, 0.0, 0.3, 0.6])
    for row, rollout in enumerate(rollouts):
        rollout.train_task, rollout.log_probs = QUESTIONS[2 + row // 2], torch.full((3,), -9.0 - row)
    return rollouts


def test_the_first_ratio_is_one_where_training_reads_another_context() -> None:
    policy = uneven(Rereading(len(QUESTIONS)))
    learner = PolicyLearner(policy, PPOClip(), Optimisation(lr=0.1), advantage=grpo())
    metrics = learner.update(elsewhere(policy))
    assert (metrics["objective/ratio_max"], metrics["objective/clip_fraction"]) == (1.0, 0.0)
    here = [replace(rollout, train_task=None) for rollout in elsewhere(policy)]
    assert learner.update(here)["objective/ratio_max"] > 100, "where it is not, who sampled is the centre"


def test_the_gradient_is_that_of_the_context_of_training() -> None:
    policy = uneven(Rereading(len(QUESTIONS)))
    rollouts = elsewhere(policy)
    there = [replace(rollout.task, prompt=2 + row // 2) for row, rollout in enumerate(rollouts)]
    encoded = policy.encode(there, [rollout.output for rollout in rollouts])
    now = policy.forward_decisions(policy.collate(encoded), frozenset(), {}).log_probs
    gaps = [(0.5, 1.0), (-0.5, 1.0), (-0.15, 0.3), (0.15, 0.3)]
    advantage = torch.tensor([gap / (spread / 2**0.5 + 1e-6) for gap, spread in gaps])
    (by_hand,) = torch.autograd.grad(-(advantage[:, None] * now).mean(), policy.module.weight)
    torch.testing.assert_close(gradient(policy, rollouts, PPOClip(), advantage=grpo()), by_hand)
    rows = by_hand.view(4, -1).abs().amax(1)
    assert rows[:2].tolist() == [0, 0] and float(rows[2:].min()) > 1e-4


@pytest.mark.parametrize("objective", [PPOClip(centre="behaviour"), PPOClip(importance_cap=2.0)])
def test_a_ratio_to_the_context_of_sampling_is_refused(objective: Any) -> None:
    policy = uneven(Rereading(len(QUESTIONS)))
    learner = PolicyLearner(policy, objective, Optimisation(lr=0.1), advantage=grpo())
    with pytest.raises(UsageError, match=r'trained in another context .* clip around "proximal"'):
        learner.update(elsewhere(policy))
    learner.update([replace(rollout, train_task=None, version="other") for rollout in elsewhere(policy)])


# --- h: rounds without a reward -------------------------------------------------------------------


def every(rounds: int) -> Any:
    """A reward that applies in every so many-th round."""
    calls = []

    def reward(**columns: Any) -> list[float | None]:
        calls.append(1)
        scores = spelled(**columns)
        return [*scores] if len(calls) % rounds == 0 else [None] * len(scores)

    return reward


def test_rounds_without_a_reward_are_skipped_counted_and_told(tmp_path: Path) -> None:
    folder, experiment = folder_at(tmp_path / "run"), build(every(4), 9, None)
    train(experiment, folder)
    rows = folder.metrics()
    assert [row["rounds/idle"] for row in rows] == [1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert [row["learned"] for row in rows] == [float(idle == 0) for idle in (1, 2, 3, 0, 1, 2, 3, 0, 1)]
    assert [(a["alarm"], a["iteration"]) for a in folder.read("alarms")] == [("nobody learned", 1)]
    (stage,) = experiment.stages
    assert stage.learners["policy"].updates == 2  # type: ignore[attr-defined]


def test_ten_rounds_in_a_row_without_a_reward_end_the_run(tmp_path: Path) -> None:
    """Resumed in between as well."""
    folder = folder_at(tmp_path / "run")
    train(build(every(99), 6, None), folder)
    with pytest.raises(UsageError, match=r"^nobody learned in 10 rounds in a row: .*$"):
        train(build(every(99), 30, None), folder, resume=True)
    assert [row["rounds/idle"] for row in folder.metrics()] == list(range(1, 10))
    train(build(every(10), 12, None), folder_at(tmp_path / "other"))


# --- l: systems without weights -------------------------------------------------------------------


def test_a_system_without_weights_runs_without_tensors_of_its_own(tmp_path: Path) -> None:
    memory, folder = Memory(), folder_at(tmp_path / "run")
    train(build(honest, 2, actor=Wordless(), learners={"memory": memory}, gate_every=1), folder)
    assert memory.answers == {str(task.prompt): list(task.reference) for task in QUESTIONS}
    assert [row["reward"] for row in folder.metrics()] == [1.0, 1.0]
    assert folder.metrics()[0]["category/true"] == 1.0 and folder.evaluations()["after"]["spelled"]["lie"] == 1.0
    assert folder.load_checkpoint()["now"]["memory"] == memory.state_dict()
    with pytest.raises(RewardError):
        train(build(failing(honest, 0), 1, None, actor=Wordless(), learners={}), folder_at(tmp_path / "kept"))


def test_a_policy_cannot_be_trained_on_them() -> None:
    learner = PolicyLearner(TokenToy(4), Reinforce(), Optimisation(), advantage=ReinforcePlusPlus())
    rollouts = Wordless().act(QUESTIONS, 2)
    for rollout in rollouts:
        rollout.scores["total"] = 1.0
    with pytest.raises(UsageError, match=r"^the rollout of train-true-0 holds no decision to train TokenToy on$"):
        learner.update(rollouts)


# --- p: what a judge and a reward were made of ----------------------------------------------------


def of(families: set[str] | None) -> Any:
    """The share of right tokens, by another name."""

    def scored(**columns: Any) -> list[float]:
        return spelled(**columns)

    return scored if families is None else Reward(scored, families=families)


def gated(judge: Any, reward: Any) -> Any:
    return build(reward, 1, lambda probes, *_, **__: NonInferiority(probes, judge))


def facts(path: Path, experiment: Any) -> Any:
    folder = folder_at(path)
    train(experiment, folder)
    return folder.read_json("config")


def test_a_proxy_of_the_family_that_trains_is_no_judge() -> None:
    both = 0.5 * of({GROUND_TRUTH}) + of({"votes"})
    for judge, reward in ((of({"votes"}), of({"votes"})), (of({"votes", "clip"}), both), (both, of({"votes"}))):
        with pytest.raises(UsageError, match="the judge and the training reward are both of the family 'votes'"):
            gated(judge, reward)
    assert gated(of({"clip"}), both)


def test_labels_that_a_gate_reads_are_counted(tmp_path: Path) -> None:
    """Eighty probes have a right answer; both may know it, since they are not trained on."""
    told = facts(tmp_path / "labelled", gated(of({GROUND_TRUTH}), of({GROUND_TRUTH})))
    assert told["label_account"] == "gate_labels: 80" and told["judges"] == ["ground truth"]
    told = facts(tmp_path / "free", gated(of({"clip"}), of({GROUND_TRUTH})))
    assert told["label_account"] == "gate_labels: none" and told["judges"] == ["clip"]


def test_what_does_not_say_what_it_is_is_told_as_unchecked(tmp_path: Path) -> None:
    for name, judge, reward in (("judge", of(None), of({"clip"})), ("reward", of({"clip"}), of(None))):
        (line,) = facts(tmp_path / name, gated(judge, reward))["judges"]
        assert line.endswith("; independence not checked"), name
        assert ("test_contracts_of_runs.py" in line) == (name == "judge")


# --- callbacks, checkpoints, time -----------------------------------------------------------------

SMALL = (int, float, str, bool, Path, type(None))


class Listener(Callback):
    """Writes down what it is told, and refuses what is no small value."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def on_start(self, run: RunInfo) -> None:
        assert small(vars(run))
        self.told.append(("start", run.recipe, run.max_steps, run.iteration))

    def on_iteration(self, iteration: int, metrics: Mapping[str, float]) -> None:
        assert small(metrics) and "reward" in metrics
        self.told.append(("iteration", iteration))

    def on_evaluation(self, iteration: int, name: str, evaluation: Mapping[str, Any]) -> None:
        assert small(evaluation)
        self.told.append(("evaluation", iteration, name))

    def on_gate(self, iteration: int, verdict: Verdict) -> None:
        self.told.append(("gate", iteration, verdict.decision))

    def on_end(self, error: BaseException | None = None) -> None:
        self.told.append(("end", type(error).__name__))


def small(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(small(v) for v in value.values())
    return all(map(small, value)) if isinstance(value, list | tuple) else isinstance(value, SMALL)


def test_callbacks_are_told_in_order(tmp_path: Path) -> None:
    listener, folder = Listener(), folder_at(tmp_path / "run")
    experiment = replace(
        build(honest, 3, lambda *_, **__: Keeping("wait"), gate_every=2), callbacks=[listener], evaluate_every=2
    )
    with pytest.raises(RewardError):
        (stage,) = experiment.stages
        train(replace(experiment, stages=[replace(stage, reward=failing(honest, 2))]), folder)
    first, listener.told = listener.told, []
    assert first == [
        ("start", "toy", 3, 0),
        ("evaluation", 0, "before"),
        ("iteration", 1),
        ("gate", 2, "wait"),
        ("iteration", 2),
        ("evaluation", 2, "iteration-000002"),
        ("end", "RewardError"),
    ]
    again = build(honest, 3, lambda *_, **__: Keeping("wait"), gate_every=2)
    train(replace(again, callbacks=[listener]), folder, resume=True)
    assert listener.told == [
        ("start", "toy", 3, 2),
        ("gate", 3, "wait"),
        ("iteration", 3),
        ("evaluation", 3, "after"),
        ("end", "NoneType"),
    ]


@pytest.mark.parametrize(
    ("save_every", "keep_last", "left"), [(1, 2, [4, 5]), (2, 2, [4, 5]), (2, 3, [2, 4, 5]), (9, 1, [0, 5])]
)
def test_checkpoints_are_written_and_kept_as_asked(
    save_every: int, keep_last: int, left: list[int], tmp_path: Path
) -> None:
    folder = folder_at(tmp_path / "run")
    train(replace(build(honest, 5, None), save_every=save_every, keep_last=keep_last), folder)
    assert folder.checkpoints() == [f"iteration-{i:06d}" for i in left]


def test_what_a_gate_lets_through_is_saved_at_once_and_stays(tmp_path: Path) -> None:
    """Kept after two iterations, waiting from then on, which is not saved; and nothing is due."""
    folder = folder_at(tmp_path / "run")
    experiment = build(failing(honest, 5), 8, always("keep", "wait"), gate_every=2)
    with pytest.raises(RewardError):
        train(replace(experiment, save_every=99, keep_last=1), folder)
    assert folder.checkpoints() == ["iteration-000000", "iteration-000002"], "and what a divergence would go back to"
    assert folder.load_checkpoint("best")["iteration"] == 2


def nothing_better(probes: Any, *_: Any, **__: Any) -> BestSoFar:
    """A gate that waits, and says after how many looks."""
    return BestSoFar(probes, lambda outputs, **_: [0.0] * len(outputs), patience=9)


@pytest.mark.parametrize("gate", [None, nothing_better])
def test_a_run_resumes_bit_for_bit_from_a_sparse_checkpoint(gate: Any, tmp_path: Path) -> None:
    """It breaks off in the fifth iteration, having saved the third; the fourth is done again, and so is the look of a
    gate that waits."""
    whole, cut = folder_at(tmp_path / "whole"), folder_at(tmp_path / "cut")
    made = partial(build, iterations=6, gate=gate, gate_every=1)
    train(replace(made(honest), save_every=3), whole)
    with pytest.raises(RewardError):
        train(replace(made(failing(honest, 4)), save_every=3), cut)
    assert cut.load_checkpoint()["iteration"] == 3 and len(cut.metrics()) == 4
    train(replace(made(honest), save_every=3), cut, resume=True)
    assert_same_run(cut, whole)


def test_out_of_time_a_run_saves_stops_and_goes_on(tmp_path: Path) -> None:
    whole, short, listener = folder_at(tmp_path / "whole"), folder_at(tmp_path / "short"), Listener()
    train(replace(build(honest, 4, None), save_every=3), whole)
    limited = replace(build(honest, 4, None), save_every=3, max_hours=1e-9, callbacks=[listener])
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(limited, short)
    assert stopped.type is OutOfTime and listener.told[-1] == ("end", "OutOfTime")
    assert short.load_checkpoint()["iteration"] == 1 and "after" not in short.evaluations()
    train(replace(build(honest, 4, None), save_every=3), short, resume=True)
    assert_same_run(short, whole)


@pytest.mark.parametrize("setting", [{"save_every": 0}, {"keep_last": 0}])
def test_checkpoints_never_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="save_every and keep_last are 1 or more"):
        replace(build(honest), **setting)


# --- what lacks a part of its contract ------------------------------------------------------------


class HalfALearner:
    players = None
    sees_own_rollouts_only = False
    reads = ()

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        return {}

    def check(self, group_size: int) -> None: ...

    def repair(self, verdict: Verdict) -> dict[str, float]:
        return {}


class HalfAnActor:
    players = ("policy",)

    def act(self, tasks: Sequence[Task], n: int, **_: Any) -> list[Rollout]:
        return []


def test_what_lacks_a_method_is_refused_when_the_stage_is_built() -> None:
    (stage,) = build().stages
    mine = "lacks load_state_dict, slow_down, state_dict: subclass autotelic.trainers.contracts.Learner, which has .*"
    with pytest.raises(UsageError, match=rf"^the learner 'mine' \(HalfALearner\) {mine}$"):
        replace(stage, learners={"mine": HalfALearner()})
    with pytest.raises(UsageError, match=r"^the actor \(HalfAnActor\) lacks bare, copy_from, evaluated, fork, "):
        replace(stage, actor=HalfAnActor())
    with pytest.raises(UsageError, match=r"^the curriculum \(Memory\) lacks sample: "):
        replace(stage, curriculum=Memory())
    with pytest.raises(UsageError, match=r"^the gate \(function\) lacks judge, labels, "):
        replace(stage, gate=lambda *_: Verdict("keep"))
    with pytest.raises(UsageError, match=r"^the policy \(Wordless\) lacks backward, capabilities, collate, "):
        PolicyLearner(Wordless(), Reinforce(), Optimisation())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"abstract method '?update"):
        type("Nothing", (Learner,), {})()
