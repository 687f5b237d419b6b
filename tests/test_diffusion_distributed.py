"""Two gloo processes that learn to draw against one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from . import drawing_update
from .small_drawing import shapes_policy

ROOT = Path(__file__).parents[1]
LIMIT = 900  # seconds, after which processes that wait for each other for ever are ended


def test_an_update_of_pictures_by_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """PPO, pairwise regression, NFT and a reward gradient, with three groups and with one."""
    drawing_update.record(tmp_path)
    one, start = drawing_update.updates(tmp_path), drawing_update.flat(shapes_policy())
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.drawing_update"]
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
                assert float((alone - start).abs().max()) > drawing_update.LR / 2, f"{name}: nothing was learned"
            summed = not alone.dim() and "pairwise" in name  # over thousands of scalars, in single precision
            limit = 1e-5 if summed else 1e-6
            assert float(((alone - two[name]) / size).abs().max()) < limit, f"{name} in process {rank}"
