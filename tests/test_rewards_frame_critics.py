"""Critics on frames, in a flat world of one square that is to be pushed to the right or up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from autotelic.rewards.progress.estimates import Accumulator, EpisodeProgress
from autotelic.rewards.progress.frame_critics import FrameCritic, FrameTraining, _progress, _shifted

RIGHT, UP = "push it to the right", "push it up"
Frames = NDArray[np.uint8]
Kind = Literal["absolute", "pairwise"]


@dataclass(frozen=True, eq=False)
class Film:
    instruction: str
    frames: Frames
    observations: NDArray[np.float32]
    settle: int


def film(instruction: str, shares: Any, row: int = 8) -> Film:
    """A white square that has gone each share of its way."""
    frames = np.full((len(shares), 24, 24, 3), 40, np.uint8)
    for frame, share in zip(frames, shares, strict=True):
        gone = round(12 * float(share))
        across, down = (2 + gone, row + 4) if instruction == RIGHT else (2, row + 8 - gone)
        frame[max(down, 0) : down + 6, across : across + 6] = 230
    return Film(instruction, frames, np.zeros((2 * len(shares) - 1, 3), np.float32), settle=4)


WAY = np.concatenate([np.linspace(0, 1, 13), [1, 1]])
SHOWN = [film(RIGHT, WAY), film(UP, WAY)]
TRAINING = FrameTraining(
    members=1, steps=200, batch=16, size=16, width=8, shift=1, dropout=0.0, lr=4e-3, mismatched=0.25
)


@cache
def critic(kind: Kind) -> FrameCritic:
    of = FrameCritic(kind, TRAINING)
    of.fit(SHOWN, [film(RIGHT, np.zeros(5)), film("something else", WAY)])
    return of


def read(of: FrameCritic, told: Film, instruction: str | None = None, reference: int = 0) -> NDArray[np.float32]:
    n = len(told.frames)
    first = told.frames[:1].repeat(n, 0)
    references = told.frames[[reference]].repeat(n, 0) if of.kind == "pairwise" else None
    return of(told.frames, first, [instruction or told.instruction] * n, references)


@pytest.mark.parametrize("kind", ["absolute", "pairwise"])
def test_frames_further_on_read_higher_and_in_their_own_task_only(kind: Kind) -> None:
    for told in SHOWN:
        values = read(critic(kind), told)
        assert np.corrcoef(values[:13], WAY[:13])[0, 1] > 0.9
        assert values[-1] > 0.6
        other = UP if told.instruction == RIGHT else RIGHT
        assert read(critic(kind), told, other)[-1] < values[-1] - 0.1


def test_a_pairwise_critic_reads_backwards_as_a_loss() -> None:
    values = read(critic("pairwise"), SHOWN[0], reference=9)
    assert values[0] < -0.3
    assert values[-1] > 0.3


def test_play_that_shows_no_progress_lowers_what_looks_like_it() -> None:
    lit = film(RIGHT, np.zeros(9))  # play in which a lamp goes on and nothing moves
    lit.frames[1:, :, 20:] = 150
    values = []
    for play in (0.0, 1.0):
        of = FrameCritic("absolute", FrameTraining(**{**vars(TRAINING), "play": play, "mismatched": 0.0}))
        of.fit(SHOWN[:1], [lit])
        values.append(read(of, lit)[1:].mean())
    assert values[1] < 0.15
    assert values[0] > values[1]


def test_progress_of_frames_at_every_second_step() -> None:
    """15 frames of 28 steps, the last 4 of them after success: complete after half of those, at frame 13."""
    expected = np.minimum(np.arange(15) / 13, 1)
    assert _progress(SHOWN[0], 0.5).tolist() == pytest.approx(expected.tolist())
    assert _progress(SHOWN[0], 0.0).tolist() == pytest.approx(np.minimum(np.arange(15) / 12, 1).tolist())


def test_shifts_by_hand() -> None:
    frames = torch.arange(9.0).reshape(1, 1, 3, 3).expand(2, 3, 3, 3)
    moved = _shifted(frames, torch.tensor([[1, 1], [0, 2]]), 1)
    assert torch.equal(moved[0], frames[0])
    assert moved[1, 0].tolist() == [[1, 2, 2], [1, 2, 2], [4, 5, 5]]


def test_a_critic_is_decided_by_its_seed_and_restored_from_its_state() -> None:
    again = FrameCritic("absolute", TRAINING)
    again.fit(SHOWN, [film(RIGHT, np.zeros(5)), film("something else", WAY)])
    assert read(again, SHOWN[0]).tolist() == read(critic("absolute"), SHOWN[0]).tolist()
    restored = FrameCritic("absolute", TRAINING)
    restored.load_state_dict(again.state_dict())
    assert read(restored, SHOWN[1]).tolist() == read(again, SHOWN[1]).tolist()


def test_episodes_are_judged_by_their_frames() -> None:
    episodes = [film(RIGHT, np.linspace(0, far, 6)) for far in (0.2, 0.5, 1.0)]
    scores = EpisodeProgress(critic("absolute"), Accumulator("best"))(episodes, [RIGHT] * 3)
    assert scores == sorted(scores)
    assert scores[2] - scores[0] > 0.4


def test_bad_input_is_refused_in_one_line() -> None:
    of = FrameCritic("pairwise", TRAINING)
    with pytest.raises(ValueError, match=r"^a critic learns from one demonstration or more$"):
        of.fit([])
    with pytest.raises(ValueError, match=r"^an episode of 'a' has no frames: render it$"):
        of.fit([SimpleNamespace(instruction="a", frames=None)])
    with pytest.raises(ValueError, match=r"^frames are uint8 \[M, H, W, 3\], not float32 \[2, 8, 8, 3\]$"):
        of.fit([SimpleNamespace(instruction="a", frames=np.zeros((2, 8, 8, 3), np.float32))])
    of = critic("pairwise")
    frames = SHOWN[0].frames[:1]
    with pytest.raises(
        ValueError, match=r"^the critic has no demonstration of 'fly': show it one, or take one that needs none$"
    ):
        of(frames, frames, ["fly"], frames)
    with pytest.raises(ValueError, match=r"^a pairwise critic needs references$"):
        of(frames, frames, [RIGHT])
