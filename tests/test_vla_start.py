"""What a run of a robot begins with: who is cloned, and who begins as it was brought."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.vla.policy import ActionModel, ActionPolicy
from autotelic.vla.setting import RobotConfig, Setting, start

from . import point_mass


def brought(*sizes: int) -> ActionPolicy:
    """A policy of one's own that was trained elsewhere."""
    made = fresh(*sizes)
    made.pretrained = True
    return made


def fresh(observation: int, action: int, chunk: int) -> ActionPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return ActionPolicy(ActionModel(observation, action, chunk=chunk, head="gaussian", hidden=16))


def started(path: Path, model: str, **options: Any) -> Setting:
    point_mass.register_point_mass()
    config = RobotConfig(
        tasks=(point_mass.NAME,), model=model, bc_steps=4, workers=-1, videos=0, chunk=4, demonstrations=1, **options
    )
    folder = RunFolder.create(path, recipe="vla/evolve_vla", config={}, command="")
    setting = start(config, folder)
    setting.pool.close()
    return setting


def changed(setting: Setting, before: ActionPolicy) -> bool:
    now, then = setting.policy.state_dict(), before.state_dict()
    return any(not torch.equal(now[name], then[name]) for name in then)


@pytest.mark.parametrize(("name", "asked", "cloned"), [
    ("fresh", False, True), ("brought", False, False), ("brought", True, True),
])  # fmt: skip
def test_who_was_trained_before_is_not_cloned_unless_asked(
    name: str, asked: bool, cloned: bool, tmp_path: Path
) -> None:
    setting = started(tmp_path / "run", f"{__name__}:{name}", bc_pretrained=asked)
    assert changed(setting, fresh(4, 2, 4)) == cloned
    told = setting.described()["policy"]
    assert ("cloned from the demonstrations" in told) == cloned
    assert len(setting.encoded) == 1, "demonstrations are there all the same, for anchors and critics"


def test_a_saved_policy_begins_as_it_was_saved_with_its_statistics(tmp_path: Path) -> None:
    source = fresh(4, 2, 4)
    source.normalise(torch.randn(50, 4) * 3 + 7)
    source.save_pretrained(tmp_path / "policy")
    setting = started(tmp_path / "run", str(tmp_path / "policy"))
    assert not changed(setting, source), "input normalisation among it"
    assert setting.policy.state_dict()["mean"].abs().min() > 3
    again = started(tmp_path / "other", str(tmp_path / "policy"), bc_pretrained=True)
    assert changed(again, source)
