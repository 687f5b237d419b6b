"""Practice in other tasks: which those are, what an episode of it is, and that it is made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autotelic.envs.oracle import OracleSealed, sealed
from autotelic.envs.pool import Pool
from autotelic.rewards.progress.pretrained_critics import Pretraining
from autotelic.vla import practice
from autotelic.vla.practice import family, other_tasks, practise, pretrained_critic

CLOSE = "metaworld/drawer-close-v3"


def test_a_task_is_left_out_with_its_family() -> None:
    assert family("metaworld/drawer-open-v3") == family("drawer-close-v3") == "drawer"
    left = other_tasks(["metaworld/drawer-open-v3", "push-v3"])
    assert len(left) == 50 - 2 - 3
    assert not any(family(name) in ("drawer", "push") for name in left)
    assert "metaworld/pick-place-v3" in left


def test_practice_ends_with_success_and_is_decided_by_its_seed() -> None:
    with Pool([CLOSE], workers=0) as pool:
        made, again = (practise(pool, CLOSE, demonstrations=1, episodes=8) for _ in range(2))
        with sealed("this is a test"), pytest.raises(OracleSealed):
            practise(pool, CLOSE, demonstrations=1, episodes=1)
    outcomes = {bool(episode.success) for episode in made.episodes}
    assert outcomes == {True, False}
    for one, other in zip(made.episodes, again.episodes, strict=True):
        assert np.array_equal(one.observations, other.observations)
        assert np.abs(one.actions).max() <= 1
        if one.success:
            assert len(one.observations) < 31


def test_a_critic_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOTELIC_CACHE", str(tmp_path))
    monkeypatch.setattr(practice, "other_tasks", lambda exclude: [CLOSE])
    few = Pretraining(members=1, steps=2, batch=8, hidden=8)
    made = pretrained_critic(["metaworld/push-v3"], training=few, episodes=8, quiet=True)
    with Pool([CLOSE], workers=0) as pool:
        shown = pool.demonstrate(CLOSE, [5], horizon=150, settle=10)
    monkeypatch.setattr(practice, "practise", None)
    seen = shown[0].observations
    ask = seen, seen[:1].repeat(len(seen), 0), [shown[0].instruction] * len(seen)
    again = pretrained_critic(["metaworld/push-v3"], training=few, episodes=8, quiet=True)
    assert again.adapt(shown)(*ask).tolist() == made.adapt(shown)(*ask).tolist()
    longer = Pretraining(members=1, steps=3, batch=8, hidden=8)
    pretrained_critic(["metaworld/push-v3"], training=longer, episodes=8, quiet=True)  # from the same practice
