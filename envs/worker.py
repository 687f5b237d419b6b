"""The other end of the pool: a worker that steps many episodes over one simulator per environment.

A worker knows nothing of policies and imports no torch. It answers one message at a time; the pool
sends every live episode's next actions in one message and gets every observation in one reply.
"""

from __future__ import annotations

import time
import traceback
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..plugins import table
from .demonstrations import Demonstration, demonstrate
from .simulator import EnvSpec, Refusal, Simulator, View, make_simulator

INITIAL_STATES = 64
"""Initial states that a worker keeps, so that a group of episodes from one seed costs one reset."""


@dataclass(frozen=True, eq=False)
class Tick:
    """One step of every live episode of a worker; episodes that it does not name are over.

    Attributes:
        steps: (row, actions [c, A] to execute).
        starts: (row, environment, seed), started after that.
        oracle: answer whether each observed state is a success.
        render: how to take a picture of each observed state, or None.
        unseen: rows whose picture nobody will look at; it is left black.
    """

    steps: Sequence[tuple[int, NDArray[np.float32]]]
    starts: Sequence[tuple[int, str, int]]
    oracle: bool
    render: View | None
    unseen: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Seen:
    """The answer to a tick, first for the stepped rows, then for the started ones."""

    observations: list[NDArray[np.float32]]
    successes: list[bool]
    frames: list[NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Replay:
    """An episode to be brought back: what was executed so far, one array [c, A] per chunk."""

    row: int
    environment: str
    seed: int
    executed: Sequence[NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class _Initial:
    """An initial state, and the pictures taken of it."""

    state: Any
    frames: dict[View, NDArray[np.uint8]]


class Worker:
    """Episodes by row, multiplexed over one simulator per environment."""

    def __init__(self, specs: Mapping[str, EnvSpec]) -> None:
        table("environment").update(specs)
        self.simulators: dict[str, Simulator] = {}
        self.episodes: dict[int, tuple[str, Any]] = {}
        self.initial: OrderedDict[tuple[str, int], _Initial] = OrderedDict()

    def sizes(self, environment: str) -> tuple[int, int]:
        """(observation size, action size)."""
        simulator = self.simulator(environment)
        return simulator.observation_size, simulator.action_size

    def clear(self) -> None:
        """Forget every episode."""
        self.episodes.clear()

    def tick(self, tick: Tick) -> Seen:
        """Step, start and look; see :class:`Tick`."""
        seen = Seen([], [], [])
        before, self.episodes = self.episodes, {}
        for row, actions in tick.steps:
            environment, state = before[row]
            simulator = self.simulator(environment)
            simulator.restore(state)
            simulator.step(actions)
            self._look(row, environment, simulator, tick, seen)
        for row, environment, seed in tick.starts:
            simulator = self._start(environment, seed)
            self._look(row, environment, simulator, tick, seen, self.initial[environment, seed].frames)
        return seen

    def replay(self, episodes: Sequence[Replay]) -> None:
        """Bring episodes back by executing again what was executed."""
        for episode in episodes:
            simulator = self._start(episode.environment, episode.seed)
            for actions in episode.executed:
                simulator.step(actions)
            self.episodes[episode.row] = (episode.environment, simulator.save())

    def demonstrate(
        self, environment: str, seeds: Sequence[int], horizon: int, settle: int, view: View | None
    ) -> list[tuple[Demonstration, list[int]]]:
        """One demonstration per seed, with the seeds on which the expert failed before."""
        simulator = self.simulator(environment)
        limits = {"horizon": horizon, "settle": settle}
        return [demonstrate(simulator, environment, seed, **limits, view=view) for seed in seeds]

    def simulator(self, environment: str) -> Simulator:
        """The one instance of an environment, built when first asked for."""
        if environment not in self.simulators:
            self.simulators[environment] = make_simulator(environment)
        return self.simulators[environment]

    def close(self) -> None:
        """Free every simulator."""
        for simulator in self.simulators.values():
            simulator.close()
        self.simulators.clear()

    def _start(self, environment: str, seed: int) -> Simulator:
        simulator = self.simulator(environment)
        key = (environment, seed)
        if key in self.initial:
            self.initial.move_to_end(key)
            simulator.restore(self.initial[key].state)
            return simulator
        simulator.reset(seed)
        self.initial[key] = _Initial(simulator.save(), {})
        if len(self.initial) > INITIAL_STATES:
            self.initial.popitem(last=False)
        return simulator

    def _look(
        self,
        row: int,
        environment: str,
        simulator: Simulator,
        tick: Tick,
        seen: Seen,
        drawn: dict[View, NDArray[np.uint8]] | None = None,
    ) -> None:
        """Observe, with a picture from ``drawn`` or else drawn now and left there."""
        seen.observations.append(simulator.observe())
        if tick.oracle:
            seen.successes.append(simulator.success())
        view = tick.render
        if view is not None and row in tick.unseen:
            seen.frames.append(np.zeros((view.size, view.size, 3), np.uint8))
        elif view is not None:
            drawn = {} if drawn is None else drawn
            if view not in drawn:
                drawn[view] = _picture(environment, simulator, view)
            seen.frames.append(drawn[view])
        self.episodes[row] = (environment, simulator.save())


def _picture(environment: str, simulator: Simulator, view: View) -> NDArray[np.uint8]:
    """A frame, checked: simulators come from outside too."""
    frame = simulator.frame(view)
    shape, kind = getattr(frame, "shape", None), getattr(frame, "dtype", type(frame).__name__)
    if shape != (view.size, view.size, 3) or kind != np.uint8:
        raise Refusal(
            f"{environment}: its simulator gave a frame of shape {shape} and type {kind}; "
            f"expected uint8 ({view.size}, {view.size}, 3)"
        )
    return frame


def serve(connection: Connection, specs: Mapping[str, EnvSpec], plugins: Sequence[str]) -> None:
    """A worker process: answer (number, command, arguments) until the pipe closes or a command raises.

    It imports the modules ``plugins`` first, since they may tell Gymnasium of environments.

    Each answer is (number, kind, result, CPU seconds of this process so far), of kind "ok", "refusal" (with the
    exception) or "error" (with the traceback).
    """
    for module in plugins:
        import_module(module)
    worker = Worker(specs)
    while True:
        try:
            number, command, arguments = connection.recv()
        except EOFError:
            worker.close()  # GL contexts must go before GL does
            return
        try:
            answer, result = "ok", getattr(worker, command)(*arguments)
        except Refusal as refusal:
            answer, result = "refusal", refusal
        except Exception:
            answer, result = "error", traceback.format_exc()
        connection.send((number, answer, result, time.process_time()))
        if answer == "error":
            return
