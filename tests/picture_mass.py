"""The point and its mark as a picture: the smallest robot that has to look."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from autotelic.envs.pool import Pool
from autotelic.envs.simulator import EnvSpec, register
from autotelic.types import Task

from .point_mass import INSTRUCTION, PointMass, arrived, straight

sys.path.append(str(Path(__file__).parent.parent))  # where the processes that draw find this module
gymnasium.register("test/PictureMass-v0", "tests.picture_mass:PictureMass")
NAME = "picture-mass"
SIZE = 32


class PictureMass(PointMass):
    """A red square where the point is, a green one where the mark is; of itself it feels where the point is."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> Any:
        picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        for place, colour in ((self.mark, 1), (self.point, 0)):
            column, row = (int(x) for x in np.clip((place + 1.5) / 3 * SIZE, 2, SIZE - 3))
            picture[row - 2 : row + 3, column - 2 : column + 3, colour] = 255
        return picture


@contextmanager
def simulators(chunk: int = 4, workers: int = 0) -> Iterator[Pool]:
    """A pool whose pictures come from one worker process."""
    spec = EnvSpec(
        "tests.picture_mass:test/PictureMass-v0", INSTRUCTION, 8, arrived, expert=straight, proprioception=slice(0, 2)
    )
    register(NAME, spec)
    with Pool([NAME], chunk=chunk, workers=workers) as pool:
        yield pool


def picture_task(seed: int, horizon: int = 8) -> Task:
    return Task(f"{NAME}/{seed}", INSTRUCTION, category=NAME, seed=seed, horizon=horizon, extra={"environment": NAME})
