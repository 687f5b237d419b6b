"""A reward in an interpreter of its own, whose packages need not agree with ours.

    reward = Reward(IsolatedReward("old_scorer:score", command=["/envs/old/bin/python"]))

Columns travel as one .npz file per call, text as JSON and images as 8-bit arrays, and nothing is ever pickled: neither
side can make the other execute anything. What the function prints goes to the standard error.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..families import UNDECLARED
from ..types import Score
from .image.images import as_uint8

_WORKER = Path(__file__).with_name("isolated_worker.py")
# Unlike `python worker.py`, this does not put the worker's folder, full of short names, before the function's imports.
_RUN = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


class IsolatedError(RuntimeError):
    """The function raised, or its process died or took too long; one line."""


class IsolatedReward:
    """A reward function that another Python process calls.

    Only the columns that the function names are sent: ``images`` as a list of uint8 arrays [H, W, 3], the others as
    they come back from JSON. It returns scores as any reward does (numbers, None, a list per segment, or a mapping of
    such lists), without gradient. The process starts at the first call and keeps what the function loaded; one that
    died or was ended is replaced at the next call. It ends with this one, and does not travel when this is pickled.

    Args:
        target: "package.module:function" (found by that interpreter, from the working directory) or
            "path/to/file.py:function"; a class is called without arguments first.
        command: the interpreter, with arguments that it needs. Its environment needs numpy.
        timeout: seconds that an answer may take; also the first, which is that the function is imported.

    Raises:
        UsageError: the interpreter cannot be started, or the timeout is not positive.
        IsolatedError: an exception in the function, a death or a timeout.
        ValueError: a column that the function needs is missing, or one that it names cannot be written as JSON.
    """

    differentiable = False

    def __init__(self, target: str, command: Sequence[str] = (sys.executable,), timeout: float = 600.0) -> None:
        if not timeout > 0:
            raise UsageError(f"an isolated reward needs a positive timeout in seconds, not {timeout:g}")
        self.target = target
        self.command = tuple(command)
        self.timeout = timeout
        self.__name__ = target.rpartition(":")[2]
        self.families = frozenset({f"{UNDECLARED}:{target}"})
        self._child: Child | None = None
        self._takes: frozenset[str] = frozenset()
        self._needs: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: str) -> IsolatedReward:
        """By "TARGET", called by this interpreter, or "INTERPRETER@TARGET", as in "/old/bin/python@scorer:score"."""
        command, _, target = spec.rpartition("@")
        return cls(target, (command,) if command else (sys.executable,))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.target, self.command, self.timeout)

    def __call__(self, **columns: Any) -> Sequence[Score] | Mapping[str, Sequence[Score]]:
        child = self._started()
        if missing := [name for name in self._needs if name not in columns]:
            raise ValueError(f'{self.target} needs the column "{missing[0]}", and the samples have none')
        sent = {name: column for name, column in columns.items() if name in self._takes}
        with tempfile.TemporaryDirectory() as folder:
            request = Path(folder) / "request.npz"
            _write(request, sent)
            scores: Sequence[Score] | Mapping[str, Sequence[Score]] = self._asked(child, str(request))["scores"]
        return scores

    def close(self) -> None:
        """End the process, if there is one; the next call starts another."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _started(self) -> Child:
        if self._child is not None and self._child.alive:
            return self._child
        self.close()
        self._child = Child([*self.command, "-c", _RUN, str(_WORKER), self.target])
        try:
            said = self._asked(self._child, None)
        except IsolatedError:
            self.close()
            raise
        self._takes, self._needs = frozenset(said["takes"]), tuple(said["needs"])
        return self._child

    def _asked(self, child: Child, request: str | None) -> dict[str, Any]:
        try:
            said = child.ask(request, self.timeout)
        except BaseException as error:  # Ctrl-C included: half an answer may be left in the pipe
            self.close()
            if isinstance(error, IsolatedError):
                raise IsolatedError(f"the process of {self.target} {error}") from None
            raise
        if "error" in said:
            raise IsolatedError(f"{said['error']}, in the process of {self.target}")
        return said


class Child:
    """A worker process and the pipes to it."""

    def __init__(self, command: Sequence[str]) -> None:
        try:
            # Its own session, so that Ctrl-C reaches it only through us, and so that its own children end with it.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise UsageError(f"cannot start the interpreter {command[0]}: {error.strerror}") from None
        self.close = weakref.finalize(self, _end, self._process)  # also when this process ends

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, line: str | None, timeout: float) -> dict[str, Any]:
        """Send a line, if any, and wait for the answer. IsolatedError says how the process ended instead."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if line is not None:
            with suppress(BrokenPipeError):  # a dead process shows itself below
                os.write(self._process.stdin.fileno(), f"{line}\n".encode())
        said, deadline = b"", time.monotonic() + timeout
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while not said.endswith(b"\n"):
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    raise IsolatedError(f"gave no answer within {timeout:g} s and was ended")
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    raise IsolatedError(self._ending())
                said += part
        answer: dict[str, Any] = json.loads(said)
        return answer

    def _ending(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its output and was ended"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    try:
        process.wait(timeout=1)  # an idle one ends with its input
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _write(file: Path, columns: Mapping[str, Any]) -> None:
    arrays = {}
    for name, column in columns.items():
        if name == "images":
            arrays["images"] = as_uint8(column)
            continue
        try:
            arrays[f"json/{name}"] = np.frombuffer(json.dumps(list(column)).encode(), np.uint8)
        except (TypeError, ValueError) as error:
            raise ValueError(f'the column "{name}" cannot go to another process: {error}') from None
    np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
