"""Does a killed run go on as if nothing had happened? Bit-equal weights and metrics.

    python benchmarks/resume.py [--quick] [--json FILE] [--moments 20]

Runs vla/evolve_vla (small: two tasks, gate after every iteration, growing horizon) for four iterations; then
the same again, killed with SIGKILL at a random moment after the second or third, and resumed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import parser_of, save
from torch import Tensor

from autotelic.trainers.runs.run_folder import RunFolder

OPTIONS = ["--debug", "--max-steps", "4", "--seed", "3"]
COMMAND = [sys.executable, "-m", "autotelic"]


def straight(folder: Path) -> None:
    """An uninterrupted run."""
    if _start(folder).wait() != 0:
        raise RuntimeError("the uninterrupted run failed")


def killed(folder: Path, after: int, delay: float) -> int:
    """A run that is killed ``delay`` seconds after so many iterations and resumed; iterations it had made."""
    process = _start(folder)
    while _iterations(folder) < after:
        time.sleep(0.005)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    made = _iterations(folder)
    subprocess.run([*COMMAND, "resume", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return made


def _start(folder: Path) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "run", "vla/evolve_vla", *OPTIONS, "--output-dir", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def _iterations(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def differences(one: RunFolder, other: RunFolder) -> list[str]:
    """What differs: entries of the last checkpoint, metrics but times, gate records, final evaluations."""
    found = _differ(one.load_checkpoint("latest"), other.load_checkpoint("latest"), "checkpoint")
    rows = [[{k: v for k, v in row.items() if "time" not in k} for row in f.metrics()] for f in (one, other)]
    found += _differ(*rows, "metrics") + _differ(one.read("gate"), other.read("gate"), "gate")
    return found + _differ(one.evaluations()["after"], other.evaluations()["after"], "after")


def _differ(a: Any, b: Any, place: str) -> list[str]:
    if isinstance(a, Tensor):
        return [] if isinstance(b, Tensor) and a.dtype == b.dtype and a.equal(b) else [place]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [line for key in a for line in _differ(a[key], b[key], f"{place}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [line for i, pair in enumerate(zip(a, b, strict=True)) for line in _differ(*pair, f"{place}/{i}")]
    return [] if a == b or (a != a and b != b) else [place]


def main() -> None:
    parser = parser_of(__doc__, "one moment")
    parser.add_argument("--moments", type=int, default=20)
    options = parser.parse_args()
    moments = 1 if options.quick else options.moments
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "straight"
        straight(whole)
        results = []
        for moment in range(moments):
            folder = Path(scratch) / f"killed-{moment}"
            made = killed(folder, draw.choice([2, 3]), draw.uniform(0, 0.5))
            wrong = differences(RunFolder.open(whole), RunFolder.open(folder))
            results.append({"iterations_before_the_kill": made, "differences": wrong[:5]})
            print(moment, results[-1], flush=True)
    equal = sum(not r["differences"] for r in results)
    figures = {"bit_equal": int(equal == moments), "equal": equal, "moments": moments, "kills": results}
    save(options, figures)
    print(json.dumps({k: v for k, v in figures.items() if k != "kills"}))


if __name__ == "__main__":
    main()
