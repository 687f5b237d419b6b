"""Thousands of rounds with everything going wrong now and then, twice: once at a stretch, once interrupted by SIGTERM.

The smallest run of each modality meets faults that are keyed by (seed, round): a reward that raises, is late, says NaN
or nothing; a judge's server that is dead; a simulator's worker that is killed; a simulator that hangs; a disk that is
full. The interrupted run must end as the other one did, to the bit, and the memory of all living processes together
must not grow: a straight line through rounds 500 to 2,000 rises by less than 2 % of its mean.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common import ROOT, parser_of, save

sys.path.insert(0, str(ROOT))

REWARD = ("raises", "late", "nan", "none", "dead server")
MACHINE = ("full disk",)
SIMULATOR = ("killed worker",)
RUNS: Mapping[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "vlm": ("vlm/grpo", (), REWARD + MACHINE),
    "vla": (
        "vla/oracle_grpo",
        ("--tasks", "soak/point-mass", "--workers", "1", "--videos", "0"),
        REWARD + MACHINE + SIMULATOR,
    ),
    "diffusion": ("diffusion/ddpo", (), REWARD + MACHINE),
}
"""Recipe, flags beside --debug, and the faults of each modality."""
RATE = 0.05
"""How often a round has a fault."""
INTERRUPTIONS = 6
SETTLED, GROWTH = 500, 0.02
QUESTIONS = 2**20
"""Bytes of questions that a model that speaks keeps: full before memory is looked at, unlike the default's 1 GiB."""


def fault_of(kinds: Sequence[str], seed: int, iteration: int) -> str:
    """What goes wrong in a round; "" if nothing does."""
    draw = random.Random(f"fault {seed} {iteration}")
    return draw.choice(list(kinds)) if draw.random() < RATE else ""


@dataclass
class Faults:
    """What goes wrong now: told of every round, asked by a reward, a disk and a simulator."""

    kinds: Sequence[str]
    seed: int
    iteration: int = 0
    met: dict[str, int] = field(default_factory=dict)

    @property
    def now(self) -> str:
        return fault_of(self.kinds, self.seed, self.iteration)

    @contextmanager
    def round(self) -> Iterator[None]:
        """A guard around acting and learning."""
        if self.now:
            self.met[self.now] = self.met.get(self.now, 0) + 1
        if self.now == "killed worker":
            for pid in children(os.getpid()):
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    break
        yield
        self.iteration += 1


def unlucky(rollout: Any) -> bool:
    """Whether a sample is one of those, one in four, that a reward that raises cannot read."""
    return int(1e6 * abs(float(rollout.log_probs.sum()))) % 4 == 0


class Faulty:
    """A reward that fails in the rounds that have such a fault, and then as every time."""

    def __init__(self, reward: Any, faults: Faults) -> None:
        from autotelic.families import families_of

        self.reward, self.faults, self.families = reward, faults, families_of(reward)

    def __call__(self, **columns: Any) -> Any:
        scores = self.reward(**columns)
        scores = [*(scores["total"] if isinstance(scores, Mapping) else scores)]
        match self.faults.now:
            case "raises" if any(map(unlucky, columns["rollouts"])):
                raise ValueError("a sample cannot be read")
            case "late":
                time.sleep(0.2)
            case "nan":
                scores[0] = float("nan")
            case "none":
                return [None] * len(scores)
            case "dead server":
                raise ConnectionError("no server there")
        return scores


def children(pid: int) -> list[int]:
    """Every living descendant of a process."""
    direct = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    return [each for child in direct for each in (child, *children(child))]


def memory() -> int:
    """Bytes that this process and its descendants hold, shared pages counted once between them.

    Pages of files are left out: their share falls and rises with whoever else on the machine has loaded them.
    """
    total = 0
    for pid in (os.getpid(), *children(os.getpid())):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total


def one(modality: str, path: Path, seed: int, rounds: int) -> None:
    """Make a run or go on with it; a line per ten rounds in memory.jsonl, its faults in faults.json."""
    from autotelic.options import parse, run_options
    from autotelic.recipes import find_recipe
    from autotelic.trainers.loop import train
    from autotelic.trainers.runs import checkpoint
    from autotelic.trainers.runs.callbacks import Callback
    from autotelic.trainers.runs.run_folder import RunFolder

    if modality == "vla":
        from tests.soak_mass import register_mass

        register_mass()
    recipe, flags, kinds = RUNS[modality]
    module = find_recipe(recipe).load()
    words = [*flags, "--max-steps", str(rounds), "--seed", str(seed)]
    config = parse(run_options(module.Config.tiny()), words, recipe).config
    faults = Faults(kinds, seed)
    written = checkpoint.save_file

    def save_file(*arguments: Any) -> None:
        if faults.now == "full disk":
            raise OSError(28, "No space left on device")
        written(*arguments)

    checkpoint.save_file = save_file

    class Listener(Callback):
        def on_start(self, run: Any) -> None:
            faults.iteration = run.iteration

        def on_iteration(self, iteration: int, metrics: Mapping[str, float]) -> None:
            if iteration % 10 == 0:
                with (path / "memory.jsonl").open("a") as file:
                    file.write(json.dumps({"iteration": iteration, "bytes": memory()}) + "\n")

    resume = (path / "config.json").exists()
    folder = RunFolder.open(path) if resume else RunFolder.create(path, recipe=recipe, config={}, command="soak")
    with closing(module.build(config, folder)) as experiment:
        stage = experiment.stages[0]
        if modality == "vlm":
            stage.actor.renderer.store.limit = QUESTIONS
        stage = replace(stage, reward=Faulty(stage.reward, faults), guard=faults.round)
        experiment = replace(experiment, stages=[stage], callbacks=[Listener()], finish=lambda folder: None)
        try:
            train(experiment, folder, resume=resume)
        finally:
            (path / "faults.json").write_text(json.dumps(faults.met))


def soaked(modality: str, path: Path, seed: int, rounds: int, *, interrupted: bool) -> int:
    """A whole run, interrupted at moments of its own or not; how often it was started."""
    command = [sys.executable, __file__, "--one", modality, str(path), str(seed), str(rounds)]
    draw, starts = random.Random(f"moments {seed}"), 0
    moments = sorted(draw.sample(range(1, rounds), INTERRUPTIONS)) if interrupted else []
    while True:
        starts += 1
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and moments:
            time.sleep(0.05)
            metrics = path / "metrics.jsonl"
            if metrics.exists() and len(metrics.read_bytes().splitlines()) >= moments[0]:
                moments.pop(0)
                process.send_signal(signal.SIGTERM)
                break
        _, said = process.communicate()
        if process.returncode == 0:
            return starts
        if "KeyboardInterrupt" not in said and process.returncode != -signal.SIGTERM:  # that, before the first round
            raise SystemExit(f"{modality}: {said[-3000:]}")


def slope(path: Path) -> float:
    """How much a straight line through the settled rounds' memory rises, as a share of their mean."""
    rows = [json.loads(line) for line in (path / "memory.jsonl").read_text().splitlines()]
    last = rows[-1]["iteration"]
    rows = [row for row in rows if row["iteration"] >= min(SETTLED, last // 4)]
    x, y = ([float(row[name]) for row in rows] for name in ("iteration", "bytes"))
    middle, mean = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - middle) * (b - mean) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)
    return rise * (x[-1] - x[0]) / mean


def hung(rows: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """How many rounds had a simulator that hung: nothing else is an environment's fault here."""
    count = sum(row.get("faults/environment", 0) > 0 for row in rows)
    return {"hung simulator": count} if count else {}


def compared(modality: str, folder: Path, seed: int, rounds: int) -> dict[str, Any]:
    """A run at a stretch and an interrupted one."""
    from autotelic.trainers.runs.run_folder import RunFolder
    from autotelic.trainers.weights import checksum

    paths = {name: folder / f"{modality}-{name}" for name in ("straight", "interrupted")}
    starts = {
        name: soaked(modality, path, seed, rounds, interrupted=name == "interrupted") for name, path in paths.items()
    }
    runs = {name: RunFolder.open(path) for name, path in paths.items()}
    states = {name: run.load_checkpoint("latest") for name, run in runs.items()}
    rows = {
        name: [{k: repr(v) for k, v in row.items() if not k.startswith("time/")} for row in run.metrics()]
        for name, run in runs.items()
    }
    return {
        "rounds": len(rows["straight"]),
        "starts": starts["interrupted"],
        "faults": json.loads((paths["straight"] / "faults.json").read_text()) | hung(runs["straight"].metrics()),
        "same_weights": checksum(states["straight"]["now"]) == checksum(states["interrupted"]["now"]),
        "same_metrics": rows["straight"] == rows["interrupted"],
        "memory_growth": round(slope(paths["straight"]), 4),
        "seconds": round(sum(row["time/act"] + row["time/learn"] for row in runs["straight"].metrics()), 1),
    }


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        modality, path, seed, rounds = sys.argv[2:]
        one(modality, Path(path), int(seed), int(rounds))
        return
    parser = parser_of(__doc__, "20 rounds")
    parser.add_argument("--modalities", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rounds = 20 if options.quick else options.rounds
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        for modality in options.modalities:
            figures[modality] = row = compared(modality, Path(name), options.seed, rounds)
            row["settled"] = row["memory_growth"] < GROWTH
            print(modality, row, flush=True)
            save(options, {"rounds": rounds, "seed": options.seed, "modalities": figures})


if __name__ == "__main__":
    main()
