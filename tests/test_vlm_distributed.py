"""Two gloo processes that learn to speak against one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from . import speaking_update

ROOT = Path(__file__).parents[1]
LIMIT = 900  # seconds, after which processes that wait for each other for ever are ended


def test_an_update_of_answers_by_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """Clipped ratios in two forms, credit by turn, preferences and imitation, with three groups and with one."""
    speaking_update.record(tmp_path)
    one, start = speaking_update.updates(tmp_path), speaking_update.flat(speaking_update.tiny_policy())
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.speaking_update"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}  # two on however many GPUs
    done = subprocess.run(
        [sys.executable, *launch, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(2):
        two = load_file(tmp_path / f"weights-{rank}.safetensors")
        assert (int(one["processes"]), int(two["processes"])) == (1, 2), "every process believes to be alone"
        assert two.keys() == one.keys()
        for name in sorted(one.keys() - {"processes"}):
            alone, size = one[name], one[name].abs().clamp(min=1)
            if alone.dim():  # weights, not a metric
                assert float((alone - start).abs().max()) > speaking_update.LR / 2, f"{name}: nothing was learned"
            assert float(((alone - two[name]) / size).abs().max()) < 1e-6, f"{name} in process {rank}"
