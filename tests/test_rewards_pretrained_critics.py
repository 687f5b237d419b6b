"""A critic pretrained on two tasks of a hand-made world reads a third one from its demonstrations."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autotelic.envs.metaworld import OBSERVATION
from autotelic.rewards.progress.pretrained_critics import PretrainedCritic, Pretraining

Floats = NDArray[np.float32]
TRAINING = Pretraining(members=1, steps=150, batch=64, hidden=24)


def path(block: Any, move: Any, reach: float = 1.0, steps: int = 20) -> Floats:
    """A hand goes to a block and takes it along by ``move``, or by a share of it; the goal is where it should end."""
    start, block, move = np.array([0.0, 0.0, 0.2]), np.asarray(block), np.asarray(move)
    rows = []
    for share in np.linspace(0, 1, steps):
        carried = block + move * reach * max(2 * share - 1, 0.0)
        hand = start + (block - start) * min(2 * share, 1.0) if share < 0.5 else carried
        rows.append([*hand, 0.5, *carried, 1, 0, 0, 0, *[0.0] * 7, *(block + move)])
    return np.array(rows, np.float32)


def places(seed: int, count: int) -> Floats:
    return np.random.default_rng(seed).uniform((-0.2, 0.4, 0.0), (0.2, 0.6, 0.05), (count, 3)).astype(np.float32)


def shown(text: str, move: Any, seed: int = 0) -> list[SimpleNamespace]:
    films = [np.concatenate([path(b, move), path(b, move)[-1:].repeat(6, 0)]) for b in places(seed, 3)]
    return [SimpleNamespace(instruction=text, observations=film, settle=6) for film in films]


def practice(move: Any, seed: int) -> SimpleNamespace:
    episodes = []
    for i, block in enumerate(places(seed, 12)):
        reach = (1.0, 0.0, 0.5)[i % 3]
        episodes.append(SimpleNamespace(observations=path(block, move, reach), success=reach == 1))
    return SimpleNamespace(demonstrations=shown("", move, seed + 50), episodes=episodes)


PRACTICE = [practice((0.2, 0, 0), 1), practice((0, 0, 0.15), 2), practice((0, -0.2, 0), 3)]


@cache
def critic() -> PretrainedCritic:
    made = PretrainedCritic(OBSERVATION, TRAINING)
    made.pretrain(PRACTICE)
    return made


def test_a_new_task_is_read_from_its_demonstrations() -> None:
    """Two new ways to move a block; one that went the way of the other task has not succeeded."""
    moves = {"left": (-0.2, 0.0, 0.0), "away": (0.0, 0.2, 0.0)}
    adapted = critic().adapt([d for text, move in moves.items() for d in shown(text, move)])
    block = places(9, 1)[0]
    told, films = [], []
    for text in moves:
        for move in moves.values():
            film = path(block, move)
            film[:, 18:21] = block + np.array(moves[text])
            films.append(film)
            told.append(text)
    values = adapted(np.stack([f[-1] for f in films]), np.stack([f[0] for f in films]), told).tolist()
    right, wrong = [values[0], values[3]], [values[1], values[2]]
    assert min(right) > 0.7
    assert max(wrong) < 0.3
    way = adapted(films[0], films[0][:1].repeat(20, 0), ["left"] * 20)
    assert way[:12].max() < 0.3


def test_rows_of_several_instructions_are_answered_in_place_and_restored() -> None:
    demonstrations = shown("left", (-0.2, 0, 0)) + shown("away", (0, 0.2, 0))
    adapted = critic().adapt(demonstrations)
    film = path(places(9, 1)[0], (-0.2, 0, 0))
    first, told = film[:1].repeat(20, 0), ["left", "away"] * 10
    mixed = adapted(film, first, told)
    for text in ("left", "away"):
        assert mixed[[t == text for t in told]] == pytest.approx(
            adapted(film, first, [text] * 20)[[t == text for t in told]], abs=1e-6
        )
    restored = PretrainedCritic(OBSERVATION, TRAINING)
    restored.load_state_dict(critic().state_dict())
    assert restored.adapt(demonstrations)(film, first, told).tolist() == mixed.tolist()


def test_training_is_decided_by_the_seed() -> None:
    few = Pretraining(members=1, steps=3, batch=16, hidden=8)
    losses = []
    for _ in range(2):
        losses.append(PretrainedCritic(OBSERVATION, few).pretrain(PRACTICE))
    assert losses[0] == losses[1]


def test_bad_input_is_refused_in_one_line() -> None:
    fresh = PretrainedCritic(OBSERVATION, TRAINING)
    with pytest.raises(ValueError, match=r"^pretrain the critic, or load one, before it adapts$"):
        fresh.adapt(shown("left", (-0.2, 0, 0)))
    failures = [e for e in PRACTICE[0].episodes if not e.success]
    with pytest.raises(ValueError, match=r"^pretraining needs tasks with successes and failures$"):
        fresh.pretrain([SimpleNamespace(demonstrations=PRACTICE[0].demonstrations, episodes=failures)])
    film = path(places(9, 1)[0], (-0.2, 0, 0))[:1]
    with pytest.raises(ValueError, match=r"^the critic was not adapted to 'fly'$"):
        critic().adapt(shown("left", (-0.2, 0, 0)))(film, film, ["fly"])
