"""The inside of :mod:`.sandbox`: shuts itself in, then runs one program or its tests. A script by itself, run by path.

``python -I -B sandbox_child.py JOB REPORT READY``: three open file descriptors. JOB holds one JSON object, REPORT
receives JSON lines, and READY what the kernel guarantees before anything is run. The first process waits for the
second, which runs the program.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import traceback
import types
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from typing import Any

_SET_PDEATHSIG = 1


def beside(name: str) -> Any:
    """A module of this folder, by its path: what else stands there has the names of Python's own modules."""
    module = types.ModuleType(name)
    SourceFileLoader(name, os.path.join(os.path.dirname(__file__), f"{name}.py")).exec_module(module)
    return module


def forbid() -> None:
    """Without any guarantee: Python itself refuses connections, processes and signals; native code still could."""
    banned = ("subprocess.", "os.fork", "os.posix_spawn", "os.exec", "os.system", "os.kill", "signal.pthread")
    sockets = tuple(f"socket.{name}" for name in ("connect", "bind", "send", "get"))
    native = ("ctypes.dl", "ctypes.call_function")

    def refuse(event: str, _: Any) -> None:
        if event.startswith(banned + sockets + native):
            raise PermissionError(f"{event} is not allowed in the sandbox")

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError("this is not allowed in the sandbox")

    silent: dict[str, tuple[str, ...]] = {
        "_posixsubprocess": ("fork_exec",),
        "_signal": ("pidfd_send_signal",),
        "resource": ("prlimit",),
    }
    changes: tuple[str, ...] = ("chmod", "fchmod", "chown", "fchown", "lchown", "utime", "setxattr", "removexattr")
    changes += ("setpriority", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "pidfd_open")
    silent |= {"os": changes, "posix": changes, "signal": ("pidfd_send_signal",)}
    for module, names in silent.items():  # calls that no event tells of
        for name in names:
            if hasattr(importlib.import_module(module), name):
                setattr(importlib.import_module(module), name, refused)
    sys.addaudithook(refuse)


def limit(limits: dict[str, int]) -> None:
    """CPU seconds, bytes of memory, of a file and of core dumps, open files, and processes (not of root)."""
    for name, value in limits.items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with suppress(ValueError, OSError):  # macOS does not limit the address space
            resource.setrlimit(getattr(resource, name), (value, value))


def say(line: dict[str, Any]) -> None:
    """One line for the outside."""
    os.write(_REPORT, json.dumps(line).encode() + b"\n")


def told(error: BaseException) -> str:
    """An exception in one line of at most 300 characters, with the program's line where there is one."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<program>"]
    where = f" (line {lines[-1]})" if lines else ""
    try:
        said = " ".join(str(error).split())
    except Exception:
        said = "which cannot be printed"
    return f"{type(error).__name__}: {said}"[:300].rstrip(": ") + where


def run(code: str) -> types.ModuleType | None:
    """The program as __main__; None if it failed."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = ["program"]
    try:
        exec(compile(code, "<program>", "exec"), main.__dict__)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            say({"error": f"SystemExit: {stop.code}"[:300]})
            return None
    except BaseException as error:
        say({"error": told(error)})
        traceback.print_exc()
        return None
    return main


def outer(child: int) -> int:
    """Wait for the program; its exit code, or 128 and the signal that ended it."""
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def shut_in(libc: Any, kernel: Any, apart: bool) -> set[str]:
    """What of it holds: "network", "processes", "files"."""
    folder, layers, wrapped = _JOB["folder"], _JOB["layers"], _JOB["wrapped"]
    mounted = wrapped or (apart and kernel.read_only(libc, folder))
    os.chdir(folder)  # again, since it may have been mounted
    version = kernel.landlock(libc, folder) if "landlock" in layers else 0
    if not apart:
        del _JOB["limits"]["RLIMIT_NPROC"]  # it would count every process of this user
    limit(_JOB["limits"])
    filtered = "seccomp" in layers and kernel.seccomp(libc, apart, mounted, version)
    holds = {"network", "processes"} if apart or filtered else set()
    if wrapped or (version and (mounted or filtered)):
        holds.add("files")
    return holds


def main() -> None:
    """Shut in, fork, run."""
    libc, kernel = ctypes.CDLL(None, use_errno=True), beside("sandbox_layers")
    peers: Any = beside("sandbox_peer") if _JOB["line"] is not None else None
    if sys.platform == "linux":
        libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    apart = _JOB["wrapped"] or ("namespaces" in _JOB["layers"] and kernel.namespaces(libc))
    child = os.fork()
    if child:
        os.write(_READY, json.dumps({"pid": child}).encode() + b"\n")
        if _JOB["line"] is not None:
            os.close(_JOB["line"])  # its end has to be seen at the other end
        os._exit(outer(child))
    if sys.platform == "linux":
        libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    holds = shut_in(libc, kernel, apart)
    os.write(_READY, json.dumps({"kernel": sorted(holds)}).encode() + b"\n")
    os.close(_READY)
    if len(holds) < 3 and not _JOB["unsafe"]:
        os._exit(0)
    if "processes" not in holds:
        forbid()
    if _JOB["tests"] is not None:
        peers.judge(peers.Peer(_JOB["line"]), _JOB["tests"], say, told)
        os._exit(0)
    program = run(_JOB["code"])
    if program is not None and _JOB["line"] is not None:
        peers.Peer(_JOB["line"], program.__dict__).serve()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        say({"error": "printed more than a file may hold"})
        program = None
    os._exit(program is None)


if __name__ == "__main__":
    _REPORT, _READY = int(sys.argv[2]), int(sys.argv[3])
    with os.fdopen(int(sys.argv[1]), encoding="utf-8") as _file:
        _JOB = json.load(_file)
    main()
