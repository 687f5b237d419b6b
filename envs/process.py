"""Where a worker lives: in this process, or in one of its own that may die."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import send_handle
from types import ModuleType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from ..plugins import loaded
from .board import Board
from .gymnasium_ids import told
from .simulator import EnvSpec, Refusal
from .worker import CHECKING, NOBODY, Worker, serve

logger = logging.getLogger(__name__)

DEATHS = 3
"""A call gives up when this many workers have died in it and no episode was to blame."""

POLL = 0.5
"""Seconds between two looks at whether a worker takes too long."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SPAWN = multiprocessing.get_context("spawn")


class WorkerDied(Exception):
    """A worker process raised, died or took too long; the text says how it ended.

    Attributes:
        row: the episode that it was at, or NOBODY.
    """

    def __init__(self, text: str, row: int = NOBODY) -> None:
        super().__init__(text)
        self.row = row


class Here:
    """A worker in this process. Its exceptions pass through; its CPU time is this process's."""

    cpu_seconds = 0.0
    apart = False

    def __init__(self, specs: Mapping[str, EnvSpec]) -> None:
        self._worker = Worker(specs)
        self._waiting: deque[tuple[str, tuple[Any, ...]]] = deque()

    def start(self) -> None:
        """Nothing to start."""

    def forget(self) -> None:
        """Leave what was asked and not answered."""
        self._waiting.clear()

    def ask(self, command: str, *arguments: Any) -> None:
        """Keep a message until its answer is asked for."""
        self._waiting.append((command, arguments))

    def answer(self) -> Any:
        """Execute the first message that was kept."""
        command, arguments = self._waiting.popleft()
        return getattr(self._worker, command)(*arguments)

    def close(self) -> None:
        """Free the simulators."""
        self._worker.close()


class Process:
    """A worker process and the pipe to it.

    Attributes:
        cpu_seconds: CPU time of this process and of those it replaced, as of their last answers.
        apart: it is another process than this, with memory of its own.
    """

    apart = True

    def __init__(self, specs: Mapping[str, EnvSpec]) -> None:
        self._specs = specs
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._at: Any = _SPAWN.RawArray("d", 3)
        self._number = 0
        self._waiting: deque[int] = deque()
        self._finished_cpu = self._cpu = 0.0

    @property
    def cpu_seconds(self) -> float:
        return self._finished_cpu + self._cpu

    @property
    def pid(self) -> int | None:
        """Of the process, if it was started."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, or a new one in place of the old."""
        self.close()
        self._waiting.clear()
        self._connection, theirs = _SPAWN.Pipe()
        self._at[:] = NOBODY, 0, 0
        payload = cloudpickle.dumps((dict(self._specs), told()))
        arguments = (theirs, payload, loaded("environment"), self._at)
        self._process = _SPAWN.Process(target=serve, args=arguments, daemon=True)
        with _child_settings():
            self._process.start()
        theirs.close()

    def forget(self) -> None:
        """Leave what was asked and not answered: answers that come are passed over."""
        self._waiting.clear()

    def ask(self, command: str, *arguments: Any) -> None:
        """Send a message; a dead process shows itself when the answer is asked for.

        A board is sent as its layout, and its memory after it.
        """
        if self._connection is None:
            self.start()
        assert self._connection is not None and self._process is not None
        self._number += 1
        self._waiting.append(self._number)
        boards = [each for each in arguments if isinstance(each, Board)]
        sent = tuple(each.layout if isinstance(each, Board) else each for each in arguments)
        with suppress(OSError):
            self._connection.send((self._number, command, sent))
            for board in boards:
                assert board.handle is not None
                send_handle(self._connection, board.handle, self._process.pid)

    def answer(self) -> Any:
        """Wait for the answer to the first message that has none.

        Raises:
            WorkerDied: instead of an answer.
            Refusal: the simulator's own.
        """
        assert self._connection is not None
        wanted = self._waiting.popleft()
        try:
            # Answers to messages of a run that was interrupted may still lie in the pipe.
            number, kind = 0, ""
            while number != wanted and kind != "start":
                self._wait()
                number, kind, result, self._cpu = self._connection.recv()
        except (EOFError, OSError):
            raise WorkerDied(self._ending(), int(self._at[0])) from None
        except KeyboardInterrupt:
            self.close()  # half an answer may be left in the pipe
            raise
        if kind == "start":
            raise Refusal(f"environment workers cannot start: {result}")
        if kind == "refusal":
            raise result
        if kind == "error":
            raise WorkerDied(result)
        return result

    def _wait(self) -> None:
        """Until there is something to read.

        Raises:
            WorkerDied: it takes longer than what it is at may take, and was ended.
        """
        assert self._connection is not None and self._process is not None
        while not self._connection.poll(POLL):
            row, since, limit = self._at
            if limit > 0 and time.monotonic() - since > limit:
                self._process.kill()
                doing = "a check" if row == CHECKING else "a reset or a chunk of steps"
                raise WorkerDied(f"{doing} took longer than {limit:g} s, and its process was ended", int(row))

    def close(self) -> None:
        """End the process."""
        if self._process is None or self._connection is None:
            return
        self._connection.close()
        self._process.join(timeout=2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process, self._connection = None, None
        self._finished_cpu, self._cpu = self.cpu_seconds, 0.0

    def _ending(self) -> str:
        assert self._process is not None
        self._process.join(timeout=5)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"


@dataclass(frozen=True, eq=False)
class Call:
    """One message to one worker, and what to do if the worker dies of it.

    Attributes:
        arguments: of the command, made when it is sent.
        blame: told how the worker died; True if an episode is to blame, which is then not sent again.
        revive: brings a new worker to where the old one was.
    """

    worker: Here | Process
    command: str
    arguments: Callable[[], tuple[Any, ...]]
    blame: Callable[[WorkerDied], bool] = lambda death: False
    revive: Callable[[Here | Process], None] = lambda worker: None

    def send(self) -> None:
        """Ask."""
        self.worker.ask(self.command, *self.arguments())


def exchange(calls: Sequence[Call]) -> list[Any]:
    """Send all messages, then collect the answers in order, replacing workers that die.

    Raises:
        Refusal: a simulator's own, a worker cannot start, or DEATHS of them died.
    """
    for call in calls:
        call.worker.forget()
        call.send()
    deaths: list[WorkerDied] = []
    return [collect([call], deaths) for call in calls]


def collect(waiting: Sequence[Call], deaths: list[WorkerDied]) -> Any:
    """The answer to the first of the messages that a worker, or its replacement, was sent and has not answered.

    Args:
        deaths: of which no episode is to blame, so far.

    Raises:
        Refusal: as ``exchange``.
    """
    first = waiting[0]
    replaced = False
    while True:
        try:
            if replaced:
                first.revive(first.worker)
                for call in waiting:
                    call.send()
            return first.worker.answer()
        except WorkerDied as death:
            if not first.blame(death):
                deaths.append(death)
            if len(deaths) >= DEATHS:
                raise Refusal(f"{DEATHS} environment workers died, the last one thus: {death}") from None
            logger.warning("an environment worker died and is replaced, its episodes are replayed: %s", death)
            first.worker.start()
            replaced = True


@contextmanager
def _child_settings() -> Iterator[None]:
    """What a new process inherits: one thread, no Ctrl-C, not the caller's main script, and not its choice of GL.

    That choice stands in PYOPENGL_PLATFORM where this process has drawn, and MuJoCo refuses any other than MUJOCO_GL's.
    """
    before = {name: os.environ.get(name) for name in (*_THREADS, "PYOPENGL_PLATFORM")}
    main = sys.modules["__main__"]
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    os.environ.pop("PYOPENGL_PLATFORM", None)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
