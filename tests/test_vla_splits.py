"""No state that is learned from or shown is evaluated: what episodes begin with is compared when a run is built."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotelic.envs.simulator import EnvSpec, register
from autotelic.envs.splits import WIDTH, seeds
from autotelic.errors import UsageError
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.vla.recipes import oracle_grpo

from .point_mass import PointMass, arrived, register_point_mass, straight


class Listed(PointMass):
    """Has so many marks, which its seeds take in turn."""

    marks = 50

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        angle = 2 * np.pi * ((seed or 0) % self.marks) / self.marks
        self.mark = np.array([np.cos(angle), np.sin(angle)])
        return self.seen(), {}


class Shifted(Listed):
    """Demonstrations begin where the fourth evaluated state does, and training nowhere near."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        split = ("train", "eval", "probe", "demo").index
        where, place = divmod(seed or 0, WIDTH)
        return super().reset(seed={split("eval"): place, split("demo"): place + 3}.get(where, place + 25))


class Few(Listed):
    marks = 3


class Alike(Listed):
    marks = 1


WORLDS: dict[str, type[PointMass]] = {"listed": Listed, "shifted": Shifted, "few": Few, "alike": Alike}


@pytest.fixture(scope="module", autouse=True)
def worlds() -> None:
    register_point_mass()
    for name, world in WORLDS.items():
        register(name, EnvSpec(make=world, instruction=name, max_episode_steps=8, success=arrived, expert=straight))


def built(name: str, path: Path, **changes: Any) -> Any:
    fields: dict[str, Any] = {"tasks": (name,), "bc_steps": 1, "workers": -1, "videos": 0, "chunk": 1, "settle": 0}
    fields |= {"tasks_per_step": 2, "group_size": 2, "eval_episodes": 4, "max_steps": 1}
    run = RunFolder.create(path / name, recipe="vla/oracle_grpo", config={}, command="")
    return oracle_grpo.build(oracle_grpo.Config(**fields | changes), run)


def test_new_states_for_every_seed_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(built("point-mass", tmp_path)) as experiment:
        assert "few initial states" not in caplog.text
        assert experiment.method["success"].endswith("4 held-out initial states per task")


def test_states_that_two_sides_share_are_refused(tmp_path: Path) -> None:
    """The first seeds of training and evaluation lead to the same marks, since a split is a multiple of 50 wide."""
    assert WIDTH % Listed.marks == 0 and seeds("train", 1) != seeds("eval", 1)
    with pytest.raises(UsageError, match=r"training and evaluation share content, 2 times: seed [01] of listed"):
        built("listed", tmp_path)


def test_demonstrated_states_are_a_side(tmp_path: Path) -> None:
    """Evaluation skips the marks of training; the fourth that it has is that of run 0's first demonstration."""
    with pytest.raises(UsageError, match=r"evaluation and demonstrations share content, 1 times: seed"):
        built("shifted", tmp_path)


@pytest.mark.parametrize(("name", "shared"), [("few", 4), ("alike", 4)])
def test_an_environment_that_has_few_is_told(
    name: str, shared: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = f"it has few initial states, so {shared} of 4 evaluated ones are also learned from or shown"
    with (
        caplog.at_level(logging.WARNING),
        closing(built(name, tmp_path, tasks_per_step=3, group_size=2)) as experiment,
    ):
        assert f"{name}: {told}" in caplog.text
        assert experiment.method["success"].endswith(f"per task; {name}: {told}")
