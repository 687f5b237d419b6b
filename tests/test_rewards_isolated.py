"""A reward in another interpreter: the same scores, and one line for whatever goes wrong there."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotelic.errors import UsageError
from autotelic.rewards.image.images import as_uint8
from autotelic.rewards.isolated import IsolatedError, IsolatedReward
from autotelic.rewards.isolated_worker import columns_of, named, plain
from autotelic.rewards.reward import Reward
from autotelic.trainers.scoring import RewardError, score
from autotelic.types import Rollout, Task

SCORER = '''
import os, sys, time
import numpy as np

print("printed on import")
os.system("echo printed by a shell")
sys.stdin.read()  # must not eat requests

def brightness(images, prompts, bonus=None, **rest):
    """Mean brightness, plus a bonus; does not apply to prompts that say so."""
    print("printed on call", len(images), sorted(rest))
    assert all(image.dtype == np.uint8 and image.shape[-1] == 3 for image in images) and not rest
    scores = [float(image.mean()) + (bonus[i] if bonus else 0) for i, image in enumerate(images)]
    return [None if prompt == "skip" else score for prompt, score in zip(prompts, scores)]

def several(prompts):
    count = len(prompts)
    return {"length": [len(p) for p in prompts], "halves": np.full((count, 2), 0.5), "total": [1.0] * count}

def tasks_please(tasks):
    return [0.0 for _ in tasks]

def behave(prompts):
    if "raise" in prompts:
        raise ValueError("no word\\nfor this")
    if "die" in prompts:
        os._exit(3)
    if "kill" in prompts:
        os.kill(os.getpid(), 9)
    if "sleep" in prompts:
        time.sleep(60)
    if "nonsense" in prompts:
        return ["much"] * len(prompts)
    return [os.getpid()] * len(prompts)

class Counter:
    def __init__(self):
        self.calls = 0
    def __call__(self, prompts):
        self.calls += 1
        return [self.calls] * len(prompts)

number = 3
'''


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("scorers") / "scorer.py"
    file.write_text(SCORER)
    return str(file)


@pytest.fixture
def behave(scorer: str) -> Iterator[IsolatedReward]:
    reward = IsolatedReward(f"{scorer}:behave", timeout=20)
    yield reward
    reward.close()


def test_scores_are_those_of_the_same_function_in_this_process(scorer: str, capfd: pytest.CaptureFixture[str]) -> None:
    images = torch.rand(3, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    prompts, bonus = ["a", "skip", "é 猫"], [1, 2, 0.25]
    outside = Reward(IsolatedReward(f"{scorer}:brightness"))
    theirs = outside(images=images, prompts=prompts, bonus=bonus, tasks=[Task("a", "a")] * 3)
    here = [float(image.mean()) + extra for image, extra in zip(as_uint8(images), bonus, strict=True)]
    assert theirs["total"] == [here[0], None, here[2]]
    assert outside(images=list(images), prompts=prompts)["total"][0] == here[0] - 1
    task = Task("a", "a")
    made = outside(tasks=[task], prompts=["a"], outputs=[images[0]], images=[None])["total"]
    assert made == [here[0] - 1], "who names images alone gets what was drawn"
    assert outside.name == "brightness" and not outside.differentiable
    out, err = capfd.readouterr()
    assert out == "" and "printed by a shell" in err and "printed on call 3 []" in err


def test_an_interpreter_can_stand_in_the_name(scorer: str) -> None:
    plain, other = IsolatedReward.of(f"{scorer}:several"), IsolatedReward.of(f"{sys.executable}@{scorer}:several")
    assert plain.target == other.target == f"{scorer}:several" and plain.command == other.command == (sys.executable,)
    assert other(prompts=["ab"])["length"] == [2]  # type: ignore[call-overload]
    assert plain.families == {f"undeclared:{scorer}:several"}
    assert IsolatedReward.of("/elsewhere/python@scores:f").command == ("/elsewhere/python",)


def test_several_scores_come_back_by_name(scorer: str) -> None:
    scores = IsolatedReward(f"{scorer}:several")(prompts=["ab", "abc"])
    assert scores == {"length": [2, 3], "halves": [[0.5, 0.5], [0.5, 0.5]], "total": [1, 1]}


def test_the_process_stays_and_a_copy_starts_its_own(scorer: str) -> None:
    counter = IsolatedReward(f"{scorer}:Counter")
    assert [counter(prompts=["a"]), counter(prompts=["a", "b"])] == [[1], [2, 2]]
    copy = pickle.loads(pickle.dumps(counter))
    assert copy(prompts=["a"]) == [1]
    counter.close()
    assert counter(prompts=["a"]) == [1]


def test_an_exception_comes_back_in_one_line_and_ends_nothing(behave: IsolatedReward) -> None:
    (before,) = behave(prompts=["fine"])
    with pytest.raises(IsolatedError, match=r"^ValueError: no word for this \(scorer.py, line \d+\), in the process"):
        behave(prompts=["raise"])
    with pytest.raises(IsolatedError, match=r"^ValueError: could not convert string to float: 'much', in the"):
        behave(prompts=["nonsense"])
    assert behave(prompts=["fine"]) == [before]


@pytest.mark.parametrize(("prompt", "how"), [("die", "ended with exit code 3"), ("kill", "was killed by SIGKILL")])
def test_a_death_is_told_and_the_process_replaced(behave: IsolatedReward, prompt: str, how: str) -> None:
    (before,) = behave(prompts=["fine"])
    with pytest.raises(IsolatedError, match=f"^the process of .*scorer.py:behave {how}$"):
        behave(prompts=[prompt])
    assert behave(prompts=["fine"]) != [before]


def test_a_process_that_dies_between_two_calls_is_replaced(behave: IsolatedReward) -> None:
    (before,) = behave(prompts=["fine"])
    os.kill(int(before), signal.SIGKILL)  # type: ignore[arg-type]
    deadline = time.monotonic() + 10
    while behave._child is not None and behave._child.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert behave(prompts=["fine"]) != [before]


def test_a_timeout_ends_the_process(scorer: str) -> None:
    reward = IsolatedReward(f"{scorer}:behave", timeout=4)
    (before,) = reward(prompts=["fine"])
    asked = time.monotonic()
    with pytest.raises(IsolatedError, match=r"scorer.py:behave gave no answer within 4 s and was ended$"):
        reward(prompts=["sleep"])
    assert time.monotonic() - asked < 30, "it was not ended but slept its minute"
    with pytest.raises(ProcessLookupError):
        os.kill(int(before), 0)  # type: ignore[arg-type]
    assert reward(prompts=["fine"]) != [before]


def test_a_sample_at_which_the_other_process_dies_scores_the_minimum(behave: IsolatedReward) -> None:
    rollouts = []
    for prompt in ("fine", "die"):
        mask = torch.ones(1, dtype=torch.bool)
        rollouts.append(Rollout(Task(prompt, prompt), "out", {}, None, mask, torch.zeros(1, dtype=torch.long)))
    score(rollouts, Reward(behave))
    assert rollouts[1].scores["total"] == rollouts[0].scores["total"]
    assert "raised IsolatedError: the process of" in rollouts[1].info["fault"]
    with pytest.raises(RewardError, match=r"^reward behave raised IsolatedError: .* exit code 3"):
        score(rollouts[1:], Reward(behave))


def test_a_missing_column_and_one_that_is_no_json_are_named(scorer: str, behave: IsolatedReward) -> None:
    with pytest.raises(ValueError, match=r'scorer.py:behave needs the column "prompts", and the samples have none'):
        behave(images=torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match='the column "tasks" cannot go to another process: Object of type Task is not'):
        IsolatedReward(f"{scorer}:tasks_please")(tasks=[Task("a", "a")])


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            "no_such_module_at_all:score",
            "ModuleNotFoundError: No module named 'no_such_module_at_all', in the process",
        ),
        ("nowhere.py:score", "FileNotFoundError: there is no file .*nowhere.py, in the process of"),
        ("{scorer}:absent", "AttributeError: module .* has no attribute 'absent', in the process of"),
        ("{scorer}:number", "ValueError: .*:number is no function but int, in the process of"),
        ("score", 'ValueError: "score" is neither package.module:function nor path/to/file.py:function, in the'),
    ],
)
def test_a_target_that_is_not_there_is_told_in_one_line(scorer: str, target: str, said: str) -> None:
    reward = IsolatedReward(target.format(scorer=scorer))
    for _ in range(2):  # the second call starts another process, and is told the same
        with pytest.raises(IsolatedError, match=f"^{said}"):
            reward(prompts=["a"])


def test_an_interpreter_that_cannot_serve_is_told() -> None:
    with pytest.raises(UsageError, match="cannot start the interpreter /no/such/python: No such file or directory"):
        IsolatedReward("a:b", ["/no/such/python"])(prompts=["a"])
    with pytest.raises(IsolatedError, match="the process of a:b ended with exit code 1"):
        IsolatedReward("a:b", ["false"])(prompts=["a"])
    with pytest.raises(UsageError, match="positive timeout in seconds, not 0"):
        IsolatedReward("a:b", timeout=0)


def test_an_environment_without_this_package_serves(tmp_path: Path, scorer: str) -> None:
    """A bare environment: neither this package nor torch, and numpy only when it is put there."""
    venv.create(tmp_path / "bare", symlinks=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    without = IsolatedReward(f"{scorer}:brightness", [python])
    with pytest.raises(IsolatedError, match="ModuleNotFoundError: No module named 'numpy', in the process of"):
        without(images=torch.zeros(1, 3, 2, 2), prompts=["a"])
    (packages,) = (tmp_path / "bare").glob("lib/python*/site-packages")
    for folder in Path(str(np.__file__)).parents[1].glob("numpy*"):
        (packages / folder.name).symlink_to(folder)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0
    assert without(images=torch.ones(1, 3, 2, 2), prompts=["a"]) == [255.0]


def test_a_process_ends_with_ours(tmp_path: Path, scorer: str) -> None:
    code = f"""
from autotelic.rewards.isolated import IsolatedReward
reward = IsolatedReward({f"{scorer}:behave"!r})
print(int(reward(prompts=["fine"])[0]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_what_the_worker_reads_off_a_function_and_makes_of_scores() -> None:
    def function(images: Any, prompts: Any, *, bonus: Any = None, **rest: Any) -> None:
        """Its names are all that matters."""

    assert columns_of(function) == {"takes": ["images", "prompts", "bonus"], "needs": ["images", "prompts"]}
    assert plain(torch.tensor([[1.0, 2.0]])) == [[1.0, 2.0]]
    assert plain([None, True, np.float32(0.5), torch.tensor(2)]) == [None, 1.0, 0.5, 2.0]
    assert named("os.path:join") is os.path.join


def test_a_file_is_imported_once(tmp_path: Path) -> None:
    file = tmp_path / "once.py"
    file.write_text("loaded = []\ndef first(): return loaded\ndef second(): return loaded\n")
    assert named(f"{file}:first")() is named(f"{file}:second")()
