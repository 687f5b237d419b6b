"""The other end of the pool: a worker that steps many episodes over one simulator per environment.

A worker knows nothing of policies and imports no torch. It answers one message at a time, which names episodes; their
actions, and what is seen of them, stand on a board that it shares with the pool.

An episode whose simulator raises, or shows what is not finite, ends there as failed; the others go on.
"""

from __future__ import annotations

import pickle
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, raised
from . import global_generators
from .board import Board, Layout
from .demonstrations import Demonstration, demonstrate
from .env_checker import Checked, Mode, built, check_env
from .gymnasium_ids import hear
from .simulator import (
    EnvironmentFault,
    EnvSpec,
    Feature,
    Refusal,
    Simulator,
    View,
    adopt,
    observed,
    spec_of,
)

INITIAL_STATES = 64
"""Initial states that a worker keeps, so that a group of episodes from one seed costs one reset."""

NOBODY, CHECKING = -1, -2
"""Rows that a worker names as being at work where it is at none, or at a check."""

Mark = Callable[[int, float], None]
"""(row, seconds that it may take; 0 for ever): tells the pool what a worker is at."""


@dataclass(frozen=True)
class Looks:
    """What is read of states in a run.

    Attributes:
        oracle: whether each is a success, and whether it is the episode's end.
        rewards: what each chunk earned.
        render: how to take the pictures, or None.
    """

    oracle: bool = False
    rewards: bool = False
    render: View | None = None


@dataclass(frozen=True, eq=False)
class Tick:
    """A chunk of steps of some live episodes of a worker, whose actions stand on the board.

    Attributes:
        rows: [n] int64 who makes a chunk; counts: [n] int64 of how many actions.
        over: rows whose episodes go on no more.
        starts: (row, environment, seed), started after that.
        unseen: rows whose pictures nobody will look at.
    """

    rows: NDArray[np.int64]
    counts: NDArray[np.int64]
    over: Sequence[int] = ()
    starts: Sequence[tuple[int, str, int]] = ()
    unseen: frozenset[int] = frozenset()


Faults = dict[int, str]
"""The answer to a tick: by row why the episode cannot go on. What was seen of the others stands on the board."""


@dataclass(frozen=True, eq=False)
class Replay:
    """An episode to be brought back: what was executed so far, one array [c, A] per chunk."""

    row: int
    environment: str
    seed: int
    executed: Sequence[NDArray[np.float32]]


@dataclass(eq=False)
class _Initial:
    """An initial state, the global generators in it, and the pictures taken of it."""

    state: Any
    generators: Any
    frames: dict[View, dict[str, NDArray[np.uint8]]] = field(default_factory=dict)


@dataclass(eq=False)
class _Live:
    """An episode in progress: its saved state, or its own simulator; and the generators kept for it, if any."""

    row: int
    environment: str
    seed: int
    steps: int = 0
    state: Any = None
    generators: Any = None
    own: Simulator | None = None


class Worker:
    """Episodes by row, multiplexed over one simulator per environment, or each in its own.

    Args:
        mark: is told what this worker is at.
    """

    def __init__(self, specs: Mapping[str, EnvSpec], mark: Mark = lambda row, seconds: None) -> None:
        adopt(specs)
        self.mark = mark
        self.simulators: dict[str, Simulator] = {}
        self.episodes: dict[int, _Live] = {}
        self.initial: OrderedDict[tuple[str, int], _Initial] = OrderedDict()
        self.modes: Mapping[str, Mode] = {}
        self.looks = Looks()
        self.limits: Mapping[str, float] = {}
        self.board = Board(Layout(0, 0, 0, 0))
        self.pristine: dict[str, Any] = {}
        self.idle: dict[str, list[Simulator]] = {}

    def describe(
        self, environments: Sequence[str], new: Sequence[str], view: View | None
    ) -> list[tuple[dict[str, Feature], tuple[str, ...], dict[str, slice], Checked | None]]:
        """(features, cameras where a view names none, layout, what a check of a new one found) of each environment."""
        answers = []
        for environment in environments:
            simulator, checked = self.simulator(environment), None
            if environment in new:
                beat = partial(self.mark, CHECKING, spec_of(environment).timeout)
                checked = check_env(environment, simulator=simulator, view=view, beat=beat)
                self.mark(NOBODY, 0)
                if not checked.mode.resets:  # this one is not as new
                    self.simulators.pop(environment).close()
            answers.append((dict(simulator.features), simulator.cameras, dict(simulator.layout), checked))
        return answers

    def begin(self, board: Board, modes: Mapping[str, Mode], looks: Looks) -> None:
        """Forget every episode; from now on environments are run like this, and what is seen goes to this board."""
        for live in self.episodes.values():
            self._release(live)
        self.episodes.clear()
        if modes != self.modes:
            self.initial.clear()
        self.modes, self.board, self.looks = modes, board, looks
        self.limits = {environment: spec_of(environment).timeout for environment in modes}

    def tick(self, tick: Tick) -> Faults:
        """Step, start and look; see :class:`Tick`."""
        faults: Faults = {}
        for row in tick.over:
            if row in self.episodes:
                self._release(self.episodes.pop(row))
        chunks, episodes = self._decoded(tick.rows), self.episodes
        with self._generators():
            for row, count in zip(tick.rows.tolist(), tick.counts.tolist(), strict=True):
                self._attempt(episodes[row], faults, self._go_on, chunks[row][:count], row in tick.unseen)
            for row, environment, seed in tick.starts:
                self._attempt(_Live(row, environment, seed), faults, self._start, row in tick.unseen)
        self.mark(NOBODY, 0)
        return faults

    def replay(self, replays: Sequence[Replay]) -> Faults:
        """Bring episodes back by executing again what was executed, and look; pictures are not taken again."""
        faults: Faults = {}
        with self._generators():
            for replay in replays:
                live = _Live(replay.row, replay.environment, replay.seed)
                self._attempt(live, faults, self._repeat, replay.executed)
        self.mark(NOBODY, 0)
        return faults

    def demonstrate(
        self, environment: str, seeds: Sequence[int], horizon: int, settle: int, view: View | None, mode: Mode
    ) -> list[tuple[Demonstration, list[int]]]:
        """One demonstration per seed, with the seeds on which the expert failed before."""
        self.modes = {**self.modes, environment: mode}
        limits = {"horizon": horizon, "settle": settle}
        shown = []
        with self._generators():
            for seed in seeds:
                simulator = self.simulator(environment)
                self._as_new(environment, simulator)
                if mode.seeded:
                    global_generators.seed(seed)
                shown.append(demonstrate(simulator, environment, seed, **limits, view=view))
        return shown

    def simulator(self, environment: str) -> Simulator:
        """The one instance of an environment, built when first asked for."""
        if environment not in self.simulators:
            simulator = self.simulators[environment] = self._built(environment)
            if not self._mode(environment).resets:
                with suppress(Refusal):
                    self.pristine[environment] = simulator.save()
        return self.simulators[environment]

    def _built(self, environment: str) -> Simulator:
        """Another instance; building one may take as long as it takes."""
        self.mark(NOBODY, 0)
        return built(environment)

    def close(self) -> None:
        """Free every simulator."""
        own = (live.own for live in self.episodes.values() if live.own is not None)
        idle = (simulator for several in self.idle.values() for simulator in several)
        for simulator in (*self.simulators.values(), *own, *idle):
            simulator.close()
        self.simulators.clear()
        self.episodes.clear()
        self.idle.clear()

    def _mode(self, environment: str) -> Mode:
        return self.modes.get(environment, Mode())

    @contextmanager
    def _generators(self) -> Iterator[None]:
        """Leave the global generators as they were: in a pool without processes they are the caller's."""
        with global_generators.kept() if any(mode.seeded for mode in self.modes.values()) else nullcontext():
            yield

    def _decoded(self, rows: NDArray[np.int64]) -> dict[int, Any]:
        """By row the chunk to execute, those of an environment decoded together."""
        several: dict[str, list[int]] = {}
        for row in rows.tolist():
            several.setdefault(self.episodes[row].environment, []).append(row)
        found: dict[int, Any] = {}
        for environment, members in several.items():
            chunks = self.simulator(environment).decode(self.board.actions[members])
            found.update(zip(members, chunks, strict=True))
        return found

    def _go_on(self, live: _Live, chunk: Any, unseen: bool) -> None:
        simulator = self._resumed(live)
        simulator.execute(chunk)
        live.steps += len(chunk)
        self._look(live, simulator, unseen)

    def _start(self, live: _Live, unseen: bool) -> None:
        simulator, drawn = self._started(live)
        self._look(live, simulator, unseen, drawn)

    def _repeat(self, live: _Live, executed: Sequence[NDArray[np.float32]]) -> None:
        simulator, _ = self._started(live)
        for actions in executed:
            self._begin(live)
            simulator.step(actions)
            live.steps += len(actions)
        self._look(live, simulator, unseen=True)

    def _attempt(self, live: _Live, faults: Faults, work: Callable[..., None], *arguments: Any) -> None:
        """What goes wrong in ``work`` ends the episode as failed."""
        row = live.row
        self._begin(live)
        try:
            work(live, *arguments)
            self.episodes[row] = live
            return
        except EnvironmentFault as fault:
            faults[row] = f"{live.environment}, seed {live.seed}, {fault}"
        except Refusal:
            raise
        except UsageError as error:
            faults[row] = f"{live.environment}, seed {live.seed}, after step {live.steps}: {error}"
        except Exception as error:
            faults[row] = f"{live.environment}, seed {live.seed}, after step {live.steps}: {raised(error)}"
        self.episodes.pop(row, None)
        if live.own is not None:
            with suppress(Exception):
                live.own.close()
            live.own = None

    def _begin(self, live: _Live) -> None:
        """From now on this episode may take its time."""
        self.mark(live.row, self.limits[live.environment])

    def _resumed(self, live: _Live) -> Simulator:
        """The simulator in the episode's state."""
        simulator = live.own
        if simulator is None:
            simulator = self.simulator(live.environment)
            simulator.restore(live.state)
        if live.generators is not None:
            global_generators.put(live.generators)
        return simulator

    def _started(self, live: _Live) -> tuple[Simulator, dict[View, dict[str, NDArray[np.uint8]]]]:
        """The simulator in the episode's initial state, and the pictures that were taken of it before."""
        environment, seed, mode = live.environment, live.seed, self._mode(live.environment)
        if not mode.turns:
            idle = self.idle.get(environment)
            live.own = idle.pop() if idle else self._built(environment)
            self._begin(live)
            self._reset(live.own, live)
            return live.own, {}
        simulator = self.simulator(environment)
        self._begin(live)
        initial = self.initial.get((environment, seed))
        if initial is not None:
            self.initial.move_to_end((environment, seed))
            simulator.restore(initial.state)
            live.generators = initial.generators
            if live.generators is not None:
                global_generators.put(live.generators)
            return simulator, initial.frames
        self._as_new(environment, simulator)
        self._reset(simulator, live)
        initial = self.initial[environment, seed] = _Initial(simulator.save(), live.generators)
        if len(self.initial) > INITIAL_STATES:
            self.initial.popitem(last=False)
        return simulator, initial.frames

    def _reset(self, simulator: Simulator, live: _Live) -> None:
        if self._mode(live.environment).seeded:
            global_generators.seed(live.seed)
        simulator.reset(live.seed)
        if self._mode(live.environment).seeded:
            live.generators = global_generators.get()

    def _as_new(self, environment: str, simulator: Simulator) -> None:
        """Undo what episodes before left behind that a reset would leave."""
        if environment in self.pristine:
            simulator.restore(self.pristine[environment])

    def _release(self, live: _Live) -> None:
        """Keep the instance of an episode that is over for another one, if a reset makes it as new."""
        if live.own is None:
            return
        if self._mode(live.environment).resets:
            self.idle.setdefault(live.environment, []).append(live.own)
        else:
            live.own.close()
        live.own = None

    def _look(
        self,
        live: _Live,
        simulator: Simulator,
        unseen: bool,
        drawn: dict[View, dict[str, NDArray[np.uint8]]] | None = None,
    ) -> None:
        """Observe and save, with pictures from ``drawn`` or else drawn now and left there."""
        row, board, view = live.row, self.board, self.looks.render
        board.observations[row] = observed(simulator)
        if self.looks.oracle:
            board.success[row] = simulator.success()
            board.over[row], board.terminated[row] = simulator.over, simulator.terminated
        if self.looks.rewards and live.steps:
            board.rewards[row] = simulator.reward()
        if view is not None and not unseen:
            drawn = {} if drawn is None else drawn
            if view not in drawn:
                drawn[view] = _pictures(live.environment, simulator, view)
            for camera, frame in drawn[view].items():
                board.frames[camera][row] = frame
        if live.own is None:
            live.state = simulator.save()
        if live.generators is not None:
            live.generators = global_generators.get()


def _pictures(environment: str, simulator: Simulator, view: View) -> dict[str, NDArray[np.uint8]]:
    """The frames of a view by camera, checked: simulators come from outside too."""
    frames = simulator.frames(view)
    for camera, frame in frames.items():
        shape, kind = getattr(frame, "shape", None), getattr(frame, "dtype", type(frame).__name__)
        if shape != (view.size, view.size, 3) or kind != np.uint8:
            raise Refusal(
                f"{environment}: its simulator gave a frame of shape {shape} and type {kind} from camera {camera!r}; "
                f"expected uint8 ({view.size}, {view.size}, 3)"
            )
    return frames


def serve(connection: Connection, payload: bytes, plugins: Sequence[str], at: Any) -> None:
    """A worker process: answer (number, command, arguments) until the pipe closes or a command raises.

    It imports the modules ``plugins`` first, then reads from ``payload`` the specs and what Gymnasium was told of
    environments by the process that started it. What it is at, it writes to ``at``: row, since when, for how long at
    most.

    Each answer is (number, kind, result, CPU seconds of this process so far), of kind "ok", "refusal" (with the
    exception), "start" (why it could not begin) or "error" (what was raised, in a line).
    """

    places = memoryview(at).cast("B").cast("d")  # quicker to write than the array itself

    def mark(row: int, seconds: float) -> None:
        places[2] = 0
        places[0], places[1], places[2] = row, time.monotonic(), seconds

    try:
        for module in plugins:
            import_module(module)
        specs, ids = pickle.loads(payload)
        hear(ids)
        worker = Worker(specs, mark)
    except Exception as error:
        connection.send((0, "start", raised(error), time.process_time()))
        return
    while True:
        try:
            number, command, arguments = connection.recv()
        except EOFError:
            worker.close()  # GL contexts must go before GL does
            return
        try:
            if command == "begin":
                arguments = (Board(arguments[0], handle=recv_handle(connection)), *arguments[1:])
            answer, result = "ok", getattr(worker, command)(*arguments)
        except Refusal as refusal:
            answer, result = "refusal", refusal
        except Exception as error:
            answer, result = "error", raised(error)
        mark(NOBODY, 0)
        connection.send((number, answer, result, time.process_time()))
        if answer == "error":
            return
