"""Equal budgets: seconds, rewards or rounds, made into rounds once per arm and then frozen.

Seconds are what an arm costs beyond the common start: critics, acting, learning and the gate, without evaluations. They
are read off a short run on a seed that the comparison does not use.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import UsageError
from ..families import families_of
from ..sweep import Job, attempts

Kind = Literal["seconds", "queries", "steps", "own"]
ROUNDS = 5
"""Of the run that calibrates; the first is not counted, and in the last the gate looks."""
SEED = 9001
"""That calibrates."""
_FORM = re.compile(r"(\d+(?:\.\d+)?) *(s|seconds|queries|steps)?")


@dataclass(frozen=True)
class Budget:
    """What every arm may spend.

    Attributes:
        kind: seconds of the CPU, or of the GPU where there is one; queries, rollouts that are judged; steps, rounds of
            acting and learning; own, as many rounds as each arm's flags say.
    """

    kind: Kind
    amount: float = 0.0

    @classmethod
    def of(cls, text: str) -> Budget:
        """From "90", "90s", "4000queries", "16steps" or "own". Raises UsageError for anything else."""
        if text == "own":
            return cls("own")
        match = _FORM.fullmatch(text.strip())
        if not match or not float(match[1]):
            raise UsageError(f'--budget "{text}" is no budget: give seconds (90s), 4000queries, 16steps or own')
        kind: Kind = "seconds" if match[2] in (None, "s") else match[2]  # type: ignore[assignment]
        return cls(kind, float(match[1]))

    def __str__(self) -> str:
        return "own rounds" if self.kind == "own" else f"{self.amount:g} {self.kind}"


@dataclass(frozen=True)
class Cost:
    """What an arm costs, by its short run.

    Attributes:
        clock: "cpu" seconds of all processes, or on a GPU "wall" seconds.
        setup: seconds before the first round beyond the common start, such as of critics.
        round, look: seconds of a round without the gate, and of one look of the gate.
        gate_every: rounds from one look to the next.
        queries: rollouts judged per round; 0 where nothing is.
    """

    clock: Literal["cpu", "wall"]
    setup: float
    round: float
    look: float
    gate_every: int
    queries: float

    def of(self, rounds: int) -> float:
        """Seconds of a run; the last round is looked at."""
        return self.setup + rounds * self.round + math.ceil(rounds / self.gate_every) * self.look

    def rounds(self, budget: Budget, arm: str) -> int:
        """As many as the budget pays for.

        Raises:
            UsageError: not one, or nothing that the budget counts.
        """
        if budget.kind == "queries":
            if not self.queries:
                raise UsageError(f'"{arm}" has no rollout judged: a budget of queries is none for it; give seconds')
            found = int(budget.amount / self.queries + 1e-9)
            price = f"has {self.queries:g} rollouts judged"
        else:
            found = int(max(0.0, budget.amount - self.setup) / self.round)
            while found and self.of(found) > budget.amount:
                found -= 1
            price = f"takes {self.of(1):.3g} seconds, {self.setup:.2g} of them before it"
        if found < 1:
            raise UsageError(f'a budget of {budget} is too small for a round of "{arm}", which {price}')
        return found


def common_start(job: Job) -> None:
    """Make what arms set out from, in the job's folder or in the cache, and train nothing."""
    with job.alone(), closing(job.build(job.made())):
        pass


def calibrate(job: Job) -> Cost:
    """The cost of an arm by a run of a few rounds, which evaluates nothing; its start was made before."""
    import torch

    from ..trainers.loop import train

    with job.alone():
        folder, began = job.made(), (time.process_time(), time.perf_counter())
        with closing(job.build(folder)) as experiment:
            setup = (experiment.cpu_clock() - began[0], time.perf_counter() - began[1])
            quiet = replace(experiment, evaluate=lambda actor: {}, evaluate_every=0, finish=lambda folder: None)
            train(quiet, folder)
            stages = experiment.stages
    wall = torch.cuda.is_available()
    rows, looks = folder.metrics(), {record["iteration"] for record in folder.read("gate")}
    spent = [(row["iteration"] in looks, row["time/wall" if wall else "time/cpu"]) for row in rows]
    later = spent[1:] or spent
    plain = [seconds for looked, seconds in later if not looked] or [seconds for _, seconds in later]
    each = statistics.median(plain)
    looked = [seconds for gate, seconds in later if gate]
    look = max(0.0, statistics.median(looked) - each) if looked and len(looked) < len(later) else 0.0
    return Cost(
        clock="wall" if wall else "cpu",
        setup=round(setup[wall], 4),
        round=round(max(each, 1e-6), 6),
        look=round(look, 4),
        gate_every=max(1, int(stages[0].gate_every)),
        queries=_judged(rows, stages),
    )


def _judged(rows: Sequence[Mapping[str, float]], stages: Sequence[Any]) -> float:
    """Rollouts judged per round: as the run counts, or else as asked for; none where the reward reads nothing."""
    if not families_of(stages[0].reward):
        return 0.0
    return (rows[-1]["queries"] if "queries" in rows[-1] else attempts(stages, rows)) / len(rows)
