"""The robot of one's own in the README learns, from its file and the command that stands below it."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from autotelic.cli import main
from autotelic.trainers.runs.run_folder import RunFolder

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_robot_in_the_readme_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "my/car" in block]
    (command,) = re.findall(r"```bash\n(autotelic run vla/evolve_vla --use my_car.*?)```", README, re.DOTALL)
    (tmp_path / "my_car.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = shlex.split(command.replace("\\\n", " "))[1:]
    assert main([*words, "--videos", "0", "--eval-episodes", "20", "--workers", "1", "--output-dir", "run"]) == 0
    before, after = (RunFolder.open("run").evaluations()[name]["outcomes"]["my/car"] for name in ("before", "after"))
    assert sum(before["success"]) <= 4 and sum(after["success"]) >= 10


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--use", "nowhere.py"], "there is no file nowhere.py"),
        (["--use", "no_such_module"], "cannot import no_such_module: ModuleNotFoundError"),
        (["--critic", "os:nothing"], 'unknown name "os:nothing"'),
        (["--critic", "Uphill"], 'unknown progress "Uphill": there is '),
        (["--model", "builtins:dict"], "builtins: the policy dict has no decide"),
        (["--model", "collections:namedtuple"], "cannot make a policy of collections:namedtuple"),
        (["--demonstrations-from", "here", "there"], "names 2 folders for 1 tasks"),
    ],
)
def test_what_cannot_be_found_is_named(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    told = ["run", "vla/evolve_vla", "--debug", "--tasks", "reach-v3", "--workers", "1", *words]
    assert main([*told, "--output-dir", "run"]) == 2
    assert line in capsys.readouterr().err


PLANE = """
from autotelic.envs.simulator import EnvSpec, register
from tests.point_mass import arrived, straight

where = {"hand": slice(0, 2), "goal": slice(2, 4), "gaol": slice(2, 4)}
register("plane", EnvSpec("test/PointMass-v0", "go to the mark", 8, arrived, expert=straight, layout=where))
"""


def test_relations_are_read_off_a_layout_and_a_name_that_none_knows_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plane_layout.py").write_text(PLANE)
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)  # where the worker finds tests.point_mass
    monkeypatch.chdir(tmp_path)
    told = ["run", "vla/evolve_vla", "--debug", "--use", "plane_layout.py", "--tasks", "plane", "--workers", "1"]
    assert main([*told, "--output-dir", "run"]) == 0
    assert "no relation knows 'gaol' in the layout of plane" in caplog.text


TWO_WIDE = """
from autotelic.vla.policy import ActionModel, ActionPolicy

def narrow(observation, action, chunk):
    return ActionPolicy(ActionModel(observation - 1, action, chunk=chunk))

def armless(observation, action, chunk):
    return ActionPolicy(ActionModel(observation, action + 1, chunk=chunk))
"""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("narrow", "ActionPolicy cannot decide on observations of size 21: "),
        ("armless", "ActionPolicy makes actions of size 5; metaworld/reach-v3 has 4"),
    ],
)
def test_a_policy_of_the_wrong_size_is_refused_before_anything_is_recorded(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{name}_sizes.py").write_text(TWO_WIDE)
    monkeypatch.chdir(tmp_path)
    told = ["run", "vla/evolve_vla", "--debug", "--tasks", "reach-v3", "--workers", "1", "--output-dir", "run"]
    assert main([*told, "--model", f"{name}_sizes.py:{name}"]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "run" / "start").exists()
