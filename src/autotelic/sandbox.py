"""Generated Python code, run where it can do little harm.

    result = run_code("def twice(x): return 2 * x", tests=["assert twice(2) == 4", "assert twice(0) == 1"])
    result.passed                                                     # (True, True)
    run_code("print(int(input()) + 1)", stdin="41").stdout            # "42\n"

Every call starts a process of this interpreter with an empty environment, in a new folder that is deleted after it;
tests run in a second one, which calls the program's functions and sees only plain values (``sandbox_peer``). Before the
program runs, the kernel has to guarantee (``Result.kernel``):

- "network" and "processes": nothing is sent or received, and the program signals, changes and outlives nothing outside
  its own processes. By namespaces, where users may make them; else by seccomp, and then it gets no process of its own
  and no socket but pairs.
- "files": it writes, and changes modes and times, in its own folder only, and reads nothing but that folder, this
  Python with its packages, and the system's libraries. By Landlock (Linux 5.13 and later) with mounts or with seccomp;
  in the second case modes and times cannot be changed at all.

Where one of the three is missing and ``bwrap`` (bubblewrap) is installed and can give it, the program runs in that.
Else it is not run: UsageError, unless the environment variable AUTOTELIC_UNSAFE_SANDBOX is set to 1. Then Python itself
refuses connections, processes and signals, which stops mistakes and nobody who means harm; that is all there is on
macOS. Limits of time, memory and file size hold everywhere (of memory not on macOS); the number of processes is not
limited for root, and the number of files for nobody. The kernel itself is shared: this is for what a policy tries in
training, and no place for code of somebody who means harm.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from .errors import UsageError
from .sandbox_layers import DEVICES

_CHILD = Path(__file__).with_name("sandbox_child.py")
UNSAFE = "AUTOTELIC_UNSAFE_SANDBOX"
"""Environment variable: 1 runs programs even where the kernel does not shut them in."""
LAYERS: tuple[str, ...] = ("namespaces", "landlock", "seccomp")
"""What of the kernel is tried; fewer to see what the others hold."""
_GUARANTEES = frozenset({"network", "processes", "files"})


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

    Tests run in a process of their own and call the program's functions and classes there: results are values of
    Python's own types, and what the program does to its own process does not reach them. An object of the program's own
    classes equals no plain value, and another one if both hold the same. What the program prints can be compared by the
    caller.

    Raises:
        UsageError: this is Windows, the interpreter cannot be started, or the kernel cannot shut the program in.
    """
    if os.name != "posix":
        raise UsageError("the sandbox for code needs Linux or macOS")
    limits = limits or Limits()
    missing: frozenset[str] = frozenset()
    ways = _ways()
    key = (LAYERS, *ways)
    for way in ways[_works.get(key, 0) :]:
        result = _run(code, stdin, tests, limits, way)
        missing = _GUARANTEES - result.kernel
        if not missing or way == "unsafe" or result.error == _STUCK:
            _works[key] = ways.index(way)
            return result
    raise UsageError(
        f"the sandbox cannot run code of others: this machine does not keep its {', '.join(sorted(missing))} out of "
        f"reach. Install bubblewrap, allow user namespaces, or set {UNSAFE}=1 to run it all the same"
    )


_works: dict[tuple[Any, ...], int] = {}
"""By what there is: the way that held last time."""
_STUCK = "was not started in time"


def _ways() -> list[str]:
    """In which ways it may be tried, in this order."""
    wrapped = ["bubblewrap"] if sys.platform == "linux" and shutil.which("bwrap") else []
    return ["plain", *wrapped, *(["unsafe"] if os.environ.get(UNSAFE) == "1" else [])]


def _run(code: str, stdin: str, tests: Sequence[str], limits: Limits, way: str) -> Result:
    with ExitStack() as stack:
        here, there = (stack.enter_context(end) for end in socket.socketpair())
        line = here.fileno() if tests else None
        program = _Started(stack, way, limits, {"code": code, "tests": None, "line": line}, stdin)
        started = [program]
        if tests:
            started.append(_Started(stack, way, limits, {"tests": list(tests), "line": there.fileno()}, ""))
        here.close()
        there.close()  # so that each sees the other's end
        deadline = program.begin + limits.seconds
        timed_out = not all([process.ended(deadline) for process in reversed(started)])
        for process in started:
            process.end()
        seconds = time.monotonic() - program.begin
        stdout, stderr = (_text(file, limits.output) for file in (program.out, program.err))
        kernel = frozenset.intersection(*(process.kernel() for process in started))
        verdicts = _report(started[1].report) if tests else []
        errors = [str(line["error"])[:300] for line in (*_report(program.report), *verdicts) if "error" in line]
        status = program.status
    passed = {line["test"]: line["passed"] is True for line in verdicts if "test" in line}
    error = next(iter(errors), "")
    if timed_out:
        error = f"took longer than {limits.seconds:g} s" if kernel else _STUCK
    elif status and not error:
        error = _ending(status, stderr)
    elif len(passed) < len(tests) and not error:
        error = "ended before its tests"
    ok = not timed_out and status == 0
    results = tuple(passed.get(index, False) for index in range(len(tests)))
    return Result(ok, results, error, stdout, stderr, timed_out, seconds, kernel)


class _Started:
    """A process of the sandbox, and the files between it and us."""

    def __init__(self, stack: ExitStack, way: str, limits: Limits, job: dict[str, Any], stdin: str) -> None:
        folder = stack.enter_context(_folder())
        files = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(5))  # noqa: SIM115
        told, given, self.report, self.out, self.err = files
        self._ready, ready = os.pipe()
        stack.callback(os.close, self._ready)
        wrapped = way == "bubblewrap"
        job |= {"limits": _limits(limits), "folder": folder, "layers": LAYERS, "wrapped": wrapped}
        _fill(told, json.dumps(job | {"unsafe": way == "unsafe"}))
        _fill(given, stdin)
        passed = [told.fileno(), self.report.fileno(), ready]
        # -I: neither the environment nor the working folder decides what is imported; -B: nothing is written beside it.
        command = [sys.executable, "-I", "-B", str(_CHILD), *map(str, passed)]
        environment = {"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.begin = time.monotonic()
        try:
            self._process = subprocess.Popen(
                [*(_bubblewrap(folder) if wrapped else ()), *command],
                stdin=given,
                stdout=self.out,
                stderr=self.err,
                cwd=folder,
                env=environment,
                pass_fds=[*passed, *([job["line"]] if job["line"] is not None else [])],
                start_new_session=True,  # so that it and its children can be ended together
            )
        except OSError as error:
            raise UsageError(f"cannot start the interpreter {sys.executable}: {error.strerror}") from None
        finally:
            os.close(ready)
        self._wrapped = wrapped
        self._said: list[dict[str, Any]] | None = None

    def ended(self, deadline: float) -> bool:
        """Whether it ends before then."""
        try:
            self._process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> None:
        """End it and all that it started."""
        running = self._process.poll() is None
        inner = next((line["pid"] for line in self._before() if "pid" in line), None)
        if running and inner is not None and not self._wrapped:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(inner, signal.SIGKILL)  # it may have left our group; not waited for yet, so this is its number
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def status(self) -> int:
        """Its exit code; 128 and the signal's number, if a signal ended it."""
        return int(self._process.returncode)

    def kernel(self) -> frozenset[str]:
        """What the kernel guarantees, as it was said before anything of others was run."""
        return frozenset(next((line["kernel"] for line in self._before() if "kernel" in line), ()))

    def _before(self) -> list[dict[str, Any]]:
        if self._said is None:
            os.set_blocking(self._ready, False)
            try:
                self._said = _lines(os.read(self._ready, 1 << 12))
            except BlockingIOError:
                self._said = []
        return self._said


def _bubblewrap(folder: str) -> list[str]:
    readable = [word for place in _readable() for word in ("--ro-bind", place, place)]
    devices = [word for place in DEVICES for word in ("--dev-bind", place, place)]
    mine = ["--bind", folder, folder, "--chdir", folder]
    return [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", *readable, *devices, *mine]


@cache
def _readable() -> list[str]:
    """The places of ``sandbox_layers``, as an interpreter sees them that neither our environment nor folder changes."""
    script = _CHILD.with_name("sandbox_layers.py")
    said = subprocess.run([sys.executable, "-I", "-B", str(script)], capture_output=True, text=True, check=True).stdout
    return [*said.splitlines(), *(str(_CHILD.with_name(f"sandbox_{name}.py")) for name in ("child", "layers", "peer"))]


@contextmanager
def _folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="sandbox-")
    try:
        yield folder
    finally:
        with suppress(OSError):
            _delete(folder)


def _delete(folder: str) -> None:
    """Delete a folder, however deep: what is nested is first moved to its top, so that no path is long."""
    waiting, moved = [folder], 0
    os.chmod(folder, stat.S_IRWXU)
    while waiting:
        inside = waiting.pop()
        with os.scandir(inside) as found:
            entries = list(found)
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, stat.S_IRWXU)
            if inside != folder:
                os.rename(entry.path, path := os.path.join(folder, f"{secrets.token_hex(8)}.{moved}"))
                moved += 1
            waiting.append(path if inside != folder else entry.path)
        if inside != folder:
            os.rmdir(inside)
    os.rmdir(folder)


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


def _report(file: IO[bytes]) -> list[dict[str, Any]]:
    file.seek(0)
    return _lines(file.read())


def _lines(said: bytes) -> list[dict[str, Any]]:
    lines = []
    for line in said.splitlines():
        with suppress(ValueError, RecursionError):
            if isinstance(read := json.loads(line), dict):
                lines.append(read)
    return lines


def _ending(status: int, said: str) -> str:
    if status == 128 + signal.SIGXCPU:
        return "used more CPU time than it was given"
    if status > 128:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(status - 128).name}"
    last = said.strip().splitlines()[-1:] or [f"ended with exit code {status}"]
    return last[0][:300]
