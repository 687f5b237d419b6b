"""The loop itself: gradients, weights, gates and checkpoints that go wrong, and runs that end before their end."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autotelic.errors import UsageError
from autotelic.fitting import cosine, fit
from autotelic.trainers.advantages import grpo
from autotelic.trainers.contracts import Learner
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.loop import train
from autotelic.trainers.objectives import PPOClip
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.types import Batch, Evaluation, Rollout

from ..toy_run import NUMBERS, build, folder_at, honest, spelled, spelling_task
from ..toys import TokenToy
from .cases import Gives, GoesOn, Refuses, alike, case


class Poisoned(TokenToy):
    """Spells, but the gradients of some backward passes are spoilt, and some samples have no probability."""

    def __init__(self, bad: Sequence[int] = (), value: float = math.nan, sampled: Sequence[int] = ()) -> None:
        super().__init__(len(NUMBERS))
        self.bad, self.value, self.sampled = set(bad), value, set(sampled)
        self.passes = self.acts = 0

    def backward(self, batch: Batch, cotangents: Evaluation) -> None:
        super().backward(batch, cotangents)
        self.passes += 1
        if self.passes in self.bad:
            next(iter(self.parameters())).grad[0, 0] = self.value  # type: ignore[index]

    def act(self, tasks: Any, n: int, *, key: Any = (0,), mode: str = "train", **rest: Any) -> list[Rollout]:
        rollouts = super().act(tasks, n, key=key, mode=mode, **rest)
        self.acts += mode == "train"
        if mode == "train" and self.acts in self.sampled:
            return [replace(r, log_probs=torch.full_like(r.log_probs, math.nan)) for r in rollouts]  # type: ignore[arg-type]
        return rollouts


def learner_of(policy: TokenToy, lr: float = 0.1) -> PolicyLearner:
    return PolicyLearner(policy, PPOClip(), Optimisation(lr=lr), advantage=grpo())


def scored(policy: TokenToy, update: int = 0) -> list[Rollout]:
    rollouts = policy.act([spelling_task("true", i) for i in range(2)], 4, key=(update,))
    for rollout, value in zip(rollouts, spelled([r.output for r in rollouts], [r.task for r in rollouts]), strict=True):
        rollout.scores["total"] = value
    return rollouts


def updates(policy: Poisoned, count: int) -> list[dict[str, float]]:
    learner = learner_of(policy)
    return [learner.update(scored(policy, update)) for update in range(count)]


def finite(policy: TokenToy) -> bool:
    return all(bool(p.isfinite().all()) for p in policy.parameters())


for what, value in (("NaN", math.nan), ("infinite", math.inf), ("infinite and negative", -math.inf)):

    @case(
        f"vlm A2: one {what} gradient",
        kind="numbers",
        modality="core",
        entry="update",
        required=Gives([True, 1.0, 0.0]),
        by="machine",
    )
    def one_bad_gradient(folder: Path, value: float = value) -> object:
        policy = Poisoned([1], value)
        first, second = updates(policy, 2)
        return [finite(policy), first["steps/skipped"], second["steps/skipped"]]


@case(
    "vlm A2: a skipped step leaves the optimiser as it was",
    kind="numbers",
    modality="core",
    entry="update",
    required=Gives(True),
    by="machine",
)
def skipped_step_is_as_if_it_was_not(folder: Path) -> object:
    policy = Poisoned([2])
    learner = learner_of(policy)
    learner.update(scored(policy))
    before = [t.clone() for t in _tensors(learner.state_dict())]
    learner.update(scored(policy, 1))
    return all(torch.equal(a, b) for a, b in zip(before, _tensors(learner.state_dict()), strict=True))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


@case(
    "vlm A2: samples without a probability are not learned from",
    kind="numbers",
    modality="core",
    entry="update",
    required=Gives([True, 8.0]),
    by="policy",
)
def samples_without_a_probability(folder: Path) -> object:
    policy = Poisoned(sampled=[1])
    (metrics,) = updates(policy, 1)
    return [finite(policy), metrics["rollouts/not_finite"]]


def run(folder: Path, policy: Poisoned, iterations: int = 6, **changes: Any) -> tuple[RunFolder, PolicyLearner]:
    """A run of the toy; a diverged one ends in UsageError."""
    learner = learner_of(policy)
    parts: dict[str, Any] = {"actor": policy, "learners": {"policy": learner}, "gate_every": 1} | changes
    run_folder = folder_at(folder / "run")
    train(build(honest, iterations, **parts), run_folder)
    return run_folder, learner


@case(
    "vlm A2: three steps in a row go back and take half the learning rate",
    kind="numbers",
    modality="core",
    entry="run",
    required=Gives([True, 0.05, True]),
    by="machine",
)
def three_in_a_row(folder: Path) -> object:
    policy = Poisoned([2, 3, 4])
    ended, learner = run(folder, policy, gate=None)
    return [
        finite(policy),
        learner.optimizer.param_groups[0]["lr"],
        "diverged" in [row["alarm"] for row in ended.read("alarms")],
    ]


for what, changes in {"gradients": {"bad": range(2, 99)}, "samples": {"sampled": range(2, 99)}}.items():

    @case(
        f"vlm A2: {what} that never become finite end the run, counted as diverged",
        kind="numbers",
        modality="core",
        entry="run",
        required=Refuses("diverged"),
        by="machine",
    )
    def never_finite(folder: Path, changes: Any = changes) -> object:
        return run(folder, Poisoned(**changes), 20)


@case(
    "vlm A2: what a diverged run leaves is its last good policy, and an evaluation of it",
    kind="numbers",
    modality="core",
    entry="save",
    required=Gives([True, True, True]),
    by="machine",
)
def diverged_leaves_the_good(folder: Path) -> object:
    with suppress(UsageError):
        run(folder, Poisoned(range(2, 99)), 20)
    ended = RunFolder.open(folder / "run")
    state = ended.load_checkpoint("best")["now"]["policy"]["policy"]
    return ["after" in ended.evaluations(), all(bool(t.isfinite().all()) for t in state.values()), len(state) > 0]


class Breaks(Learner):
    """A learner of somebody else, which writes NaN into the policy."""

    def __init__(self, policy: TokenToy, at: int) -> None:
        self.policy, self.at, self.updates = policy, at, 0

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        self.updates += 1
        if self.updates == self.at:
            with torch.no_grad():
                next(iter(self.policy.parameters())).fill_(math.nan)
        return {"learned": 1.0}

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])


@case(
    "vlm A2: weights that somebody else's learner breaks are neither saved nor promoted",
    kind="numbers",
    modality="core",
    entry="save",
    required=Gives([True, True]),
    by="user",
)
def broken_weights(folder: Path) -> object:
    policy = TokenToy(len(NUMBERS))
    ended = folder_at(folder / "run")
    parts: dict[str, Any] = {"actor": policy, "learners": {"policy": Breaks(policy, 2)}, "gate_every": 1}
    train(build(honest, 4, **parts), ended)
    states = [ended.load_checkpoint(name) for name in (*ended.checkpoints(), "best")]
    return [finite(policy), all(bool(t.isfinite().all()) for state in states for t in _tensors(state))]


@case(
    "vla B10: a small network fitted to NaN",
    kind="numbers",
    modality="core",
    entry="fit",
    required=Refuses("not finite"),
    by="user",
)
def fitted_to_nan(folder: Path) -> object:
    network = torch.nn.Linear(1, 1)
    return fit(network, lambda step: network(torch.tensor([[math.nan]])).sum(), cosine(0.1, 9))


# --- half-finished runs


def with_policy(folder: Path, end: Callable[[], object]) -> object:
    """Whether RUN/policy holds the weights of the last checkpoint, not of the start, when a run ended in some way."""

    @contextmanager
    def ends(rounds: list[int] = []) -> Iterator[None]:  # noqa: B006
        rounds.append(1)
        if len(rounds) == 3:
            end()
        yield

    policy = TokenToy(len(NUMBERS))
    parts: dict[str, Any] = {"actor": policy, "learners": {"policy": learner_of(policy)}, "guard": ends}
    experiment = build(honest, 4, None, **parts)
    experiment.save = lambda path: (path.mkdir(), torch.save(policy.state_dict(), path / "w"))[0]
    with suppress(KeyboardInterrupt, RuntimeError):
        train(experiment, folder_at(folder / "run"))
    run_folder = RunFolder.open(folder / "run")
    kept, last = torch.load(run_folder.path / "policy" / "w"), run_folder.load_checkpoint("latest")
    weights = last["now"]["policy"]["policy"]
    return last["iteration"] >= 2 and all(torch.equal(kept[name], weights[name]) for name in weights)


def _fails() -> None:
    raise RuntimeError("CUDA out of memory")


for what, end in {
    "Ctrl-C": lambda: os.kill(os.getpid(), signal.SIGINT),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "an error": _fails,
}.items():

    @case(
        f"diffusion M1: {what} leaves a policy",
        kind="half finished",
        modality="core",
        entry="run",
        required=Gives(True),
        by="user",
    )
    def leaves_a_policy(folder: Path, end: Callable[[], object] = end) -> object:
        return with_policy(folder, end)


@case(
    "diffusion B7: pictures at the end that fail leave policy and evaluation",
    kind="half finished",
    modality="core",
    entry="finish",
    required=Gives([True, True]),
    by="machine",
)
def failing_finish(folder: Path) -> object:
    experiment = build(honest, 2, None)
    experiment.save = lambda path: path.mkdir()

    def fails(run: RunFolder) -> None:
        raise RuntimeError("no GL")

    experiment.finish = fails
    run_folder = folder_at(folder / "run")
    with suppress(RuntimeError):
        train(experiment, run_folder)
    return [(run_folder.path / "policy").is_dir(), "after" in run_folder.evaluations()]


@case(
    "core: no space left for a while",
    kind="half finished",
    modality="core",
    entry="save",
    required=Gives([4, 4]),
    by="machine",
)
def no_space_for_a_while(folder: Path) -> object:
    """Whole metrics and the last checkpoint of a run whose disk was full in its second round."""
    from autotelic.trainers.runs import checkpoint

    ended, written = folder_at(folder / "run"), checkpoint.save_file
    full = [False]

    def save_file(*arguments: Any) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        written(*arguments)

    @contextmanager
    def fills(rounds: list[int] = []) -> Iterator[None]:  # noqa: B006
        rounds.append(1)
        full[0] = len(rounds) == 2
        yield

    checkpoint.save_file = save_file
    try:
        train(build(honest, 4, None, guard=fills), ended)
    finally:
        checkpoint.save_file = written
    return [len(ended.metrics()), ended.load_checkpoint("latest")["iteration"]]


@case(
    "newcomer: a finished run goes on for more rounds",
    kind="half finished",
    modality="core",
    entry="resume",
    required=Gives(6),
    by="user",
    slow=True,
)
def more_rounds(folder: Path) -> object:
    from .cases import autotelic

    words = "vlm/grpo --debug --max-steps 3 --output-dir run"
    autotelic("run", *words.split(), folder=folder)
    autotelic("resume", "run", "--max-steps", "+3", folder=folder)
    return len((folder / "run" / "metrics.jsonl").read_text().splitlines())


for room, recipe in {"vlm": "vlm/grpo", "vla": "vla/evolve_vla", "diffusion": "diffusion/ddpo"}.items():

    @case(
        f"diffusion M1: weights out of a checkpoint, {room}",
        kind="half finished",
        modality=room,
        entry="export",
        required=Gives(True),
        by="user",
        slow=True,
    )
    def export(folder: Path, recipe: str = recipe) -> object:
        from .cases import autotelic

        autotelic("run", recipe, "--debug", "--output-dir", "run", folder=folder)
        autotelic("export", "run", "weights", "--checkpoint", "latest", folder=folder)
        assert any((folder / "weights").iterdir())
        try:
            autotelic("export", "run", "merged", "--merge", folder=folder)
        except UsageError as error:  # the small models that speak and act are trained whole
            return "no adapters to merge" in str(error)
        return any((folder / "merged").iterdir())


# --- models whose sampling and learning drift


class Drifting(TokenToy):
    """Says other log-probabilities of what it sampled than it learns with."""

    def __init__(self, by: float) -> None:
        super().__init__(len(NUMBERS))
        self.by = by

    def act(self, *arguments: Any, **rest: Any) -> list[Rollout]:
        rollouts = super().act(*arguments, **rest)
        return [replace(r, log_probs=r.log_probs + self.by) for r in rollouts]  # type: ignore[operator]


for by, required in {0.1: Refuses("differ"), 1e-3: Refuses("differ"), 1e-6: GoesOn()}.items():

    @case(
        f"vlm A14: learning is {by:g} nats away from sampling",
        kind="drift",
        modality="core",
        entry="update",
        required=required,
        by="machine",
    )
    def drifts(folder: Path, by: float = by) -> object:
        policy = Drifting(by)
        ended = folder_at(folder / "run")
        parts: dict[str, Any] = {"actor": policy, "learners": {"policy": learner_of(policy)}}
        train(build(honest, 2, None, **parts), ended)
        return None


# --- several processes


@case(
    "diffusion B2: processes whose judges disagree hold the same weights",
    kind="processes",
    modality="core",
    entry="gate",
    required=Gives([True, True]),
    by="user",
    slow=True,
)
def judges_disagree(folder: Path) -> object:
    return _two("disagree", folder)


@case(
    "diffusion B2: weights that differ between processes are noticed",
    kind="processes",
    modality="core",
    entry="run",
    required=Gives(["refused", "refused"]),
    by="machine",
    slow=True,
)
def weights_differ(folder: Path) -> object:
    return _two("differ", folder)


@case(
    "gloo's threads end before Python does",
    kind="processes",
    modality="core",
    entry="run",
    required=Gives([True, 0]),
    by="machine",
    slow=True,
)
def gloo_left(folder: Path) -> object:
    return _two("leave", folder)


@case(
    "diffusion B2: an evaluation shared by processes is that of one",
    kind="processes",
    modality="core",
    entry="run",
    required=Gives([[True, True], [True, True], [True, True]]),
    by="machine",
    slow=True,
)
def evaluation_shared(folder: Path) -> object:
    (alone, two) = (_said([], "evaluate", folder), _two("evaluate", folder))
    return [[alike(each, one) for each in several] for (one,), several in zip(alone, two, strict=True)]


def _two(what: str, folder: Path) -> Any:
    """What two gloo processes say (see tests/toy_processes.py)."""
    return _said(["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"], what, folder)


def _said(launch: Sequence[str], what: str, folder: Path) -> Any:
    import subprocess
    import sys

    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "tests.toy_processes", what, str(folder)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"says"')]
    return json.loads(lines[0])["says"]


@case(
    "vlm A2: a comparison counts a run that diverged, and goes on",
    kind="numbers",
    modality="core",
    entry="compare",
    required=Gives([[True, False], "diverged"]),
    by="user",
)
def diverged_in_a_comparison(folder: Path) -> object:
    from unittest.mock import patch

    from autotelic import sweep
    from autotelic.comparing.study import notes

    from .. import toy_recipe

    arms: dict[str, Any] = {"mad": {"spread": 3e38}, "calm": {}}
    with patch.object(sweep, "find_recipe", lambda name: toy_recipe.TOY):
        results = sweep.Sweep("toy/spelling", arms, [0], folder / "sweep").run()
    said = [bool(results.runs[arm][0].diverged) for arm in arms]
    told = notes(results)
    return [said, "diverged" if "1 of 1 runs diverged" in told[0] else told]
