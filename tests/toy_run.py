"""A small run with everything on: gate, repairs, anchors, SEC and a progressive horizon.

It spells words of two categories. The reward lies about the category "lie": it is highest where the judge is lowest.
As a program it runs copies of itself and kills or interrupts them at given moments, without importing torch anew for
each: ``python -m tests.toy_run kill FOLDER MOMENT...`` or ``python -m tests.toy_run interrupt FOLDER``. With ``share
FOLDER`` it takes its part in a run of several processes.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from autotelic.rewards.names import make_reward
from autotelic.trainers.advantages import grpo
from autotelic.trainers.curricula import SEC, ProgressiveHorizon
from autotelic.trainers.distributed import barrier, is_main
from autotelic.trainers.dynamic_sampling import DynamicSampling
from autotelic.trainers.gates import NonInferiority
from autotelic.trainers.learner import AnchorSet, Optimisation, PolicyLearner
from autotelic.trainers.loop import Experiment, Stage, train
from autotelic.trainers.objectives import Entropy, KLPenalty, PPOClip, WeightedImitation
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.types import Actor, Task

from .toys import TokenToy

WORDS = {"true": [(2, 1, 0), (3, 3, 1)], "lie": [(0, 2, 2), (1, 3, 0)]}
NUMBERS = {word: number for number, word in enumerate(word for words in WORDS.values() for word in words)}
ITERATIONS = 4
PICKY = DynamicSampling(0.2, 0.5, batches=3)
SHARED = ((3, 1, None), (1, 1, None), (11, 8, None), (2, 8, None), (5, 2, PICKY))
"""Tasks, minibatches, and which groups are kept."""
KILLED_IN = 3  # the iteration in which copies are killed


def spelling_task(category: str, index: int, kind: str = "train") -> Task:
    """The index-th task of a category."""
    word = WORDS[category][index % 2]
    return Task(f"{kind}-{category}-{index}", NUMBERS[word], reference=word, category=category, horizon=3)


def spelled(completions: list[Any], tasks: list[Task], **_: Any) -> list[float]:
    """Fraction of right tokens: the judge."""
    pairs = [list(zip(mine, task.reference, strict=False)) for mine, task in zip(completions, tasks, strict=True)]
    return [sum(a == b for a, b in pair) / len(pair) for pair in pairs]


def honest(**columns: Any) -> list[float]:
    """The judge's score under another name, for runs in which nothing lies."""
    return spelled(**columns)


def lying(tasks: list[Task], **columns: Any) -> list[float]:
    """The judge's score, turned round where the category is "lie"."""
    scores = spelled(tasks=tasks, **columns)
    return [1 - s if task.category == "lie" else s for s, task in zip(scores, tasks, strict=True)]


def evaluate(actor: Actor) -> Mapping[str, Any]:
    tasks = [spelling_task(category, i, "evaluation") for category in WORDS for i in range(8)]
    scores = spelled([r.output for r in actor.act(tasks, 1, key=(-1,), mode="evaluate")], tasks)
    return {"spelled": {c: sum(scores[8 * i : 8 * i + 8]) / 8 for i, c in enumerate(WORDS)}}


spelled.families = frozenset({"spelling"})
honest.families = lying.families = frozenset({"another reading"})


class Moments:
    """A guard that counts the calls of one iteration and may end the process at one of them."""

    def __init__(self, fatal: int | None = None) -> None:
        self.iteration, self.calls, self.fatal = 0, 0, fatal

    @contextmanager
    def guard(self) -> Iterator[None]:
        self.iteration += 1
        sys.setprofile(self.count if self.iteration == KILLED_IN else None)
        yield

    def count(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def build(
    reward: Callable[..., Any] = lying,
    iterations: int = ITERATIONS,
    gate: Any = NonInferiority,
    minibatches: int = 2,
    **changes: Any,
) -> Experiment:
    """The run; ``gate=None`` leaves the gate out, and ``changes`` go to the stage."""
    policy = TokenToy(len(NUMBERS))
    reference = policy.fork("reference")
    examples = [spelling_task(category, i, "anchor") for category in WORDS for i in range(2)]
    anchors = AnchorSet(policy.encode(examples, [t.reference for t in examples]), WeightedImitation(), size=2)
    learner = PolicyLearner(
        policy,
        PPOClip() + 0.01 * KLPenalty() - 0.001 * Entropy(),
        Optimisation(lr=0.1, epochs=2, minibatches=minibatches),
        advantage=grpo(),
        references={"reference": reference},
        anchors=anchors,
    )
    sources = {c: lambda index, c=c: spelling_task(c, index) for c in WORDS}
    probes = [spelling_task(category, i, "probe") for category in WORDS for i in range(40)]
    stage = {
        "steps": iterations,
        "actor": policy,
        "curriculum": ProgressiveHorizon(SEC(sources), [(0, 2 / 3), (2, 1.0)]),
        "reward": reward,
        "learners": {"policy": learner},
        "tasks_per_step": 4,
        "group_size": 4,
        "gate": gate(probes, spelled, margin=0.08, repairs=1, reward=reward) if gate else None,
        "gate_every": KILLED_IN,  # so that the last checkpoint before a kill is not what was last promoted
    }
    return Experiment([Stage(**(stage | changes))], evaluate)


def folder_at(path: Path) -> RunFolder:
    return RunFolder.create(path, recipe="toy", config={"iterations": ITERATIONS}, command="toy")


def in_a_copy(work: Callable[[], None]) -> int:
    """Run in a forked process; how it ended, as ``os.waitstatus_to_exitcode`` says it.

    For processes that have not learned themselves: PyTorch's autograd does not bear to be forked.
    """
    child = os.fork()
    if not child:
        try:
            work()
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_and_resumed(path: Path, moment: int) -> None:
    """A run that is killed at a moment of its third iteration, and goes on."""
    fatal = Moments(moment)
    killed = in_a_copy(lambda: train(build(guard=fatal.guard), folder_at(path)))
    assert killed == -signal.SIGKILL, killed
    assert in_a_copy(lambda: train(build(), RunFolder.open(path), resume=True)) == 0


def interrupted_and_resumed(path: Path, reward: Callable[..., Any] = lying) -> None:
    """A run that gets Ctrl-C while it samples its second iteration, and goes on."""

    @contextmanager
    def press(presses: list[int] = []) -> Iterator[None]:  # noqa: B006
        presses.append(1)
        if len(presses) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        yield

    assert in_a_copy(lambda: train(build(reward, guard=press), folder_at(path))) == 130
    assert len(RunFolder.open(path).metrics()) == 2
    assert in_a_copy(lambda: train(build(reward), RunFolder.open(path), resume=True)) == 0


def shared(folder: Path) -> None:
    """Runs of this process and its siblings with some tasks per iteration and minibatches."""
    for tasks, minibatches, dynamic in SHARED:
        path = folder / f"shared-{tasks}-{minibatches}"
        run = folder_at(path) if is_main() else None
        barrier()
        experiment = build(honest, 2, minibatches=minibatches, tasks_per_step=tasks, dynamic=dynamic)
        train(experiment, run or RunFolder.open(path))


if __name__ == "__main__":
    torch.set_num_threads(1)
    from torch.utils import tensorboard  # noqa: F401  imported here once, not by every copy

    build()  # and so are optimizers

    if sys.argv[1] == "kill":
        for argument in sys.argv[3:]:
            killed_and_resumed(Path(sys.argv[2]) / argument, int(argument))
    elif sys.argv[1] == "share":
        shared(Path(sys.argv[2]))
    else:
        interrupted_and_resumed(Path(sys.argv[2]), *map(make_reward, sys.argv[3:]))
