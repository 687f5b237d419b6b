"""``autotelic audit``, recorded episodes as files, and the models that know nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autotelic import cli
from autotelic.envs.lerobot_dataset import write_episodes
from autotelic.envs.lerobot_layout import Recording
from autotelic.rewards.progress.controls import Clock, Constant, Travel
from autotelic.rewards.progress.estimates import ask
from autotelic.trainers.runs.run_folder import RunFolder


def episode(end: float, success: bool | None, frames: bool = False) -> Recording:
    """The hand goes along x to ``end`` in ten steps."""
    observations = np.zeros((11, 21), np.float32)
    observations[:, 0] = np.linspace(0, end, 11)
    pictures = {"main": np.full((11, 4, 4, 3), int(100 * end), np.uint8)} if frames else None
    actions = np.full((10, 4), 0.5, np.float32)
    return Recording("metaworld/reach-v3", "go there", 7, observations, actions, 0, pictures, success)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Successes end farther on than failures."""
    ends = [(0.5 + 0.01 * i, True) for i in range(6)] + [(0.1 + 0.01 * i, False) for i in range(6)]
    write_episodes(tmp_path / "recorded", [episode(end, won) for end, won in ends], fps=80)
    return tmp_path / "recorded"


def error(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


# models that know nothing -------------------------------------------------------------------------


def test_controls_by_hand() -> None:
    clips = [episode(0.5, True).observations[::5], episode(1.0, True).observations[:6:5]]
    texts = ["go there"] * 2
    assert ask(Clock(limit=4), clips, clips, texts) == pytest.approx([0.5, 0.25])
    assert Clock(limit=1).trace(clips[0], "") == pytest.approx([0, 1, 1])
    assert ask(Travel(slice(0, 3)), clips, clips, texts) == pytest.approx([0.5 / 1.5, 0.5 / 1.5])
    assert Travel(slice(0, 3)).trace(clips[0], "") == pytest.approx([0, 0.25 / 1.25, 0.5 / 1.5])
    assert ask(Constant(), clips[0], clips[0], ["go there"] * 3) == pytest.approx([0.5] * 3)


# the command --------------------------------------------------------------------------------------


def test_a_control_on_recorded_episodes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "audit.json"
    assert cli.main(["audit", "travel", "--episodes", str(folder), "--json", str(target)]) == 0
    shown = capsys.readouterr().out
    assert next(line for line in shown.splitlines() if line.startswith("reach-v3")).split()[1:5] == [
        "6",
        "6",
        "1.00",
        "1.00",
    ]
    assert "travel on reach-v3: tells success from failure" in shown
    (audit,) = json.loads(target.read_text())["audits"]
    assert (audit["auc"], audit["successes"], audit["voc_failure"]) == (1.0, 6, 1.0)
    assert cli.main(["audit", "time", "--episodes", str(folder)]) == 0
    assert "time on reach-v3: cannot tell success from failure: do not train on it" in capsys.readouterr().out


MODEL = """
import numpy as np

class Eye:
    kind = "absolute"
    def __call__(self, observations, initial, instructions, references=None):
        return np.clip(observations[:, 0], 0, 1)

def near(episodes, **columns):
    return [-abs(e.observations[-1][0] - 0.1) for e in episodes]

three = 3
"""


def test_a_model_and_a_reward_of_ones_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_progress.py").write_text(MODEL)
    assert cli.main(["audit", "my_own_progress:Eye", "--episodes", str(folder)]) == 0
    assert "tells success from failure" in capsys.readouterr().out
    assert cli.main(["audit", "my_own_progress:near", "--episodes", str(folder)]) == 0
    assert "prefers failures" in capsys.readouterr().out
    assert "is a int, neither" in error(["audit", "my_own_progress:three", "--episodes", str(folder)], capsys)
    assert 'unknown name "my_own_progress:Nose"' in error(
        ["audit", "my_own_progress:Nose", "--episodes", str(folder)], capsys
    )


def run_folder(path: Path, *evaluations: dict[str, Any]) -> str:
    folder = RunFolder.create(path, recipe="toy/count", config={}, command="autotelic run toy/count")
    for evaluation, name in zip(evaluations, ("before", "after"), strict=False):
        folder.write_json(f"evaluations/{name}", evaluation)
    return str(path)


def test_a_runs_own_reward_and_its_hacking_gap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    low, high = [0.2, 0.3] * 5, [0.9, 0.8] * 5
    before = {"iteration": 0, "outcomes": {"left": {"score": low, "success": [1, 0] * 5}}}
    after = {"iteration": 9, "outcomes": {"left": {"score": high, "success": [0, 0] * 5}}}
    target = tmp_path / "audit.json"
    assert cli.main(["audit", run_folder(tmp_path / "run", before, after), "--json", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "the reward on left: prefers failures" in shown
    assert "on left the reward is being hacked: reward +0.60, success -0.50" in shown
    assert json.loads(target.read_text())["hacking"][0]["hacked"] is True


def test_bad_input_ends_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = ["--episodes", str(folder)]
    assert 'unknown run "runs/nothing"' in error(["audit", "runs/nothing"], capsys)
    assert "holds scores" in error(["audit", run_folder(tmp_path / "run")], capsys)
    assert "there is no folder" in error(["audit", "time", "--episodes", str(tmp_path / "none")], capsys)
    assert 'unknown progress "tmie": did you mean time' in error(["audit", "tmie", *episodes], capsys)
    assert '"critic" is that of a run' in error(["audit", "critic", *episodes], capsys)
    assert f'cannot load "{tmp_path}"' in error(["audit", f"clip={tmp_path}", *frames(tmp_path)], capsys)
    assert "sees frames, and" in error(["audit", "clip", *episodes], capsys)
    assert "success of episode 0 is not known" in error(["audit", "time", *unknown(tmp_path)], capsys)


def frames(path: Path) -> list[str]:
    write_episodes(path / "seen", [episode(0.5, True, frames=True)], fps=80)
    return ["--episodes", str(path / "seen")]


def unknown(path: Path) -> list[str]:
    write_episodes(path / "unknown", [episode(0.5, None)], fps=80)
    return ["--episodes", str(path / "unknown")]


# recording ----------------------------------------------------------------------------------------


def test_a_run_records_what_it_does_and_what_it_was_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    from autotelic.envs.lerobot_dataset import read_demonstrations

    monkeypatch.chdir(tmp_path)
    small = ["--debug", "--tasks", "drawer-close-v3", "--max-steps", "1", "--workers", "1", "--output-dir", "run"]
    assert cli.main(["run", "vla/oracle_grpo", *small]) == 0
    assert cli.main(["record", "run", "acted", "--episodes", "3"]) == 0
    assert cli.main(["record", "run", "shown", "--demonstrations"]) == 0
    acted, shown = read_demonstrations("acted", failures=True), read_demonstrations("shown")
    assert len(acted) == 3 and len(shown) == 1 and {r.environment for r in acted} == {"metaworld/drawer-close-v3"}
    assert all(r.success is not None for r in acted)
    # what was shown teaches another run, which begins with the very same demonstration
    again = ["--demonstrations-from", "shown", "--output-dir", "again"]
    assert cli.main(["run", "vla/oracle_grpo", *small[:-2], *again]) == 0
    assert cli.main(["record", "again", "shown-again", "--demonstrations"]) == 0
    (other,) = read_demonstrations("shown-again")
    assert np.array_equal(other.observations, shown[0].observations) and np.array_equal(other.actions, shown[0].actions)
    assert "acted is not empty" in error(["record", "run", "acted"], capsys)
    assert "have no pictures" in error(["record", "run", "new", "--demonstrations", "--frames", "32"], capsys)
    car = [SimpleNamespace(environment="my/car", frames=None)]
    monkeypatch.setattr("autotelic.recording.demonstrations_of", lambda run: {"my/car": car})
    told = error(["record", "run", "new", "--demonstrations"], capsys)
    assert "steps per second of my/car are not known: say --fps" in told
    car = [SimpleNamespace(environment="my/car", frames=None)]
    monkeypatch.setattr("autotelic.recording.demonstrations_of", lambda run: {"my/car": car})
    told = error(["record", "run", "new", "--demonstrations"], capsys)
    assert "steps per second of my/car are not known: say --fps" in told
