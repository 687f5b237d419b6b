"""The inside of :mod:`.sandbox`: shuts itself in, then runs one program. A script by itself, run by path.

``python -I -B sandbox_child.py JOB REPORT``: two open file descriptors. JOB holds one JSON object with "code", "tests",
"limits" and "folder"; REPORT receives JSON lines. The first process waits for the second, which runs the program.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import traceback
import types
from typing import Any

_NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
_SET_PDEATHSIG, _SET_NO_NEW_PRIVS = 1, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # of Landlock, the same numbers on every usual machine
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/opt/homebrew")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def namespaces(libc: Any) -> bool:
    """Leave the machine's network and processes behind, where the kernel lets us."""
    if sys.platform != "linux":
        return False
    done: bool = libc.unshare(_NEW_USER | _NEW_NET | _NEW_PID | _NEW_IPC) == 0
    return done


def files(libc: Any, folder: str) -> bool:
    """Landlock: from here on write in one folder only, and read there and where Python and the system stand."""

    class Beneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))

    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1) if sys.platform == "linux" else -1
    if version < 1:
        return False
    # Later versions of Landlock know more rights: to move between folders (2), to cut (3), to control devices (5).
    every = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
    handled = ctypes.c_uint64(every)
    rules = libc.syscall(_CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(8), 0)
    read = _EXECUTE | _READ_FILE | _READ_DIR
    device = (_READ_FILE | _WRITE_FILE | _TRUNCATE) & every
    allowed = {place: read for place in (*_SYSTEM, sys.prefix, sys.base_prefix, *sys.path) if os.path.isdir(place)}
    allowed |= {place: device for place in _DEVICES if os.path.exists(place)} | {folder: every}
    for place, rights in allowed.items():
        parent = os.open(place, os.O_PATH)
        rule = Beneath(rights, parent)
        failed = libc.syscall(_ADD_RULE, rules, 1, ctypes.byref(rule), 0)
        os.close(parent)
        if failed:
            return False
    libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done: bool = libc.syscall(_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return done


def forbid() -> None:
    """Without namespaces: Python itself refuses sockets, processes and signals. Native code could still make them."""
    banned = (
        "socket.",
        "subprocess.",
        "os.fork",
        "os.posix_spawn",
        "os.exec",
        "os.system",
        "os.kill",
        "signal.pthread",
    )
    native = ("ctypes.dl", "ctypes.call_function")

    def refuse(event: str, _: Any) -> None:
        if event.startswith(banned + native):
            raise PermissionError(f"{event} is not allowed in the sandbox")

    sys.addaudithook(refuse)


def limit(limits: dict[str, int]) -> None:
    """CPU seconds, bytes of memory, of a file and of core dumps, open files, and processes (not of root)."""
    for name, value in limits.items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (ValueError, OSError):  # macOS does not limit the address space
            say({"unlimited": name})


def say(line: dict[str, Any]) -> None:
    """One line for the outside, signed so that what the program prints there by chance does not count."""
    os.write(_REPORT, json.dumps({**line, "key": _KEY}).encode() + b"\n")


def told(error: BaseException) -> str:
    """An exception in one line of at most 300 characters, with the program's line where there is one."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<program>"]
    where = f" (line {lines[-1]})" if lines else ""
    try:
        said = " ".join(str(error).split())
    except Exception:
        said = "which cannot be printed"
    return f"{type(error).__name__}: {said}"[:300].rstrip(": ") + where


def run(code: str, tests: list[str]) -> int:
    """The program as __main__, then each test in its names; the exit code."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = ["program"]
    try:
        exec(compile(code, "<program>", "exec"), main.__dict__)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            say({"error": f"SystemExit: {stop.code}"[:300]})
            return 1
    except BaseException as error:
        say({"error": told(error)})
        traceback.print_exc()
        return 1
    for index, test in enumerate(tests):
        try:
            exec(compile(test, f"<test {index}>", "exec"), main.__dict__)
        except BaseException as error:
            say({"test": index, "passed": False, "error": told(error)})
        else:
            say({"test": index, "passed": True})
    return 0


def outer(child: int) -> int:
    """Wait for the program; its exit code, or 128 and the signal that ended it."""
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def main() -> None:
    """Shut in, fork, run."""
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux":
        libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    apart = namespaces(libc)
    sys.stdout.flush()
    child = os.fork()
    if child:
        os._exit(outer(child))
    if sys.platform == "linux":
        libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.chdir(_JOB["folder"])
    guarded = files(libc, _JOB["folder"])
    if not apart:
        del _JOB["limits"]["RLIMIT_NPROC"]  # it would count every process of this user
    limit(_JOB["limits"])
    say({"kernel": (["network", "processes"] if apart else []) + (["files"] if guarded else [])})
    if not apart:
        forbid()
    code = run(_JOB["code"], _JOB["tests"])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        say({"error": "printed more than a file may hold"})
        code = 1
    os._exit(code)


if __name__ == "__main__":
    _REPORT = int(sys.argv[2])
    with os.fdopen(int(sys.argv[1]), encoding="utf-8") as _file:
        _JOB = json.load(_file)
    _KEY = _JOB.pop("key")
    main()
