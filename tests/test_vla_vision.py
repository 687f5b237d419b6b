"""Policies that look: the tower and its shifts by hand, cloning from pictures, and what is stored of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotelic.envs.pool import Pool
from autotelic.envs.simulator import View
from autotelic.errors import UsageError
from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives import PPOClip
from autotelic.vla.actor import RobotActor
from autotelic.vla.chunk_policy import ChunkPolicy, Seen
from autotelic.vla.cloning import Cloning, clone
from autotelic.vla.flow import FlowModel, FlowPolicy
from autotelic.vla.policy import ActionModel, ActionPolicy
from autotelic.vla.vision import Tower, Vision, keypoints, shifted

from .picture_mass import NAME, SIZE, picture_task, simulators
from .point_mass import INSTRUCTION, distance

HEADS = ["tokens", "gaussian", "flow"]


def make_policy(head: str = "gaussian", **vision: Any) -> Any:
    how: dict[str, Any] = {"chunk": 4, "hidden": 48, "layers": 2, "vision": Vision(**{"size": SIZE} | vision)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if head == "flow":
            return FlowPolicy(FlowModel(2, 2, **how), steps=2)
        return ActionPolicy(ActionModel(2, 2, head=head, bins=9, **how))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pool() -> Any:
    with simulators() as built:
        yield built


# looking


def test_keypoints_are_mean_places() -> None:
    """One bright place is its own coordinates (right and down are positive), an even map is the middle."""
    maps = torch.zeros(1, 3, 3, 5)
    maps[0, 0, 2, 0] = maps[0, 1, 0, 3] = 50
    assert keypoints(maps)[0].tolist() == pytest.approx([-1, 1, 0.5, -1, 0, 0], abs=1e-6)


def test_shifts_move_pictures_and_repeat_the_edge() -> None:
    frames = torch.arange(49, dtype=torch.uint8).view(1, 7, 7, 1).expand(200, 7, 7, 3)
    moved = shifted(frames, 2, torch.Generator().manual_seed(0))
    assert moved.dtype == torch.uint8 and moved.shape == frames.shape
    middles = moved[:, 3, 3, 0].int()
    rows, columns = middles // 7 - 3, middles % 7 - 3
    assert set(rows.tolist()) == set(columns.tolist()) == {-2, -1, 0, 1, 2}
    one = int(((rows == 2) & (columns == 0)).nonzero()[0])
    assert moved[one, :, 0, 0].tolist() == [14, 21, 28, 35, 42, 42, 42]
    assert torch.equal(shifted(frames, 0, torch.Generator()), frames)


def test_a_tower_is_normalised_and_always_evaluates() -> None:
    tower = Tower(Vision("test_resnet", size=SIZE))
    assert not tower.train().body.training
    assert tower.mean.flatten().tolist() == pytest.approx([127.5] * 3), "of the model's own data config"
    frames = torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8)
    found = tower(frames)
    assert found.shape == (3, tower.features) and found.requires_grad
    by_hand = keypoints(tower.body((frames.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)[0])
    torch.testing.assert_close(found, by_hand)


def test_bad_towers_and_frames_are_named() -> None:
    with pytest.raises(UsageError, match='unknown timm model "test_convnex": did you mean'):
        Tower(Vision("test_convnex"))
    with pytest.raises(
        UsageError, match=r"timm model test_convnext has feature maps of stride \[4, 8, 16, 32\], not 5"
    ):
        Tower(Vision(stride=5))
    with pytest.raises(UsageError, match='unknown pool "max"'):
        Tower(Vision(pool="max"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"takes frames uint8 \[N, 32, 32, 3\], not float32 \[2, 32, 32, 3\]"):
        Tower(Vision(size=SIZE))(torch.zeros(2, 32, 32, 3))


# acting and learning


@pytest.mark.parametrize("head", HEADS)
def test_it_sees_frames_and_itself_alone(head: str, pool: Pool) -> None:
    policy = make_policy(head)
    rollouts = RobotActor(policy, pool).act([picture_task(0, 4), picture_task(1, 12)], 2)
    payload, episode = rollouts[2].payload, rollouts[2].output
    assert payload["frames.main"].dtype == torch.uint8 and payload["frames.main"].shape == (3, SIZE, SIZE, 3)
    assert np.array_equal(payload["frames.main"].numpy(), episode.frames[:3])
    assert np.array_equal(payload["states"].numpy(), episode.observations[:3, :2]), (
        "where the mark is, it does not feel"
    )
    batch = policy.collate(rollouts)
    now = policy.evaluate_actions(batch)
    torch.testing.assert_close(now.log_probs, batch.log_probs["behaviour"], atol=1e-4, rtol=1e-4)
    batch.payload["frames.main"] = batch.payload["frames.main"].flip(1)
    assert not torch.allclose(policy.evaluate_actions(batch).log_probs, now.log_probs, atol=1e-4)


@pytest.mark.parametrize("head", ["gaussian", "flow"])
def test_it_clones_from_pictures(head: str, pool: Pool) -> None:
    policy = make_policy(head)
    shown = pool.demonstrate(NAME, range(16), horizon=20, settle=2, render=View(SIZE))
    encoded = policy.encode([picture_task(d.seed) for d in shown], shown)
    clone(policy, encoded, Cloning(steps=120, batch=48, lr=4e-3, shift=0))
    ends = RobotActor(policy, pool).act([picture_task(seed, 12) for seed in range(100, 116)], 1, greedy=True)
    assert np.mean([distance(r.output.observations[-1]) for r in ends]) < 0.4


def test_it_learns_by_grpo(pool: Pool) -> None:
    gains = []
    for sign in (1, -1):
        policy = make_policy()
        learner = PolicyLearner(policy, PPOClip(), Optimisation(lr=3e-3, epochs=2), advantage=grpo())
        actor = RobotActor(policy, pool)
        for step in range(8):
            rollouts = actor.act([picture_task(100 * step + i) for i in range(4)], 6, key=(step,))
            for rollout in rollouts:
                rollout.scores["total"] = -sign * float(np.abs(rollout.output.observations[-1][:2] - [0.5, 0]).sum())
            learner.update(rollouts)
        ends = actor.act([picture_task(10_000 + seed) for seed in range(8)], 1, greedy=True)
        gains.append(np.mean([np.abs(r.output.observations[-1][:2] - [0.5, 0]).sum() for r in ends]))
    assert gains[0] < 0.35 and gains[1] > 0.8, gains


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_a_frozen_tower_looks_once(head: str, later: bool, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(head, frozen=not later)
    if later:
        policy.freeze_tower()
    rollouts = RobotActor(policy, pool).act([picture_task(0), picture_task(1)], 2)
    shown = pool.demonstrate(NAME, [0], horizon=20, settle=2, render=View(SIZE))
    encoded = policy.encode([picture_task(0)], shown)
    assert "frames.main" not in rollouts[0].payload and "frames.main" not in encoded[0].payload
    torch.testing.assert_close(
        rollouts[0].payload["looks"], policy.model.look({"main": torch.from_numpy(rollouts[0].output.frames[:2])})
    )
    monkeypatch.setattr(Tower, "forward", None)  # from here on nobody looks
    batch = policy.collate(rollouts)
    torch.testing.assert_close(
        policy.evaluate_actions(batch).log_probs, batch.log_probs["behaviour"], atol=1e-4, rtol=1e-4
    )
    clone(policy, encoded, Cloning(steps=2, batch=4))
    other = policy.fork("other")
    assert other.model.tower.body is not None
    theirs, mine = (dict(p.module.named_parameters()) for p in (other, policy))
    assert all((theirs[name] is mine[name]) == name.startswith("tower.") for name in mine)
    assert not any(name.startswith("tower.") for name in policy.state_dict())
    policy.module.body[0].bias.data += 1
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.module.body[0].bias, policy.module.body[0].bias)


@pytest.mark.parametrize("head", ["tokens", "flow"])
def test_a_saved_policy_comes_back_with_its_tower(head: str, tmp_path: Path) -> None:
    policy = make_policy(head, name="test_resnet", stride=16, pool="mean", cameras=("corner2",))
    policy.model.vision = Vision("test_resnet", SIZE, 16, "mean", pretrained=True, cameras=("corner2",))
    policy.save_pretrained(tmp_path)
    again = type(policy).from_pretrained(str(tmp_path))
    assert again.model.vision == Vision("test_resnet", SIZE, 16, "mean", cameras=("corner2",)), "nothing is downloaded"
    assert again.view == View(SIZE, cameras=("corner2",)) and again.sees == "frames"
    frames = torch.randint(0, 256, (5, SIZE, SIZE, 3), dtype=torch.uint8)
    seen = Seen([INSTRUCTION] * 5, torch.rand(5, 2), {"corner2": frames})
    assert torch.equal(again.choose(seen, None).actions, policy.choose(seen, None).actions)
    policy.freeze_tower()
    policy.save_pretrained(tmp_path)
    again = type(policy).from_pretrained(str(tmp_path))
    assert again.trained().keys() == policy.trained().keys() < policy.module.state_dict().keys()


# estimators, and what is refused


class Brightness:
    """Progress as the brightness of frames: what an estimator that sees them is given."""

    def __init__(self) -> None:
        self.model, self.shapes = self, list[Any]()
        self.sees = "frames"

    def begin(self, instructions: Sequence[str]) -> None:
        self.found: list[list[float]] = [[] for _ in instructions]

    def update(self, rows: Any, observations: Any) -> Any:
        for row, frame in zip(rows, observations, strict=True):
            assert frame.dtype == np.uint8
            self.shapes.append(frame.shape)
            self.found[row].append(float(frame.mean()))
        return np.array([len(self.found[row]) > 2 for row in rows])

    def values(self, row: int) -> list[float]:
        return self.found[row][1:]


def test_an_estimator_may_see_frames_of_a_blind_policy(pool: Pool) -> None:
    policy = ActionPolicy(ActionModel(4, 2, chunk=4, hidden=8))
    estimator = Brightness()
    (rollout,) = RobotActor(policy, pool, estimator=estimator, view=View(16)).act([picture_task(0, 20)], 1)
    assert set(estimator.shapes) == {(16, 16, 3)} and len(rollout.output.actions) == 2, "the estimator ended it"
    assert rollout.scores["progress"] == pytest.approx([float(f.mean()) for f in rollout.output.frames[1:]])
    assert "frames.main" not in rollout.payload and rollout.payload["states"].shape == (2, 4)


def test_frames_are_taken_in_one_way(pool: Pool) -> None:
    policy: ChunkPolicy = make_policy()
    with pytest.raises(UsageError, match="one run takes frames in one way, not as View"):
        RobotActor(policy, pool).act([picture_task(0)], 1, render=View(160))
    demonstration = pool.demonstrate(NAME, [0], horizon=20, settle=2)
    with pytest.raises(ValueError, match="ActionPolicy sees frames, and the demonstration of picture-mass/0 has none"):
        policy.encode([picture_task(0)], demonstration)
