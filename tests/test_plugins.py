"""Plugins: files and modules by where they are, names by kind, and what is told of those that do not fit."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotelic import plugins
from autotelic.errors import UsageError
from autotelic.plugins import imported, loaded, module_at, named, names, register, require, use

pytestmark = pytest.mark.usefixtures("forget")


def written(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


# --- the importer ------------------------------------------------------------------------------


def test_two_files_of_one_stem_both_work_and_a_copy_is_the_same_module(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a/same.py", "x = [1]"), written(tmp_path / "b/same.py", "x = [2]")
    copy = written(tmp_path / "c/same.py", "x = [1]")
    assert (imported(f"{one}:x"), imported(f"{two}:x")) == ([1], [2])
    assert module_at(one) is module_at(copy) is not module_at(two)


def test_a_neighbour_that_imports_a_plugin_by_its_stem_gets_the_same_module(tmp_path: Path) -> None:
    first = written(tmp_path / "a_world_of_tests.py", "class World: pass")
    second = written(tmp_path / "its_neighbour.py", "from a_world_of_tests import World\nx = World")
    assert imported(f"{first}:World") is imported(f"{second}:x")


def test_a_module_of_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "here/inside_of_test.py", "class A:\n    b = 3")
    monkeypatch.chdir(tmp_path)
    assert imported("here.inside_of_test:A.b") == 3


WORKING = """
def double(x):
    return 2 * x
"""


def test_a_spawned_process_unpickles_what_a_file_defines(tmp_path: Path) -> None:
    double = imported(f"{written(tmp_path / 'doubling.py', WORKING)}:double")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(double, [1, 2]) == [2, 4]


def test_a_file_that_changed_is_told_to_the_process_that_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "changing.py"
    sent = pickle.dumps(imported(f"{written(path, WORKING)}:double"))
    code = f"import pickle; print(pickle.loads({sent!r})(4))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "8\n"
    path.write_text(WORKING.replace("2", "3"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "changing.py has changed since it was imported" in done.stderr
    copy = written(tmp_path / "kept/changing.py", WORKING)
    plugins.copied(path, Path(copy))
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "8\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import no_such_module_at_all", r"cannot import .*bad.py: ModuleNotFoundError: .* \(bad.py, line 1\)"),
        ("\ndef f(:\n", r"cannot import .*bad.py: SyntaxError: .*\(bad.py, line 2\)"),
        ("import json\n\njson.loads('{')", r"cannot import .*bad.py: JSONDecodeError: .* \(bad.py, line 3\)"),
        ("raise SystemExit(0)", r"cannot import .*bad.py: SystemExit: 0 \(bad.py, line 1\)"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told_with_its_line(tmp_path: Path, text: str, line: str) -> None:
    bad = written(tmp_path / "bad.py", text)
    for _ in range(2):  # the second time as the first
        with pytest.raises(UsageError, match=line) as told:
            module_at(bad)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("nowhere.py:x", "there is no file nowhere.py"),
        ("no_such_module_at_all:x", "cannot import no_such_module_at_all: ModuleNotFoundError"),
        ("os:pahtsep", 'unknown name "os:pahtsep": did you mean os:pathsep'),
        ("Uphill", '"Uphill" is neither package.module:name nor path/to/file.py:name'),
    ],
)
def test_what_is_not_there_is_named(place: str, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        imported(place)


# --- the registry ------------------------------------------------------------------------------


def test_a_name_a_place_and_a_decorator_all_lead_to_the_plugin(tmp_path: Path) -> None:
    text = "from autotelic.plugins import register\n@register('advantage', 'halved')\ndef halved(batch): ..."
    path = written(tmp_path / "halving.py", text)
    use([path])
    assert named("advantage", "halved") is named("advantage", f"{path}:halved")
    assert "halved" in names("advantage") and "halved" not in names("objective")

    @register("gate", "strict")
    def strict(candidate: Any, others: Any) -> None: ...

    assert named("gate", "strict") is strict
    register("gate", "lazy", f"{path}:halved")
    assert named("gate", "lazy") is named("advantage", "halved")


def test_every_built_in_name_is_there_and_fits_its_kind() -> None:
    for kind in plugins.KINDS:
        for name in plugins.BUILT_IN.get(kind, ()):
            require(kind, named(kind, name))


def test_an_unknown_name_and_an_unknown_kind_are_told_the_nearest() -> None:
    with pytest.raises(UsageError, match=r'unknown objective "ppo_clp": did you mean ppo_clip\? .*FILE.py:NAME'):
        named("objective", "ppo_clp")
    with pytest.raises(UsageError, match='unknown kind of plugin "rewrad": did you mean reward'):
        register("rewrad", "x", 1)


TAKING = """from autotelic.plugins import register


register("reward", "{name}", lambda **_: [{value}])
"""


def test_a_taken_name_is_told_with_file_and_line(tmp_path: Path) -> None:
    one = written(tmp_path / "one.py", TAKING.format(name="mine", value=1))
    two = written(tmp_path / "two.py", TAKING.format(name="mine", value=2))
    with pytest.raises(UsageError, match=r'two.py, line 4: the reward "mine" is taken by .*one.py, line 4'):
        use([one, two])
    assert named("reward", "mine")() == [1]
    built_in = written(tmp_path / "three.py", TAKING.format(name="exact", value=3))
    with pytest.raises(UsageError, match=r'three.py, line 4: the reward "exact" comes with autotelic'):
        use([built_in])


def test_versions_of_a_plugin_follow_one_another_but_do_not_stand_side_by_side(tmp_path: Path) -> None:
    old = written(tmp_path / "old/mine.py", TAKING.format(name="own", value=1))
    new = written(tmp_path / "new/mine.py", TAKING.format(name="own", value=2))
    for path, value in ((old, 1), (new, 2), (old, 1)):
        use([path])
        assert named("reward", "own")() == [value]
    third = written(tmp_path / "third/mine.py", TAKING.format(name="own", value=3))
    fourth = written(tmp_path / "fourth/mine.py", TAKING.format(name="own", value=4))
    with pytest.raises(UsageError, match="is taken by"):
        use([third, fourth])


LACKING = """class NoUpdate:
    def sample(self, n): ...


class Forgetful(NoUpdate):
    def update(self, rollouts): ...
    def state_dict(self): ...
    load_state_dict: object


instance = NoUpdate()
"""


def test_what_a_plugin_lacks_is_told_with_its_file_and_line(tmp_path: Path) -> None:
    path = written(tmp_path / "lacking.py", LACKING)
    with pytest.raises(UsageError, match=r"lacking_\w+|lacking.py, line 1: the curriculum NoUpdate has no update"):
        named("curriculum", f"{path}:NoUpdate")
    with pytest.raises(UsageError, match=r"lacking.py, line 1: the curriculum NoUpdate has no update"):
        named("curriculum", f"{path}:instance")
    assert named("curriculum", f"{path}:Forgetful").__name__ == "Forgetful"  # declared, and set when made
    with pytest.raises(UsageError, match=r"lacking.py: the recipe lacking_\w+ has no Config"):
        named("recipe", path)


def test_an_unwritten_method_of_an_abstract_base_is_missing() -> None:
    from autotelic.trainers.objectives import Term

    class Half(Term):
        pass

    with pytest.raises(UsageError, match=r"test_plugins.py, line \d+: the objective Half has no "):
        require("objective", Half)


# --- packages and workers ----------------------------------------------------------------------


def test_entry_points_are_entered_at_the_first_look_and_a_broken_one_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "fine_plugin_of_tests.py", TAKING.format(name="packaged", value=5))
    written(tmp_path / "broken_plugin_of_tests.py", "1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    points = [
        SimpleNamespace(name=n, module=f"{n}_plugin_of_tests", dist=SimpleNamespace(name="p"))
        for n in ("broken", "fine")
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "autotelic.plugins" else [])
    monkeypatch.setattr(plugins, "_entered", {})
    with caplog.at_level(logging.WARNING):
        assert named("reward", "packaged")() == [5]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the plugin broken of p is left out: cannot import") and "ZeroDivisionError" in line


WORLD = """
import gymnasium
from autotelic.envs.simulator import EnvSpec
from autotelic.plugins import register
from tests.point_mass import PointMass, arrived

gymnasium.register("plugin/Mass-v0", lambda: PointMass())  # not an entry that another process could import

def near(outcome):
    return arrived(outcome)

register("environment", "plugin/mass", EnvSpec("plugin/Mass-v0", "go to the mark", 8, near))
"""


def test_a_worker_imports_the_plugins_of_environments_and_no_others(tmp_path: Path) -> None:
    from autotelic.envs.pool import EpisodeRequest, Pool

    sys.path.append(str(Path(__file__).parent.parent))  # where the worker finds the point mass
    world = written(tmp_path / "massive.py", WORLD)
    other = written(tmp_path / "only_a_reward.py", TAKING.format(name="another", value=1))
    silent = written(tmp_path / "silent.py", "x = 1")
    use([world, other, silent])
    assert [name.rpartition(".")[2][:-9] for name in loaded("environment")][-2:] == ["massive", "silent"]
    pool = Pool(["plugin/mass"], chunk=2, workers=1)
    try:
        import numpy as np

        request = EpisodeRequest("plugin/mass", 0, 4)
        (episode,) = pool.run([request], lambda rows, seen: np.zeros((len(rows), 2, 2), np.float32), oracle=True)
        assert episode.success is False
    finally:
        pool.close()


def test_importing_plugins_imports_nothing_heavy() -> None:
    code = (
        "import sys, autotelic.plugins as p; p.names('reward'); "
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


# --- a text-only recipe that stands anywhere ---------------------------------------------------

RECIPE = '''"""Longer answers become likelier by REINFORCE: a recipe in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autotelic.plugins import register
from autotelic.vlm.setting import LanguageConfig


@register("reward", "wordy")
def wordy(completions: list[str], **_: Any) -> list[float]:
    """The number of different words."""
    return [float(len(set(completion.split()))) for completion in completions]


@dataclass(frozen=True)
class Config(LanguageConfig):
    rewards: tuple[str, ...] = ("wordy",)
    lora_rank: int = 0


def build(config: Config, folder: Any) -> Any:
    from autotelic.trainers.advantages import rloo
    from autotelic.trainers.objectives import Reinforce
    from autotelic.vlm.setting import start

    setting = start(config)
    reward = setting.reward()
    learner = setting.learner(Reinforce(), advantage=rloo())
    return setting.experiment([setting.stage(learner, reward, proxy=reward)])
'''


def test_a_text_only_recipe_of_at_most_60_lines_runs_and_evaluates_from_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]
) -> None:
    from autotelic.cli import main
    from autotelic.testing import vlms as tiny_vlms

    assert len(RECIPE.splitlines()) <= 60
    path = written(tmp_path / "my_text.py", RECIPE)
    for part in tiny_vlms.text("llama"):
        part.save_pretrained(tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    assert main(["run", path, "--debug", "--model", "llama", "--output-dir", "run"]) == 0
    Path(path).unlink()
    forget()
    assert main(["eval", "run", "--episodes", "1"]) == 0
    assert (tmp_path / "run/evaluations/best-0-1.json").is_file()
