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
import torch

from autotelic.errors import UsageError
from autotelic.trainers import distributed
from autotelic.trainers.loop import train
from autotelic.trainers.runs.run_folder import RunFolder

from .toy_run import SHARED, build, folder_at, honest

ROOT = Path(__file__).parents[1]
LIMIT = 900  # seconds, after which processes that wait for each other for ever are ended


def run(*arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}  # two on however many GPUs
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
    for tasks, minibatches, dynamic in SHARED:
        name = f"{tasks}-{minibatches}"
        one, two = folder_at(tmp_path / f"alone-{name}"), RunFolder.open(tmp_path / f"shared-{name}")
        train(build(honest, 2, minibatches=minibatches, tasks_per_step=tasks, dynamic=dynamic), one)
        refilled = [row.get("dynamic/batches", 1) for row in one.metrics()]
        assert (max(refilled) > 1) == (dynamic is not None), "rounds that drew again are among them"
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


def says(what: str, folder: Path) -> list[object]:
    """What the first of two processes says of a part of ``toy_processes``."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.toy_processes")
    found: list[object] = json.loads(run(*launch, what, str(folder)).splitlines()[-1])["says"]
    return found


def test_who_is_stuck_is_named_when_the_time_is_over(tmp_path: Path) -> None:
    said, seconds = says("stuck", tmp_path)
    assert said == (
        "process 1 of 2 did not come within 2 seconds while the others waited: a simulator, a reward or a server may "
        "be stuck"
    )
    assert isinstance(seconds, float) and seconds < 7


def test_who_breaks_off_is_named(tmp_path: Path) -> None:
    said, _ = says("broken", tmp_path)
    assert said == "process 1 of 2 left while the others waited: its own message says why"


def test_a_scheduler_that_ends_one_process_ends_all_and_nothing_is_lost(tmp_path: Path) -> None:
    assert says("terminated", tmp_path) == [1, 1]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL wants one of each process's own; on the CPU there may be as many as one likes."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    with pytest.raises(UsageError, match=r"^2 processes on 1 GPU: start one per GPU, or set ACCELERATE_USE_CPU=true "):
        distributed._enter.__wrapped__()
    assert not distributed._on_cpu()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert distributed._on_cpu(), "Apple's GPUs have no float64"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert distributed._on_cpu()
