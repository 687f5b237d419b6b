"""Critics learned from demonstrations made by hand, in a world of two blocks, a hand and a mark."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from autotelic.envs.metaworld import OBSERVATION
from autotelic.rewards.progress.critics import CriticTraining, Kind, ProgressCritic
from autotelic.rewards.progress.end_conditions import EndConditions
from autotelic.rewards.progress.features import GOAL_FREE, RELATIONS, RelationFeatures, StateFeatures, relations_in

Floats = NDArray[np.float32]
RED, BLUE = "bring the red block", "bring the blue block"
NEGATIVES = ("perturbed", "lagging", "elsewhere", "mismatched")


@dataclass(frozen=True, eq=False)
class Shown:
    """What a critic reads of a demonstration."""

    instruction: str
    observations: Floats
    settle: int


def world(hand: Any, red: Any = (0, 0, 0), blue: Any = (0, 0, 0), mark: Any = (0, 0, 0), turned: float = 0) -> Floats:
    """An observation with an open gripper; ``turned`` is the red block's angle about the vertical."""
    upright = [1.0, 0.0, 0.0, 0.0]
    rotation = [math.cos(turned / 2), 0.0, 0.0, math.sin(turned / 2)]
    return np.array([*hand, 1.0, *red, *rotation, *blue, *upright, *mark], np.float32)


def brought(instruction: str) -> Shown:
    """20 steps to the block, 16 with it to the mark, 4 at rest: the hand travels 0.72 m (red) or 0.57 m (blue)."""
    blocks = {RED: np.array([0.1, 0.3, 0.0]), BLUE: np.array([-0.2, 0.2, 0.0])}
    start, block = np.array([0.0, -0.05, 0.2]), blocks[instruction]
    mark = block + np.array([0.0, 0.25, 0.1])
    rows = []
    for step in range(41):
        carried = block + (mark - block) * np.clip((step - 20) / 16, 0, 1)
        hand = start + (block - start) * step / 20 if step <= 20 else carried
        places = blocks | {instruction: carried}
        rows.append(world(hand, places[RED], places[BLUE], mark))
    return Shown(instruction, np.stack(rows), settle=4)


SHOWN = [brought(RED), brought(BLUE)]


@cache
def critic(kind: Kind, *negatives: str, seed: int = 0) -> ProgressCritic:
    """Trained with a quarter of each batch for each of the given negatives."""
    shares = dict.fromkeys(NEGATIVES, 0.0) | dict.fromkeys(negatives, 0.25)
    fitted = ProgressCritic(
        kind, RelationFeatures(OBSERVATION), CriticTraining(members=1, steps=300, batch=256, seed=seed, **shares)
    )
    fitted.fit(SHOWN)
    return fitted


def estimates(of: ProgressCritic, now: Floats, instruction: str = RED, reference: Floats | None = None) -> Floats:
    """Estimates [N] of frames [N, D] of the red episode."""
    initial = np.repeat(SHOWN[0].observations[:1], len(now), 0)
    return of(now, initial, [instruction] * len(now), reference)


# features


def test_relations_by_hand() -> None:
    now = torch.from_numpy(world((1, 2, 3), red=(1, 2, 4), blue=(3, 2, 3), mark=(1, 5, 3), turned=math.pi))[None]
    initial = torch.from_numpy(world((1, 0, 3), red=(1, 2, 1), blue=(3, 2, 3), mark=(9, 9, 9)))[None]
    features = RelationFeatures(OBSERVATION)
    by_hand = {
        "hand-object": [0, 0, -1],
        "hand-moved": [0, 2, 0],
        "object-moved": [0, 0, 3],
        "object-turned": [-1, 0, 0, 1],
        "second-moved": [0, 0, 0],
        "hand-second": [-2, 0, 0],
        "gripper": [1],
        "object-goal": [0, -3, 1],
        "hand-goal": [0, -3, 0],
    }
    assert tuple(by_hand) == RELATIONS
    for name, value in by_hand.items():
        assert features.relation(name, now, initial)[0].tolist() == pytest.approx(value, abs=1e-6)
    some = RelationFeatures(OBSERVATION, ("hand-second", "gripper", "object-turned"), unit=0.5, near=0.25)
    logarithm = math.log((2 + 0.25) / 0.5)
    assert some(now, initial)[0].tolist() == pytest.approx([-4, 0, 0, logarithm, 1, -1, 0, 0, 1], abs=1e-6)


def test_goal_free_features_do_not_see_the_mark() -> None:
    here, there = (torch.from_numpy(world((0, 0, 0), mark=mark))[None] for mark in ((0, 0, 0), (1, 1, 1)))
    blind = RelationFeatures(OBSERVATION, GOAL_FREE)
    assert torch.equal(blind(here, here), blind(there, here))
    assert not torch.equal(RelationFeatures(OBSERVATION)(here, here), RelationFeatures(OBSERVATION)(there, here))
    with pytest.raises(ValueError, match="unknown relation 'hand-foot'; there are hand-object, "):
        RelationFeatures(OBSERVATION, ("hand-foot",))


PLANE = {"hand": slice(0, 2), "goal": slice(2, 4)}


def test_relations_of_a_layout_that_names_less() -> None:
    assert relations_in(OBSERVATION) == RELATIONS and relations_in(OBSERVATION, goals=False) == GOAL_FREE
    assert relations_in(PLANE) == ("hand-moved", "hand-goal")
    assert relations_in(PLANE, goals=False) == ("hand-moved",)
    assert relations_in({"goal": slice(0, 2)}) == relations_in({"gripper": slice(0, 1)}) == ()
    now, first = torch.tensor([[0.3, 0.4, 0.3, 0.5]]), torch.zeros(1, 4)
    in_the_plane = RelationFeatures(PLANE, relations_in(PLANE), unit=1.0, near=0.5)
    by_hand = [0.3, 0.4, math.log(0.5 + 0.5), 0.0, -0.1, math.log(0.1 + 0.5)]
    assert in_the_plane(now, first)[0].tolist() == pytest.approx(by_hand, abs=1e-6)
    with pytest.raises(ValueError, match="relation 'hand-object' needs 'object', and the layout names hand, goal"):
        RelationFeatures(PLANE)


@pytest.mark.parametrize("kind", ["absolute", "pairwise"])
def test_a_critic_in_the_plane_without_objects(kind: Kind) -> None:
    def walked(x: float, y: float) -> Shown:
        way = np.clip(np.arange(25) / 20, 0, 1)[:, None] * np.array([[x, y]])
        return Shown("go", np.concatenate([way, np.full((25, 2), (x, y))], 1).astype(np.float32), settle=4)

    shown = [walked(0.3, 0.4), walked(-0.4, 0.3), walked(0.1, -0.5)]
    features = RelationFeatures(PLANE, relations_in(PLANE))
    of = ProgressCritic(kind, features, CriticTraining(members=1, steps=200, batch=128, hidden=32))
    of.fit(shown)
    ends = EndConditions(features)
    ends.fit(shown)
    there = np.array([[0.5, 0, 0.5, 0], [-0.5, 0, 0.5, 0]], np.float32)  # at a new mark, and opposite
    first = np.array([[0, 0, 0.5, 0]] * 2, np.float32)
    for model in (of, ends):
        at, away = model(there, first, ["go"] * 2, first if model.kind == "pairwise" else None)
        assert at > away + 0.3


# critics


@pytest.mark.parametrize("negatives", [(), NEGATIVES])
def test_later_frames_read_higher(negatives: tuple[str, ...]) -> None:
    """Along the way progress is the share of time until half of the settling steps are over: 38 steps."""
    values = estimates(critic("absolute", *negatives), SHOWN[0].observations[::5])
    assert (np.diff(values) > 0).all()
    np.testing.assert_allclose(values, [0, 5 / 38, 10 / 38, 15 / 38, 20 / 38, 25 / 38, 30 / 38, 35 / 38, 1], atol=0.1)


def pushed(frames: Floats) -> Floats:
    frames[:, 0] += 0.1
    return frames


def lagging(frames: Floats) -> Floats:
    frames[:, OBSERVATION["object"]] = SHOWN[0].observations[0, OBSERVATION["object"]]
    return frames


def moved_mark(frames: Floats) -> Floats:
    frames[:, 20] -= 0.15
    return frames


@pytest.mark.parametrize(
    ("negative", "spoil", "instruction", "expected", "at_most"),
    [
        ("perturbed", pushed, RED, 0.1 / 0.72, 0.08),  # the way back, as a share of the hand's whole way
        ("lagging", lagging, RED, 0.95 - 20 / 38, 0.2),  # no more than before the block first moved
        ("elsewhere", moved_mark, RED, 0.15 / 0.72, 0.12),
        ("mismatched", lambda frames: frames, BLUE, 0.95, 0.1),  # nothing
    ],
)
def test_each_negative_teaches_the_critic_to_read_lower(
    negative: str, spoil: Callable[[Floats], Floats], instruction: str, expected: float, at_most: float
) -> None:
    """Over the last frames the estimate falls about as far as the label, and hardly without that negative."""
    frames = SHOWN[0].observations[34:39]
    falls = {
        share: estimates(critic("absolute", *share), frames)
        - estimates(critic("absolute", *share), spoil(frames.copy()), instruction)
        for share in ((negative,), ())
    }
    assert float(falls[(negative,)].mean()) == pytest.approx(expected, abs=0.06 + 0.1 * expected)
    assert float(falls[()].mean()) < at_most < expected


def test_a_pairwise_critic_tells_forwards_from_backwards() -> None:
    """How far the second frame is ahead, as a share of what was left at the first."""
    pairwise, shown = critic("pairwise", *NEGATIVES), SHOWN[0].observations
    earlier, later = np.array([0, 5, 10, 20, 25]), np.array([10, 30, 25, 36, 38])
    forwards = estimates(pairwise, shown[later], reference=shown[earlier])
    backwards = estimates(pairwise, shown[earlier], reference=shown[later])
    assert (forwards > 0.1).all() and (backwards < -0.1).all()
    by_hand = (later - earlier) / (38 - earlier)
    np.testing.assert_allclose(forwards, by_hand, atol=0.15)
    np.testing.assert_allclose(backwards[:1], [-10 / 28], atol=0.15)
    assert backwards[-1] < -0.85, "clamped at -1"
    same = estimates(pairwise, shown[later], reference=shown[later])
    np.testing.assert_allclose(same[:3], 0, atol=0.2)


def test_a_pairwise_critic_learns_from_negatives_too() -> None:
    shown = SHOWN[0].observations
    earlier = np.repeat(shown[15:16], 3, 0)
    for spoil, instruction in ((lagging, RED), (lambda frames: frames, BLUE)):
        with_them, without = (
            estimates(critic("pairwise", *negatives), spoil(shown[[34, 36, 38]].copy()), instruction, earlier)
            for negatives in (NEGATIVES, ())
        )
        assert (with_them < 0.45).all() and (without > 0.6).all()
    with pytest.raises(ValueError, match="a pairwise critic needs references"):
        estimates(critic("pairwise", *NEGATIVES), shown[:1])


def test_training_is_decided_by_the_seed() -> None:
    def quick(seed: int) -> ProgressCritic:
        training = CriticTraining(members=2, steps=5, batch=32, hidden=8, seed=seed)
        fitted = ProgressCritic("absolute", RelationFeatures(OBSERVATION), training)
        fitted.fit(SHOWN)
        return fitted

    torch.manual_seed(1)
    first, state = quick(3), torch.get_rng_state()
    assert torch.equal(state, torch.get_rng_state()) and len(first.members) == 2
    torch.manual_seed(2)
    weights = [torch.nn.utils.parameters_to_vector(c.members[0].parameters()) for c in (first, quick(3), quick(4))]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    members = [estimates(with_one(first, i), SHOWN[0].observations) for i in (0, 1)]
    np.testing.assert_allclose(estimates(first, SHOWN[0].observations), np.mean(members, 0), atol=1e-6)
    assert np.abs(members[0] - members[1]).max() > 1e-3


def with_one(critic: ProgressCritic, member: int) -> ProgressCritic:
    state = critic.state_dict()
    lone = ProgressCritic(critic.kind, critic.features, critic.training)
    lone.load_state_dict(state | {"members": state["members"][member : member + 1]})
    return lone


@pytest.mark.parametrize("kind", ["absolute", "pairwise"])
def test_a_restored_critic_answers_the_same(kind: Kind) -> None:
    learned = critic(kind, *NEGATIVES)
    restored = ProgressCritic(kind, RelationFeatures(OBSERVATION), learned.training)
    restored.load_state_dict(learned.state_dict())
    shown = SHOWN[0].observations
    reference = shown[::-1].copy() if kind == "pairwise" else None
    for instruction in (RED, BLUE):
        before, after = (estimates(c, shown, instruction, reference) for c in (learned, restored))
        np.testing.assert_array_equal(before, after)
    with pytest.raises(ValueError, match="the critic has no demonstration of 'bring tea'"):
        estimates(restored, shown[:2], "bring tea", reference)


# end conditions


def went(*ends: tuple[Any, Any], instruction: str = RED, mark: Any = (0, 0, 0), turned: float = 0) -> Shown:
    """Hand and red block go in ten steps from their first places to their last, then rest for four."""
    (hand, red), (hand_end, red_end) = (tuple(map(np.array, end)) for end in ends)
    shares = np.concatenate([np.linspace(0, 1, 11), np.ones(4)])
    rows = [
        world(hand + (hand_end - hand) * share, red + (red_end - red) * share, mark=mark, turned=turned * share)
        for share in shares
    ]
    return Shown(instruction, np.stack(rows), settle=4)


def conditions(*shown: Shown, names: tuple[str, ...] = RELATIONS, sharpness: float = 0.1) -> EndConditions:
    judge = EndConditions(RelationFeatures(OBSERVATION, names), sharpness=sharpness)
    judge.fit(shown)
    return judge


def test_a_block_that_always_ends_at_the_mark_must_be_there() -> None:
    """Starts differ, so how far the block moved says nothing; from 0.4 m, with a tolerance of 0.01 m."""
    judge = conditions(
        went(((0, 0, 0), (0.4, 0, 0)), ((0, 0, 0.1), (0, 0, 0))),
        went(((0, 0, 0), (0, 0.4, 0)), ((0, 0, 0.1), (0, 0, 0))),
        went(((0, 0, 0), (0, -0.4, 0)), ((0, 0, 0.1), (0, 0, 0))),
    )
    assert [c.relation for c in judge.conditions[RED]] == ["object-goal"] and not judge.vague
    (condition,) = judge.conditions[RED]
    assert condition.distance == pytest.approx(0.4) and condition.tolerance == pytest.approx(0.01)
    places = [(0.4, 0, 0), (0.2, 0, 0), (0, 0, 0.1), (0.009, 0, 0), (0, 0, 0), (0, 0.9, 0)]
    now = np.stack([world((1, 1, 1), red=place) for place in places])
    by_hand = [math.exp(-excess / (0.1 * 0.4)) for excess in (0.39, 0.19, 0.09, 0, 0, 0.89)]
    assert judge(now, np.repeat(now[:1], 6, 0), [RED] * 6).tolist() == pytest.approx(by_hand, rel=1e-3)


def test_the_least_met_condition_counts() -> None:
    """A lid that moves 0.3 m and turns by a half: quaternions from (1, 0, 0, 0) to (0, 0, 0, 1), distance sqrt(2)."""
    judge = conditions(went(((0, 0, 0), (0, 0, 0)), ((0, 0, 0), (0.3, 0, 0)), turned=math.pi), names=GOAL_FREE)
    assert [c.relation for c in judge.conditions[RED]] == ["object-moved", "object-turned"]
    start = world((0, 0, 0), red=(0, 0, 0))
    now = np.stack(
        [world((0, 0, 0), red=(x, 0, 0), turned=turn) for x, turn in ((0.3, 0), (0, math.pi), (0.3, math.pi))]
    )
    assert judge(now, np.stack([start] * 3), [RED] * 3).tolist() == pytest.approx([0, 0, 1], abs=1e-3)


def test_the_hand_counts_where_nothing_else_changed() -> None:
    judge = conditions(
        went(((0, 0, 0), (5, 5, 5)), ((0.3, 0, 0), (5, 5, 5)), mark=(0.3, 0, 0)),
        went(((0, 0, 0), (5, 5, 5)), ((0, 0.3, 0), (5, 5, 5)), mark=(0, 0.3, 0)),
    )
    assert [c.relation for c in judge.conditions[RED]] == ["hand-goal"] and not judge.vague


def test_where_nothing_agrees_the_instruction_is_called_vague() -> None:
    ways = [(0.3, 0, 0), (0, 0.3, 0), (0, -0.3, 0.1)]
    shown = [went(((0, 0, 0), (0, 0, 0)), (way, way), instruction=BLUE) for way in ways]
    sure = went(((0, 0, 0), (0, 0, 0)), ((0.2, 0, 0), (0.2, 0, 0)))
    judge = conditions(*shown, sure, names=GOAL_FREE)
    assert judge.vague == [BLUE] and len(judge.conditions[BLUE]) == 1
    assert [c.relation for c in judge.conditions[RED]] == ["object-moved"]
    answers = judge(shown[0].observations, np.repeat(shown[0].observations[:1], 15, 0), [BLUE] * 15)
    assert (answers >= 0).all() and (answers <= 1).all()
    with pytest.raises(ValueError, match="there are no end conditions for 'bring tea'"):
        judge(shown[0].observations[:1], shown[0].observations[:1], ["bring tea"])


def test_rows_of_several_instructions_are_answered_in_place() -> None:
    near, far = (
        went(((0, 0, 0), (0, 0, 0)), ((0, 0, 0), (x, 0, 0)), instruction=i) for x, i in ((0.1, RED), (0.4, BLUE))
    )
    judge = conditions(near, far, names=GOAL_FREE, sharpness=0.5)
    now = np.stack([world((0, 0, 0), red=(0.1, 0, 0))] * 3)
    initial = np.stack([world((0, 0, 0))] * 3)
    blue = math.exp(-0.29 / (0.5 * 0.4))
    assert judge(now, initial, [BLUE, RED, BLUE]).tolist() == pytest.approx([blue, 1, blue], rel=1e-3)


# any environment: nothing known about the numbers of an observation


def walk(goal: float, instruction: str = "go", stray: float = 0.0) -> Shown:
    """From 0 to the goal in 20 steps, 4 at rest: [place, goal, something constant, 100 x place + stray]."""
    place = goal * np.clip(np.arange(25) / 20, 0, 1)
    rows = np.stack([place, np.full(25, goal), np.full(25, 7.0), 100 * place + stray], -1)
    return Shown(instruction, rows.astype(np.float32), settle=4)


def test_state_features_by_hand() -> None:
    shown = [SimpleNamespace(observations=np.array([[0, 5, 0], [2, 5, 8]], np.float32))]
    features = StateFeatures().fitted(shown)
    spread = [math.sqrt(2), (math.sqrt(2) + math.sqrt(32)) / 2, math.sqrt(32)]  # the constant one gets the mean
    assert features.centre == pytest.approx((1, 5, 4))
    assert features.spread == pytest.approx(spread)
    now, first = torch.tensor([[3.0, 5.0, 4.0]]), torch.tensor([[1.0, 4.0, 4.0]])
    by_hand = [2 / spread[0], 0.0, 0.0, 2 / spread[0], 1 / spread[1], 0.0]
    assert features(now, first)[0].tolist() == pytest.approx(by_hand)
    assert features(now + 1000, first)[0].tolist() == [5.0] * 6
    relations = {"state-0": 2 / spread[0], "moved-1": 1 / spread[1], "apart-0-2": -1 / spread[2]}
    assert {name: features.relation(name, now, first).item() for name in relations} == pytest.approx(relations)
    with pytest.raises(ValueError, match="call fitted first"):
        StateFeatures()(now, first)
    with pytest.raises(ValueError, match="observations of 3 numbers were shown, and one of 2 is to be judged"):
        features(now[:, :2], first[:, :2])


@pytest.mark.parametrize("kind", ["absolute", "pairwise"])
def test_a_critic_without_a_layout_tells_progress(kind: Kind) -> None:
    shown = [walk(1.0), walk(0.8), walk(-1.0, "go back"), walk(-0.7, "go back")]
    training = CriticTraining(members=1, steps=200, batch=128, hidden=32)
    of = ProgressCritic(kind, StateFeatures(), training)
    of.fit(shown)
    for told in (shown[0], shown[2]):
        frames = told.observations
        first = np.repeat(frames[:1], 25, 0)
        read = of(frames, first, [told.instruction] * 25, first if kind == "pairwise" else None)
        assert np.corrcoef(read[:21], np.arange(21))[0, 1] > 0.9
        assert read[-1] > 0.8
        strayed = frames.copy()
        strayed[:, 3] = frames[0, 3]  # what moves with the place in all demonstrations stays behind
        late = of(strayed, first, [told.instruction] * 25, first if kind == "pairwise" else None)
        assert late[-1] < read[-1] - 0.1
    again = ProgressCritic(kind, StateFeatures(), training)
    again.load_state_dict(of.state_dict())
    assert again.features == of.features
    with pytest.raises(ValueError, match="one demonstration or more"):
        ProgressCritic(kind, StateFeatures()).fit([])


def test_end_conditions_without_a_layout() -> None:
    """With one goal the place itself is the condition; with several, how far place and goal are apart."""
    same = EndConditions(StateFeatures())
    same.fit([walk(1.0), walk(1.0)])
    assert {c.relation for c in same.conditions["go"]} == {"state-0", "moved-0", "state-3", "moved-3"}
    several = EndConditions(StateFeatures())
    several.fit([walk(1.0, stray=30.0), walk(-0.5, stray=-90.0), walk(0.4)])
    assert [c.relation for c in several.conditions["go"]] == ["apart-0-1"]
    ends = np.array([[0.7, 0.7, 7, 0], [0.5, 0.7, 7, 0], [-0.7, 0.7, 7, 0]], np.float32)
    there, near, away = several(ends, np.zeros_like(ends), ["go"] * 3)
    assert there == pytest.approx(1.0)
    assert there > near > away
