"""Robots at their edges: chunks that were begun, episodes of nothing, endings of demonstrations, films, options."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autotelic.envs.action_scale import ActionScale
from autotelic.envs.pool import Episode, Pool
from autotelic.envs.simulator import View
from autotelic.errors import UsageError
from autotelic.rewards.progress.end_conditions import MOST, EndConditions
from autotelic.rewards.progress.estimates import EpisodeProgress, FinalProgress
from autotelic.rewards.progress.features import PAIRED, StateFeatures, axes_of
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.types import Rollout
from autotelic.vla import filming
from autotelic.vla.actor import RobotActor
from autotelic.vla.chunk_policy import Seen
from autotelic.vla.cloning import Cloning, clone
from autotelic.vla.environments import make_policy, make_pool, make_task, recorded
from autotelic.vla.flow import FlowModel, FlowPolicy
from autotelic.vla.policy import ActionModel, ActionPolicy
from autotelic.vla.setting import RobotConfig

from .robot_worlds import altered, dataset, shown, world


def policy(head: str = "gaussian") -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if head == "flow":
            return FlowPolicy(FlowModel(4, 2, chunk=4, hidden=16))
        return ActionPolicy(ActionModel(4, 2, chunk=4, head=head, hidden=16))  # type: ignore[arg-type]


def acted(made: Any, environment: str, horizon: int, count: int = 2, **how: Any) -> list[Rollout]:
    tasks = [make_task(world(environment), seed, horizon) for seed in range(count)]
    with Pool([world(environment)], chunk=4, workers=0) as pool:
        return RobotActor(made, pool).act(tasks, 1, **how)


# chunks that were begun


@pytest.mark.parametrize(("head", "decisions"), [("gaussian", 1), ("tokens", 2), ("flow", 0)])
def test_which_decisions_count(head: str, decisions: int) -> None:
    """Those of executed steps where steps have their own; else a chunk that was begun counts as a whole."""
    made = policy(head)
    (rollout,) = acted(made, "plain", 6, 1)
    assert rollout.payload["executed"].tolist() == [[True] * 4, [True, True, False, False]]
    rows = rollout.mask.view(2, -1)
    assert rows[0].all()
    assert rows[1].sum() == (2 * decisions if decisions else made.per_chunk)
    (forward,) = made.collate([rollout], "forward").mask if head == "flow" else (torch.ones(1),)
    assert forward.all()


def test_a_flow_is_scored_over_the_steps_that_were_executed() -> None:
    made = policy("flow")
    seen, clean = Seen(["go"], torch.randn(1, 4)), torch.rand(1, 4, 2)
    drawn = made.redraw({"clean": clean}, torch.Generator().manual_seed(0))
    executed = torch.tensor([[True, True, False, False]])
    whole, begun = made.score(seen, drawn).log_probs, made.score(seen, {**drawn, "executed": executed}).log_probs
    t = drawn["time"][0, 1]
    x = (1 - t) * clean + t * drawn["noise"][:, 1]
    context = made._context(seen, None)
    off = drawn["noise"][:, 1] - clean - made.model.velocity(context, x, t[None])
    assert float(begun[0, 1]) == pytest.approx(-0.5 * float((off[:, :2] ** 2).sum()), rel=1e-5)
    assert float(whole[0, 1]) == pytest.approx(-0.5 * float((off**2).sum()), rel=1e-5)
    loss = made.imitation_loss(seen, {**drawn, "executed": executed})
    assert float(loss) == pytest.approx(float(-2 * begun.mean() / 4), rel=1e-5), "per scalar of two steps of two"


@pytest.mark.parametrize("head", ["gaussian", "tokens"])
def test_cloning_is_the_mean_over_what_is_shown(head: str) -> None:
    """The last chunks repeat an action, and weigh as much less as they show less."""
    made = policy(head)
    (rollout,) = made.encode([make_task(world("plain"), 0, 8)], [shown(5)])
    assert rollout.payload["executed"].sum(1).tolist() == [4, 4, 3, 2, 1]
    stored = {"actions": rollout.payload["actions"], "executed": rollout.payload["executed"]}
    seen = Seen(["go to the mark"] * 5, rollout.payload["states"])
    alone = []
    for row in range(5):
        for step in range(int(stored["executed"][row].sum())):
            one = torch.zeros(1, 4, dtype=torch.bool)
            one[0, step] = True
            part = {"actions": stored["actions"][[row]], "executed": one}
            alone.append(float(made.imitation_loss(seen.select([row]), part)))
    assert len(alone) == 14
    assert float(made.imitation_loss(seen, stored)) == pytest.approx(np.mean(alone), rel=1e-5)


def test_a_demonstration_shorter_than_a_chunk_is_learned() -> None:
    made = policy()
    wanted = torch.tensor([0.5, -0.25])
    demonstration = shown(1)
    demonstration.actions[:] = wanted.numpy()
    (rollout,) = made.encode([make_task(world("plain"), 0, 8)], [demonstration])
    clone(made, [rollout], Cloning(steps=150, batch=4))
    seen = Seen(["go to the mark"], torch.from_numpy(demonstration.observations[:1]))
    actions = made.choose(seen, None).actions[0]
    torch.testing.assert_close(actions[0], wanted, atol=0.05, rtol=0)
    assert (actions[1:] - wanted).abs().max() > 0.1, "nobody showed the other steps"


# episodes of nothing, and policies that answer nothing


@pytest.mark.parametrize("head", ["gaussian", "tokens", "flow"])
def test_an_episode_of_nothing_has_one_chunk_that_counts_nowhere(head: str) -> None:
    made = policy(head)
    name = world("plain")
    with Pool([name], chunk=4, workers=0) as pool:
        (empty,) = RobotActor(made, pool, horizon=0).act([make_task(name, 0)], 1, greedy=True)
    assert len(empty.output.actions) == 0 and empty.output.steps == 0
    assert len(empty.payload["states"]) == 1 and not empty.mask.any() and not empty.payload["executed"].any()
    (full, _) = acted(made, "plain", 8)
    together, alone = made.collate([full, empty]), made.collate([full])
    now, mine = made.evaluate_actions(together).log_probs, made.evaluate_actions(alone).log_probs
    torch.testing.assert_close(now[0], mine[0])
    assert not now[1].any()
    nothing = made.collate([empty])
    assert not made.evaluate_actions(nothing).log_probs.any()


@pytest.mark.parametrize("where", ["actions", "log_probs"])
def test_a_policy_that_answers_nan_at_once(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rollouts are whole, decide nothing, and are worth nothing."""
    made, right = policy(), ActionPolicy.decide

    def wrong(self: Any, seen: Seen, randomness: Any, temperature: float) -> tuple[Tensor, dict[str, Tensor], Any]:
        actions, stored, logs = right(self, seen, randomness, temperature)
        nan = torch.tensor(torch.nan)
        if where == "actions":
            return actions + nan, {**stored, "actions": stored["actions"] + nan}, logs
        return actions, stored, None if logs is None else logs + nan

    monkeypatch.setattr(ActionPolicy, "decide", wrong)
    for rollout in acted(made, "plain", 8):
        assert rollout.output.fault is not None and rollout.output.steps == 0
        assert all(bool(t.isfinite().all()) for t in rollout.payload.values()) and not rollout.mask.any()
        assert rollout.log_probs is not None and not rollout.log_probs.any()
        rollout.scores["progress"] = [0.9]  # type: ignore[assignment]
        assert FinalProgress(0.5, 0.3)([rollout], ["go to the mark"]) == [0.0]
    batch = made.collate(acted(made, "plain", 8))
    assert made.evaluate_actions(batch).log_probs.isfinite().all()


def test_a_fault_is_worth_nothing_in_hindsight() -> None:
    class Far:
        kind = "terminal"

        def __call__(self, clips: Any, *_: Any, **__: Any) -> Any:
            return np.full(len(clips), 0.7, np.float32)

    def episode(fault: str | None) -> Any:
        return SimpleNamespace(observations=np.zeros((3, 2), np.float32), instruction="a", fault=fault)

    model: Any = Far()
    assert EpisodeProgress(model)([episode(None), episode("NaN")], ["a", "a"]) == pytest.approx([0.7, 0.0])


# demonstrations


@pytest.mark.parametrize(("environment", "settle"), [("plain", 5), ("ends", 0)])
def test_a_demonstration_ends_where_its_environment_does(environment: str, settle: int) -> None:
    with Pool([world(environment)], workers=0) as pool:
        (made,) = pool.demonstrate(world(environment), [3], horizon=20, settle=5)
    assert made.settle == settle and len(made.observations) == len(made.actions) + 1
    arrives = len(made.actions) - settle
    away = np.linalg.norm(made.observations[:, :2] - made.observations[:, 2:], axis=1)
    assert away[arrives] < 0.2 <= away[arrives - 1]


# scales


def test_a_scale_from_actions_by_hand() -> None:
    rows = np.zeros((200, 4))
    rows[:, 0] = np.linspace(-3, 5, 200)  # cut at its quantiles
    rows[:, 1] = 7  # never moves
    rows[150, 2] = 1  # a gripper that closes once
    rows[:, 3] = np.where(np.arange(200) < 50, -2, 4)  # a switch, whose lower quantile would be 2.5
    scale = ActionScale.of(rows, 0.25)
    np.testing.assert_allclose(scale.low, [-1, 7, 0, -2])
    np.testing.assert_allclose(scale.high, [3, 7, 1, 4])
    np.testing.assert_allclose(scale.normalised([1.0, 7.5, 1.0, 1.0]), [0, 0, 1, 0])
    np.testing.assert_allclose(scale.original([0.0, -1.0, 1.0, -1.0]), [1, 7, 1, -2])
    usual = ActionScale.of(np.linspace(0, 1, 101)[:, None])
    np.testing.assert_allclose([usual.low[0], usual.high[0]], [0.01, 0.99], atol=1e-6)
    with pytest.raises(UsageError, match=r"actions of shape \[1\]: the scale has 4 numbers"):
        scale.normalised([0.3])


@pytest.mark.parametrize("seed", range(10))
def test_a_scale_and_back_is_the_same_within_its_bounds(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(50, 5)) * 10 ** random.uniform(-3, 3, 5)
    rows[:, random.integers(5)] = random.normal()
    scale = ActionScale.of(rows, 0.0)
    back = scale.original(scale.normalised(rows))
    np.testing.assert_allclose(back, rows, rtol=1e-4, atol=1e-5 * np.abs(rows).max())
    assert np.abs(scale.normalised(3 * rows)).max() <= 1


@pytest.mark.parametrize(("scale", "largest"), [("environment", 0.5), ("range", 1.0), ("quantiles", 1.0)])
def test_what_actions_of_a_dataset_are_scaled_from(scale: str, largest: float, tmp_path: Path) -> None:
    """The world's own bounds are those of its box, -1 and 1; the dataset's actions go from -1/2 to 1/2."""
    made = altered(dataset(tmp_path, (30, 30)), "action", lambda rows: [[a / 2 for a in row] for row in rows])
    name = world("plain")
    how: dict[str, Any] = {"action_scale": scale, "demonstrations_from": (str(made),)}
    with Pool([name], workers=0) as pool:
        (several,) = recorded(RobotConfig(tasks=(name,), **how), {name: 1}, pool).values()
    assert np.abs(several[0].actions).max() == pytest.approx(largest, abs=0.05)


# options


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"state_keys": ("state",)}, "--state-keys is about datasets: give --demonstrations-from"),
        ({"action_scale": "range"}, "--action-scale is about datasets"),
        ({"camera_keys": ("main",), "demonstrations_from": ("x",)}, "--camera-keys are CAMERA=FEATURE each"),
    ],
)
def test_options_about_datasets_want_datasets(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        RobotConfig(**fields)


def test_a_camera_that_the_environment_lacks_is_named(tmp_path: Path) -> None:
    name, made = world("plain"), dataset(tmp_path, side=16)
    how: dict[str, Any] = {"obs_type": "pixels", "camera_keys": ("wrist=observation.images.main",)}
    config = RobotConfig(tasks=(name,), demonstrations_from=(str(made),), **how)
    with Pool([name], workers=0) as pool, pytest.raises(UsageError, match=r'unknown camera "wrist": .* main'):
        recorded(config, {name: 1}, pool)


def test_a_chunk_of_ones_own_length_reaches_simulators_and_policy() -> None:
    name = world("plain")
    for chunk in (1, 3):
        config = RobotConfig(tasks=(name,), chunk=chunk, workers=1)
        pool = make_pool(config, [name])
        try:
            made = make_policy(config, name, pool)
            (rollout,) = RobotActor(made, pool).act([make_task(name, 0, 6)], 1)
        finally:
            pool.close()
        assert rollout.output.actions.shape == (6 // chunk, chunk, 2)


# critics


def test_pairs_are_looked_at_only_where_no_single_number_tells_the_end() -> None:
    features = StateFeatures(centre=(0.0,) * 3, spread=(1.0,) * 3, moving=(0, 2))
    groups = features.end_relations()
    assert next(groups) == ("state-0", "state-1", "state-2", "moved-0", "moved-1", "moved-2")
    assert next(groups) == ("apart-0-2",), "what never changes is apart as the other one says"
    share = np.linspace(0, 1, 9)
    tracks = [np.stack([end * share, end * share + 4 * (1 - share)], 1).astype(np.float32) for end in (3, -2)]
    ends = EndConditions(StateFeatures())
    ends.fit([SimpleNamespace(observations=t, instruction="meet", settle=0) for t in tracks])
    assert [condition.relation for condition in ends.conditions["meet"]] == ["apart-0-1"], "they meet, anywhere"


def test_many_numbers_are_told_and_capped(caplog: pytest.LogCaptureFixture) -> None:
    away = np.linspace(0, 1, 6)[:, None] * np.linspace(1, 2, 90)
    unlike = [SimpleNamespace(observations=side * away, instruction="x", settle=0) for side in (1, -1)]
    ends = EndConditions(StateFeatures())
    ends.fit(unlike)
    assert f"only pairs of the {PAIRED} that change most" in caplog.text and ends.vague == ["x"]
    rising = np.linspace(0, 1, 6)[:, None] * np.linspace(1, 2, 400)
    ends.fit([SimpleNamespace(observations=rising, instruction="x", settle=0)])
    assert len(ends.conditions["x"]) == MOST and f"the {MOST} clearest count" in caplog.text
    first = rising[:1].astype(np.float32)
    assert ends(rising[-1:].astype(np.float32), first, ["x"])[0] > 0.9 > ends(first, first, ["x"])[0]


def test_positions_of_a_layout_have_one_size() -> None:
    assert axes_of({"hand": slice(0, 2), "goal": slice(2, 4), "gripper": slice(4, 5)}) == 2
    assert axes_of({"gripper": slice(0, 1)}) == 0
    with pytest.raises(UsageError, match="hand has 2, second has 3"):
        axes_of({"hand": slice(0, 2), "second": slice(2, 5)})


# films


class Painted:
    """An actor whose episodes are grey, and succeed once it has learned."""

    def __init__(self) -> None:
        self.policy = "after"

    def act(self, tasks: Any, n: int, **how: Any) -> Any:
        assert how["oracle"] and how["greedy"] and how["mode"] == "evaluate"
        side = 32 if self.policy == "after" else 24
        steps = (np.zeros((2, 1)), np.zeros((1, 1, 1)), 1, False, self.policy == "after")
        frames = {"main": np.full((2, side, side, 3), 99, np.uint8)}
        return [SimpleNamespace(output=Episode("x", "go", task.seed, *steps, frames)) for task in tasks]


def test_films_are_captioned_by_what_came_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(
        "autotelic.envs.video.write_side_by_side", lambda path, *sides: told.append((path.name, *sides))
    )
    run = RunFolder.create(tmp_path / "run", recipe="x", config={}, command="")
    actor: Any = Painted()
    before: Any = "before"
    tasks = [SimpleNamespace(id=f"push/{seed}", category="my/push", seed=seed, prompt="go") for seed in (1, 2)]
    filming.film(run, actor, tasks, before, View(32))  # type: ignore[arg-type]
    assert [name for name, *_ in told] == ["my-push-1.webp", "my-push-2.webp"]
    assert told[0][3] == ("before: no success", "after: success")
    assert told[0][1].shape[1] == 24 and told[0][2].shape[1] == 32, "the one from before stands left"
    captions = json.loads((run.samples / "videos" / "captions.json").read_text())
    assert captions["my-push-2"] == "my/push: go; before: no success, after: success"
    assert actor.policy == "after", "the actor is given back as it was"


def test_a_picture_that_cannot_be_drawn_is_told_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    name = world("plain")
    with Pool([name], workers=1) as pool, caplog.at_level(logging.WARNING):
        filming.try_picture(pool, [name], View(16))
    assert [f"there will be no videos of {name}" in line for line in caplog.messages].count(True) == 1
