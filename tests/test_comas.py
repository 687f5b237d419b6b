"""CoMAS: who speaks and hears what, what it pays, numbers by hand, and every knob."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotelic.cli import main
from autotelic.errors import UsageError
from autotelic.families import families_of
from autotelic.rewards.text.consensus import ViewConsistency
from autotelic.trainers.advantages import ReinforcePlusPlus
from autotelic.trainers.curricula import Uniform
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.loop import Experiment, Stage, train
from autotelic.trainers.objectives import PPOClip
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.trainers.scoring import score
from autotelic.trainers.shaping import PerTokenKL
from autotelic.types import Batch, Rollout, Task
from autotelic.vlm.discussion import (
    CRITIC,
    SCORER,
    SOLVER,
    ChatRoles,
    Discussion,
    Exchange,
    Interaction,
    Roles,
    SmallRoles,
    interaction,
)
from autotelic.vlm.recipes import comas

from .small_speaking import teach_quickly
from .toys import TokenToy

QUESTIONS = [Task(f"question{i}", i, horizon=3) for i in range(3)]
ROWS = 24


class Numbered(Roles):
    """Prompts are rows of a TokenToy, which differ with all that a role hears; the first token grades, 3 is noise."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, tuple[Exchange, ...]]] = []

    def solve(self, question: Task, history: Sequence[Exchange]) -> int:
        return self._row(SOLVER, question, tuple(history), ())

    def criticise(self, question: Task, history: Sequence[Exchange], solution: Any) -> int:
        return self._row(CRITIC, question, tuple(history), solution)

    def score(self, question: Task, solution: Any, critique: Any) -> int:
        return self._row(SCORER, question, (), (solution, critique))

    def grade(self, output: Any) -> int | None:
        return output[0] + 1 if output[0] < 3 else None

    def _row(self, role: str, question: Task, history: tuple[Exchange, ...], said: Any) -> int:
        self.heard.append((role, int(question.prompt), history))
        spoken = [e.solution for e in history], [e.critiques for e in history], said
        return sum((i + 1) * ord(sign) for i, sign in enumerate(f"{role}{question.prompt}{spoken}")) % ROWS


def start() -> TokenToy:
    """Not uniform, so that a divergence from it is not one from chance."""
    policy = TokenToy(ROWS)
    with torch.no_grad():
        policy.module.weight.normal_(generator=torch.Generator().manual_seed(7))
    return policy


def discussion(agents: int = 2, **how: Any) -> Discussion:
    policies = {f"agent{number}": start().trainable(f"agent{number}") for number in range(agents)}
    return Discussion(policies, Numbered(), **{"rounds": 4, **how})


def play(game: Discussion, seed: int = 0, n: int = 1) -> list[Rollout]:
    rollouts = game.act(QUESTIONS, n, key=(seed,))
    score(rollouts, Interaction())
    return rollouts


def of_role(rollouts: Sequence[Rollout], role: str) -> list[Rollout]:
    return [rollout for rollout in rollouts if rollout.task.category == role]


# who speaks, who hears


def test_every_solution_is_criticised_and_every_pair_scored() -> None:
    rollouts = play(discussion(critics=2), n=2)
    assert Counter(r.task.category for r in rollouts) == {
        SOLVER: 3 * 2 * 4,
        CRITIC: 3 * 2 * 4 * 2,
        SCORER: 3 * 2 * 4 * 2,
    }
    assert len({rollout.task.id for rollout in rollouts}) == len(rollouts)
    assert {rollout.task.parent for rollout in rollouts} == {task.id for task in QUESTIONS}
    assert all(rollout.log_probs is not None and rollout.task.reference is None for rollout in rollouts)


def test_speakers_are_drawn_uniformly_for_every_role() -> None:
    rollouts = [rollout for seed in range(40) for rollout in play(discussion(agents=4), seed)]
    for role in (SOLVER, CRITIC, SCORER):
        counts = Counter(rollout.player for rollout in of_role(rollouts, role))
        expected = len(of_role(rollouts, role)) / 4
        assert set(counts) == {f"agent{i}" for i in range(4)}
        assert sum((count - expected) ** 2 / expected for count in counts.values()) < 16.3  # chi2(3), p = 0.001


def test_the_history_holds_the_last_kappa_rounds_and_no_score() -> None:
    game = discussion(critics=2, history=2)
    rollouts = play(game)
    by_name = {rollout.task.id: rollout.output for rollout in rollouts}
    rounds = {
        (question, i): Exchange(
            by_name[f"question{question}/0/{i}/{SOLVER}/0"],
            tuple(by_name[f"question{question}/0/{i}/{CRITIC}/{j}"] for j in range(2)),
        )
        for question in range(3)
        for i in range(4)
    }
    assert isinstance(game.roles, Numbered)
    for role, times in ((SOLVER, 1), (CRITIC, 2)):
        for question in range(3):
            heard = [h for said, asked, h in game.roles.heard if (said, asked) == (role, question)]
            expected = [tuple(rounds[question, k] for k in range(max(0, i - 2), i)) for i in range(4)]
            assert heard == [history for history in expected for _ in range(times)]
    silent = discussion(history=0)
    play(silent)
    assert isinstance(silent.roles, Numbered) and all(not history for _, _, history in silent.roles.heard)


def test_evaluation_asks_the_judged_agent_alone_and_a_fork_holds_all() -> None:
    game = discussion(agents=3)
    with torch.no_grad():
        game.agents["agent2"].module.weight += 1.0  # type: ignore[attr-defined]
    alone = game.act(QUESTIONS, 2, mode="evaluate")
    assert [r.output for r in alone] == [r.output for r in game.policy.act(QUESTIONS, 2)]
    assert {rollout.player for rollout in alone} == {game.judged} == {"agent0"}
    other = game.fork("other")
    assert [r.output for r in play(game)] == [r.output for r in play(other)]
    assert not any(p.requires_grad for agent in other.agents.values() for p in agent.module.parameters())  # type: ignore[attr-defined]
    fresh = discussion(agents=3)
    fresh.copy_from(other)
    assert [r.output for r in play(fresh)] == [r.output for r in play(game)]


# what it pays


@pytest.mark.parametrize(
    ("role", "grades", "grader", "expected"),
    [
        (SOLVER, (3,), False, 1.0),
        (SOLVER, (2,), False, 0.5),
        (SOLVER, (1, 2, None), False, 0.25),
        (CRITIC, (3,), False, 0.0),
        (CRITIC, (1,), False, 1.0),
        (SCORER, (1,), True, 0.0),
        (SCORER, (None,), True, -1.0),
        (SOLVER, (None,), False, None),
        (CRITIC, (None,), False, None),
        (CRITIC, (None,), True, -1.0),
        (CRITIC, (2,), True, 0.5),
    ],
)
def test_rewards_by_hand(role: str, grades: tuple[int | None, ...], grader: bool, expected: float | None) -> None:
    rollout = Rollout.plain(Task("t", "", category=role), "", info={"grades": grades, "grader": grader})
    assert interaction(rollout) == expected


def test_a_grade_pays_its_own_solution_and_critique() -> None:
    rollouts = play(discussion(critics=2))
    name = {rollout.task.id: rollout for rollout in rollouts}
    read = 0
    for scorer in of_role(rollouts, SCORER):
        grade = scorer.output[0] + 1 if scorer.output[0] < 3 else None
        stem, _, j = scorer.task.id.rpartition(f"/{SCORER}/")
        critic, solver = name[f"{stem}/{CRITIC}/{j}"], name[f"{stem}/{SOLVER}/0"]
        assert scorer.scores["total"] == (-1.0 if grade is None else 0.0)
        assert critic.scores["total"] == (None if grade is None else 1 - (grade - 1) / 2)
        assert solver.info["grades"][int(j)] == grade
        read += grade is not None
    assert 0 < read < len(of_role(rollouts, SCORER))


def test_without_critics_or_scorer_somebody_else_grades() -> None:
    bare = play(discussion(critics=0))
    assert Counter(r.task.category for r in bare) == {SOLVER: 12, SCORER: 12}
    assert {len(rollout.info["grades"]) for rollout in bare} == {1}
    own = play(discussion(scorer=False))
    assert Counter(r.task.category for r in own) == {SOLVER: 12, CRITIC: 12}
    for critic, solver in zip(of_role(own, CRITIC), of_role(own, SOLVER), strict=True):
        grade = critic.output[0] + 1 if critic.output[0] < 3 else None
        assert solver.info["grades"] == (grade,) and critic.info["grader"]
    with pytest.raises(UsageError, match="nobody grades"):
        discussion(critics=0, scorer=False)
    with pytest.raises(UsageError, match="rounds -1"):
        discussion(rounds=-1)


def test_the_reward_is_a_proxy_that_no_gate_shares() -> None:
    assert families_of(Interaction()) == {"policy:scorer"}
    assert not families_of(Interaction()) & families_of(ViewConsistency())


# what is learned


def learner(
    game: Discussion, player: str, *, players: tuple[str, ...] = (), beta: float = 0.1, **how: Any
) -> PolicyLearner:
    return PolicyLearner(
        game.agents[player],
        PPOClip(aggregate="decision"),
        Optimisation(lr=0.05, **{"epochs": 2, **how}),
        advantage=ReinforcePlusPlus(),
        shape=[PerTokenKL(beta, "start")],
        references={"start": start().fork("start")},
        players=players or (player,),
    )


def weights(game: Discussion, player: str = "agent0") -> torch.Tensor:
    return game.agents[player].module.weight.detach().clone()  # type: ignore[attr-defined, no-any-return]


def learned(
    folder: Path, game: Discussion, reward: Any = None, *, players: tuple[str, ...] = (), steps: int = 1, **how: Any
) -> torch.Tensor:
    """The first agent's weights after the loop has run."""
    learners = {player: learner(game, player, players=players, **how) for player in game.players}
    stage = Stage(steps, game, Uniform({"questions": QUESTIONS}), reward or Interaction(), learners, 3, 1)
    train(Experiment([stage], lambda actor: {}), RunFolder.create(folder, recipe="toy", config={}, command="toy"))
    return weights(game)


def test_advantages_by_hand() -> None:
    """r - beta sum_{>= t} ln pi / pi_ref, normalised over every token of the agent's buffer."""
    game, batches = discussion(), list[Batch]()
    with torch.no_grad():
        game.agents["agent0"].module.weight += 0.3 * torch.arange(4.0)  # type: ignore[attr-defined]

    def spy(batch: Batch) -> Batch:
        batches.append(batch)
        return batch

    mine = learner(game, "agent0", beta=0.2)
    mine.prepare = (spy,)
    rollouts = [rollout for rollout in play(game) if rollout.player == "agent0"]
    mine.update(rollouts)
    rows, reference = list[np.ndarray](), start()
    for rollout in rollouts:
        total = rollout.scores["total"]
        if total is not None:
            batch = reference.collate([rollout])
            gap = (rollout.log_probs - reference.evaluate_actions(batch).log_probs[0]).double().numpy()
            rows.append(float(total) - 0.2 * np.array([gap[t:].sum() for t in range(3)]))  # type: ignore[arg-type]
    tokens = np.concatenate(rows)
    expected = (np.stack(rows) - tokens.mean()) / tokens.std(ddof=1)
    assert batches[0].advantages is not None and len(rows) < len(rollouts)
    np.testing.assert_allclose(batches[0].advantages.numpy(), expected, atol=1e-5)


def test_an_agent_learns_from_its_own_rollouts_alone(tmp_path: Path) -> None:
    """Whatever the other is paid; taken away the contract, by naming both players, the weights are others."""

    def partial(rollouts: Sequence[Rollout], **columns: Any) -> list[Any]:
        paid = Interaction()(rollouts)
        return [
            3.0 if r.player == "agent1" and value is None else value for r, value in zip(rollouts, paid, strict=True)
        ]

    plain, other = learned(tmp_path / "0", discussion()), learned(tmp_path / "1", discussion(), partial)
    torch.testing.assert_close(plain, other, atol=0, rtol=0)
    both = ("agent0", "agent1")
    mixed = learned(tmp_path / "2", discussion(), players=both)
    mixed_other = learned(tmp_path / "3", discussion(), partial, players=both)
    assert (plain - mixed).norm() > 1e-3 * plain.norm()
    assert (mixed - mixed_other).norm() > 1e-3 * plain.norm()


def test_a_learner_that_names_no_player_is_refused() -> None:
    game = discussion()
    nameless = learner(game, "agent0")
    nameless.players = None
    with pytest.raises(UsageError, match="names no players"):
        Stage(1, game, Uniform({"questions": QUESTIONS}), Interaction(), {"agent0": nameless}, 3, 1)


def test_what_no_grade_applies_to_is_not_learned_from() -> None:
    def after(drop: bool) -> tuple[torch.Tensor, float]:
        game = discussion()
        rollouts = [rollout for rollout in play(game) if rollout.player == "agent0"]
        applying = [rollout for rollout in rollouts if rollout.scores["total"] is not None]
        assert len(applying) < len(rollouts)
        metrics = learner(game, "agent0").update(applying if drop else rollouts)
        assert metrics["rollouts"] == len(applying)
        return weights(game), metrics["objective/loss"]

    (with_none, loss), (without, other) = after(False), after(True)
    torch.testing.assert_close(with_none, without, atol=0, rtol=0)
    assert loss == other


def test_a_round_in_which_nothing_applies_is_skipped(tmp_path: Path) -> None:
    game = discussion()
    before = weights(game)
    after = learned(tmp_path / "run", game, lambda rollouts, **columns: [None] * len(rollouts))
    torch.testing.assert_close(before, after, atol=0, rtol=0)


KNOBS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rounds": ({"rounds": 3}, {}),
    "kappa": ({"history": 1}, {}),
    "n": ({"critics": 2}, {}),
    "no critics": ({"critics": 0}, {}),
    "no scorer": ({"scorer": False}, {}),
    "agents": ({"agents": 3}, {}),
    "beta": ({}, {"beta": 1.0}),
    "epochs": ({}, {"epochs": 1}),
    "minibatches": ({}, {"minibatches": 2}),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_is_felt_in_the_weights(knob: str, tmp_path: Path) -> None:
    game, how = KNOBS[knob]
    plain = learned(tmp_path / "plain", discussion(), steps=2)
    turned = learned(tmp_path / "turned", discussion(**game), steps=2, **how)
    assert (plain - turned).norm() > 1e-3 * (plain - start().module.weight).norm()


# in words


def test_the_small_model_is_asked_in_its_own_words() -> None:
    roles, question = SmallRoles(), Task("q", "what is right of red_disc")
    history = [Exchange("p5 p6 = blue_plus", ("= no",))]
    asked = "what is right of red_disc"
    assert roles.solve(question, []) == asked
    assert roles.solve(question, history) == f"{asked} blue_plus no again"
    assert roles.criticise(question, [], "p5 = red_plus") == f"{asked} check p5 = red_plus"
    assert roles.criticise(question, history, "p5 = red_plus") == f"{asked} blue_plus no again check p5 = red_plus"
    assert roles.score(question, "p5 = red_plus", "= no") == f"{asked} no again check p5 = red_plus"
    assert roles.score(question, "", None) == f"{asked} check"
    long = roles.criticise(question, history * 30, " ".join(["p1"] * 13))
    assert len(long.split()) == 40 and long.endswith("again check " + " ".join(["p1"] * 13))
    assert [roles.grade(said) for said in ("= no", "= yes", "p1 = 2", "", "p1 p2")] == [1, 3, 2, None, None]


def test_a_chat_model_is_asked_in_words() -> None:
    roles, question = ChatRoles(), Task("q", [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}])
    history = [Exchange("Because.", ("No reason.", "Too short."))]
    assert "Why?" in roles.solve(question, []) and "Because." in roles.solve(question, history)
    assert all(word in roles.criticise(question, history, "So.") for word in ("No reason.", "Too short.", "So."))
    asked = roles.score(question, "So.", "Empty.")
    assert "Empty." in asked and "Because." not in asked
    assert [roles.grade(said) for said in ("<score>1</score> <score> 3 </score>", "3", "<score>4</score>")] == [
        3,
        None,
        None,
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        teach_quickly(patch, tmp_path_factory.mktemp("cache"))
        yield


def test_the_recipe_trains_every_agent_and_evaluates_the_first(cache: None, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert (
        main(
            [
                "run",
                "vlm/comas",
                "--debug",
                "--agents",
                "3",
                "--rounds",
                "2",
                "--demonstrations",
                "14",
                "--output-dir",
                str(path),
            ]
        )
        == 0
    )
    folder = RunFolder.open(path)
    rounds = folder.metrics()
    for player in ("agent0", "agent1", "agent2"):
        assert rounds[-1][f"{player}/learned"] == 1.0
        told = {name for each in rounds for name in each if name.startswith(f"category/{player}/")}
        assert told, "in which role its answers are scored is chance"
    assert any(name.endswith(f"/{SOLVER}") for each in rounds for name in each)
    assert "mean of agents" in folder.evaluations()["after"]["figures"]["hop1"]
    assert str(folder.read_json("config")["label_account"]).startswith("gate_labels: none")


TURNED: dict[str, Callable[[comas.Config], comas.Config]] = {
    "rounds": lambda config: replace(config, rounds=2),
    "critics": lambda config: replace(config, critics=2),
    "history": lambda config: replace(config, history=0),
    "scorer": lambda config: replace(config, scorer=False),
    "beta": lambda config: replace(config, beta=1.0),
    "clip_low": lambda config: replace(config, clip_low=0.0),
    "epochs": lambda config: replace(config, epochs=1),
    "minibatches": lambda config: replace(config, minibatches=1),
    "group_size": lambda config: replace(config, group_size=2),
    "agents": lambda config: replace(config, agents=1, rounds=4),
}


@pytest.fixture(scope="module")
def plain(cache: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, torch.Tensor]:
    """The first agent's weights before and after two rounds of the preset."""
    return after_two_rounds(
        replace(comas.Config.tiny(), lr=1e-2, demonstrations=14), tmp_path_factory.mktemp("plain") / "run"
    )


def after_two_rounds(config: comas.Config, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    folder = RunFolder.create(path, recipe="vlm/comas", config={}, command="test")
    experiment = comas.build(replace(config, gate="none"), folder)
    game: Any = experiment.stages[0].actor
    before = torch.cat([p.detach().flatten().clone() for p in game.policy.module.parameters()])
    train(replace(experiment, evaluate=lambda actor: {}, finish=lambda folder: None), folder)
    return before, torch.cat([p.detach().flatten() for p in game.policy.module.parameters()])


@pytest.mark.parametrize("knob", TURNED)
def test_every_field_of_the_recipe_is_felt(knob: str, plain: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    before, after = plain
    _, turned = after_two_rounds(
        TURNED[knob](replace(comas.Config.tiny(), lr=1e-2, demonstrations=14)), tmp_path / "run"
    )
    assert (after - turned).norm() > 1e-3 * (after - before).norm()
