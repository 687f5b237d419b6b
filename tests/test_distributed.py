"""Two gloo processes against one: an update on recorded rollouts, and a whole run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotelic.trainers import distributed
from autotelic.trainers.loop import train
from autotelic.trainers.runs.run_folder import RunFolder

from .toy_run import SHARED, build, folder_at, honest

ROOT = Path(__file__).parents[1]
LIMIT = 900  # seconds, after which processes that wait for each other for ever are ended


def run(*arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_an_update_by_two_processes_is_that_of_one() -> None:
    """GRPO, REINFORCE++ and pairwise regression, with three groups against two and with one against none."""
    result = json.loads(run("benchmarks/update_two_processes.py", "--quick").splitlines()[-1])
    assert result["max_difference"] < 1e-6
    assert result["max_difference_small_eps"] < 2e-5


def test_a_run_by_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """With an odd number of tasks a process has fewer groups, with one it has none; of eight minibatches some hold
    nothing of a process, or of both. One writes the folder; every metric is of both."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    printed = run(*launch, "-m", "tests.toy_run", "share", str(tmp_path))
    assert printed.count("iteration 1/2") == len(SHARED), "every process believes to be alone"
    for tasks, minibatches in SHARED:
        name = f"{tasks}-{minibatches}"
        one, two = folder_at(tmp_path / f"alone-{name}"), RunFolder.open(tmp_path / f"shared-{name}")
        train(build(honest, 2, minibatches=minibatches, tasks_per_step=tasks), one)
        here, there = (folder.load_checkpoint()["now"]["policy"] for folder in (one, two))
        assert float((here["policy"]["weight"] - there["policy"]["weight"]).abs().max()) < 1e-5
        assert here["updates"] == there["updates"] == 2
        assert two.evaluations() == one.evaluations()
        for mine, theirs in zip(one.metrics(), two.metrics(), strict=True):
            assert mine.keys() == theirs.keys() and {"category/true", "anchors/loss", "reward"} & mine.keys()
            told = [key for key in mine if not key.startswith("time/")]
            assert {key: theirs[key] for key in told} == pytest.approx({key: mine[key] for key in told}, abs=2e-6), name


def test_work_is_spread_in_contiguous_parts_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "gather", list)
    done: list[list[list[int]]] = []

    def double(some: Sequence[int]) -> list[int]:
        done[-1].append(list(some))
        return [2 * item for item in some]

    said = []
    for index in range(3):
        state = SimpleNamespace(num_processes=3, process_index=index)
        monkeypatch.setattr(distributed, "_state", lambda state=state: state)
        done.append([])
        said += distributed.spread(range(7), 2, double)
    assert said == [0, 2, 4, 6, 8, 10, 12]
    assert done == [[[0, 1], [2]], [[3, 4], [5]], [[6]]]


LEAVES = """
import atexit
import torch.distributed as group
atexit.register(lambda: print("still there" if group.is_initialized() else "left"))
from autotelic.trainers.distributed import processes
group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
processes()
"""


def test_a_process_leaves_the_group_before_python_ends() -> None:
    """Handlers run last in, first out: the one that looks was registered before the one that leaves."""
    assert run("-c", LEAVES) == "left\n"
