"""Where a worker lives: in this process, or in one of its own that may die."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import ModuleType
from typing import Any

from ..plugins import loaded
from .simulator import EnvSpec
from .worker import Worker, serve

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SPAWN = multiprocessing.get_context("spawn")


class WorkerDied(Exception):
    """A worker process raised or died; the text is its traceback or how it ended."""


class Here:
    """A worker in this process. Its exceptions pass through; its CPU time is this process's."""

    cpu_seconds = 0.0

    def __init__(self, specs: Mapping[str, EnvSpec]) -> None:
        self._worker = Worker(specs)
        self._message: tuple[str, tuple[Any, ...]] = ("clear", ())

    def start(self) -> None:
        """Nothing to start."""

    def ask(self, command: str, *arguments: Any) -> None:
        """Keep a message until its answer is asked for."""
        self._message = (command, arguments)

    def answer(self) -> Any:
        """Execute the kept message."""
        command, arguments = self._message
        return getattr(self._worker, command)(*arguments)

    def close(self) -> None:
        """Free the simulators."""
        self._worker.close()


class Process:
    """A worker process and the pipe to it.

    Attributes:
        cpu_seconds: CPU time of this process and of those it replaced, as of their last answers.
    """

    def __init__(self, specs: Mapping[str, EnvSpec]) -> None:
        self._specs = specs
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._number = 0
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
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=serve, args=(theirs, self._specs, loaded("environment")), daemon=True)
        with _child_settings(self._specs):
            self._process.start()
        theirs.close()

    def ask(self, command: str, *arguments: Any) -> None:
        """Send a message; a dead process shows itself when the answer is asked for."""
        if self._connection is None:
            self.start()
        assert self._connection is not None
        self._number += 1
        with suppress(OSError):
            self._connection.send((self._number, command, arguments))

    def answer(self) -> Any:
        """Wait for the answer to the last message.

        Raises:
            WorkerDied: instead of an answer.
            Refusal: the simulator's own.
        """
        assert self._connection is not None
        try:
            # Answers to messages of a run that was interrupted may still lie in the pipe.
            number = 0
            while number != self._number:
                number, kind, result, self._cpu = self._connection.recv()
        except (EOFError, OSError):
            raise WorkerDied(self._ending()) from None
        except KeyboardInterrupt:
            self.close()  # half an answer may be left in the pipe
            raise
        if kind == "refusal":
            raise result
        if kind == "error":
            raise WorkerDied(result)
        return result

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


@contextmanager
def _child_settings(specs: Mapping[str, EnvSpec]) -> Iterator[None]:
    """What a new process inherits: one thread, no Ctrl-C, and the caller's main script only if specs need it."""
    before = {name: os.environ.get(name) for name in _THREADS}
    main = sys.modules["__main__"]
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if b"__main__" not in pickle.dumps(dict(specs)):
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
