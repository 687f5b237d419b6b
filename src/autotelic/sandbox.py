"""Generated Python code, run where it can do little harm.

    result = run_code("def twice(x): return 2 * x", tests=["assert twice(2) == 4", "assert twice(0) == 1"])
    result.passed                                                     # (True, False)
    run_code("print(int(input()) + 1)", stdin="41").stdout            # "42\n"

Every call starts one process of this interpreter with an empty environment, in a new folder that is deleted after
it. ``Result.kernel`` tells which of these the kernel guarantees here:

- "network" and "processes" (Linux, where user namespaces are allowed): there is no network device, and the program
  sees, signals and outlives nothing outside its own processes, all of which end with it.
- "files" (Linux 5.13 and later, Landlock): it writes in its own folder only, and reads nothing but that folder,
  this Python with its packages, and the system's.

Where "network" and "processes" are missing (macOS, most containers), Python itself refuses sockets, new processes and
signals; code that is written to break out through native libraries is not stopped. Where "files" is missing, the
program reads and writes whatever this user may. Limits of time, memory and file size hold everywhere (of memory not on
macOS); the number of processes is not limited for root, and the number of files for nobody. This contains mistakes and
the tricks that a policy stumbles on in training. It is no place for code of somebody who means harm.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .errors import UsageError

_CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall time, the start of Python (about 0.05 s) included; also of CPU time, rounded up, per process.
        memory_mb: address space per process.
        file_mb: the longest file, and the most that is printed; above it writing fails.
        output: characters that are kept of each of what is printed and of what is said on errors.
        processes: at once, threads included.
    """

    seconds: float = 5.0
    memory_mb: int = 512
    file_mb: int = 4
    output: int = 20_000
    processes: int = 32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"the limit {name} of a sandbox is {value:g}, and has to be positive")


@dataclass(frozen=True)
class Result:
    """How a program ended.

    Attributes:
        ok: it ended by itself, within its limits, with exit code 0. Tests that fail do not change that.
        passed: one per test; all False where the program did not come to its tests.
        error: one line; empty if ok and every test passed.
        stdout, stderr: what was printed, cut to the limit.
        timed_out: it was ended because its time was over.
        seconds: wall time.
        kernel: what the kernel guarantees ("network", "processes", "files"); see the module.
    """

    ok: bool
    passed: tuple[bool, ...]
    error: str
    stdout: str
    stderr: str
    timed_out: bool
    seconds: float
    kernel: frozenset[str]


def run_code(code: str, stdin: str = "", tests: Sequence[str] = (), limits: Limits | None = None) -> Result:
    """Run a program, then tests (statements, such as an assert) that see its names, each whatever became of the others.

    A test stands in the program's own process: a program that goes out of its way can forge it. What a program prints
    for an input can be compared outside, where it cannot.

    Raises:
        UsageError: this is Windows, or the interpreter cannot be started.
    """
    if os.name != "posix":
        raise UsageError("the sandbox for code needs Linux or macOS")
    limits = limits or Limits()
    key = secrets.token_hex(8)
    with (
        tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as job,
        tempfile.TemporaryFile() as report,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        told = {"code": code, "tests": list(tests), "limits": _limits(limits), "folder": folder, "key": key}
        _fill(job, json.dumps(told))
        _fill(given, stdin)
        begin = time.monotonic()
        timed_out, status = _run((given, out, err), (job, report), folder, limits)
        seconds = time.monotonic() - begin
        stdout, stderr = (_text(file, limits.output) for file in (out, err))
        lines = _report(report, key)
    kernel = frozenset(next((line["kernel"] for line in lines if "kernel" in line), ()))
    passed = {line["test"]: line["passed"] for line in lines if "test" in line}
    error = next((line["error"] for line in lines if "error" in line), "")
    if timed_out:
        error = f"took longer than {limits.seconds:g} s"
    elif status and not error:
        error = _ending(status, stderr)
    elif len(passed) < len(tests) and not error:
        error = "ended before its tests"
    ok = not timed_out and status == 0
    verdicts = tuple(passed.get(index, False) for index in range(len(tests)))
    return Result(ok, verdicts, error, stdout, stderr, timed_out, seconds, kernel)


def _run(
    streams: tuple[IO[bytes], IO[bytes], IO[bytes]],
    files: tuple[IO[bytes], IO[bytes]],
    folder: str,
    limits: Limits,
) -> tuple[bool, int]:
    """Whether the time was over, and the exit code (128 and the signal's number, if a signal ended it)."""
    numbers = tuple(file.fileno() for file in files)
    # -I: neither the environment nor the working folder decides what is imported; -B: nothing is written beside it.
    command = [sys.executable, "-I", "-B", str(_CHILD), *map(str, numbers)]
    stdin, stdout, stderr = streams
    environment = {"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    environment |= {"OPENBLAS_NUM_THREADS": "1"}
    try:
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=folder,
            env=environment,
            pass_fds=numbers,
            start_new_session=True,  # so that it and its children can be ended together
        )
    except OSError as error:
        raise UsageError(f"cannot start the interpreter {sys.executable}: {error.strerror}") from None
    timed_out = False
    try:
        process.wait(timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return timed_out, process.returncode


def _limits(limits: Limits) -> dict[str, int]:
    return {
        "RLIMIT_CPU": math.ceil(limits.seconds),
        "RLIMIT_AS": limits.memory_mb << 20,
        "RLIMIT_FSIZE": limits.file_mb << 20,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": limits.processes,
        "RLIMIT_CORE": 0,
    }


def _fill(file: IO[bytes], text: str) -> None:
    file.write(text.encode("utf-8", "surrogatepass"))
    file.seek(0)


def _text(file: IO[bytes], length: int) -> str:
    file.seek(0)
    return file.read(4 * length).decode("utf-8", "replace")[:length]


def _report(file: IO[bytes], key: str) -> list[dict[str, Any]]:
    file.seek(0)
    lines = []
    for line in file.read().splitlines():
        with suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict) and said.get("key") == key:
                lines.append(said)
    return lines


def _ending(status: int, said: str) -> str:
    if status == 128 + signal.SIGXCPU:
        return "used more CPU time than it was given"
    if status > 128:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(status - 128).name}"
    last = said.strip().splitlines()[-1:] or [f"ended with exit code {status}"]
    return last[0][:300]
