"""Generated code: what it may do, what it may not, and how its end is told."""

from __future__ import annotations

import datetime
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest

from autotelic import sandbox
from autotelic.errors import UsageError
from autotelic.sandbox import Limits, run_code
from autotelic.sandbox_peer import Peer

SHORT = Limits(seconds=0.5)


@pytest.fixture(scope="module")
def kernel() -> frozenset[str]:
    return run_code("").kernel


def needs(kernel: frozenset[str], guarantee: str) -> None:
    if guarantee not in kernel:
        pytest.skip(f"this kernel does not guarantee: {guarantee}")


FALLBACKS = [sandbox.LAYERS, ("landlock", "seccomp"), ("namespaces", "landlock")]


@pytest.fixture(params=FALLBACKS, ids=" ".join)
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """What the kernel offers."""
    monkeypatch.setattr(sandbox, "LAYERS", request.param)
    held: tuple[str, ...] = request.param
    return held


def test_each_test_is_judged_whatever_became_of_the_others() -> None:
    tests = [
        "assert twice(2) == 4",
        "assert twice(0) == 1",
        "twice()",
        "raise SystemExit(0)",
        "assert twice('a') == 'aa'",
    ]
    result = run_code("def twice(x): return 2 * x\nraise SystemExit(0)", tests=tests)
    assert result.ok and result.passed == (True, False, False, False, True)
    assert result.error == "AssertionError", "the first that failed"


def test_a_program_reads_and_prints() -> None:
    result = run_code("import sys\nprint(int(input()) + 1)\nprint('é', file=sys.stderr)", stdin="41\n")
    assert (result.ok, result.stdout, result.stderr, result.error) == (True, "42\n", "é\n", "")


def test_a_program_is_the_main_module() -> None:
    code = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nif __name__ == '__main__': print(A(1))"
    assert run_code(code).stdout == "A(x=1)\n"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero (line 2)"),
        ("def f(:", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os; os._exit(7)", "ended with exit code 7"),
        ("import ctypes; ctypes.string_at(0)", "was ended by SIGSEGV"),
        ("x = bytearray(10**10)", "MemoryError (line 1)"),
        ("open('a', 'wb').write(bytes(5 << 20))", "OSError: [Errno 27] File too large (line 1)"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines (line 1)"),
    ],
)
def test_every_end_is_told_in_one_line(code: str, error: str) -> None:
    result = run_code(code, tests=["assert True"])
    assert (result.ok, result.passed, result.error) == (False, (False,), error)


@pytest.mark.parametrize(
    ("status", "said", "line"),
    [
        (128 + signal.SIGXCPU, "", "used more CPU time than it was given"),
        (128 + signal.SIGHUP, "as it said", "was ended by SIGHUP"),
        (128 + signal.SIGKILL, "", "was ended by SIGKILL"),
        (128, "", "ended with exit code 128"),
        (255, "", "ended with exit code 255"),
        (1, "Traceback\nValueError: x\n\n", "ValueError: x"),
        (1, "y" * 301, "y" * 300),
        (3, " \n", "ended with exit code 3"),
    ],
)
def test_a_status_says_how_a_program_ended(status: int, said: str, line: str) -> None:
    assert sandbox._ending(status, said) == line


def test_limits_in_the_kernels_units() -> None:
    usual = {"RLIMIT_CPU": 5, "RLIMIT_AS": 2**29, "RLIMIT_FSIZE": 2**22, "RLIMIT_NPROC": 32}
    assert sandbox._limits(Limits()) == usual | {"RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0}
    some = {"RLIMIT_CPU": 2, "RLIMIT_AS": 3 * 2**20, "RLIMIT_FSIZE": 2 * 2**20, "RLIMIT_NPROC": 7}
    assert sandbox._limits(Limits(1.2, 3, 2, 10, 7)) == some | {"RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0}


def test_leaving_early_passes_no_test() -> None:
    result = run_code("import os; os._exit(0)", tests=["assert False"])
    assert (result.passed, result.error) == ((False,), "ended before its tests")


def test_what_a_program_writes_where_results_go_does_not_count() -> None:
    forged = '{"test": 0, "passed": true}'
    code = f"import os\nfor fd in range(3, 30):\n    try: os.write(fd, b'{forged}\\n')\n    except OSError: pass"
    assert run_code(code, tests=["assert False"]).passed == (False,)


def test_an_endless_program_is_ended_with_its_tests_undone() -> None:
    for code in ("while True: pass", "import time; time.sleep(9)"):
        result = run_code(code, tests=["assert True"], limits=SHORT)
        assert (result.timed_out, result.error, result.passed) == (True, "took longer than 0.5 s", (False,))
        assert 0.5 <= result.seconds < 2


def test_printing_without_end_fills_a_limited_file_only() -> None:
    result = run_code("while True: print('a' * 1000)", limits=Limits(file_mb=1, output=50))
    assert not result.ok and result.stdout == "a" * 50
    assert "File too large" in result.error or result.error == "printed more than a file may hold"


def test_nothing_of_our_environment_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "token")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    assert run_code("import os; print(sorted(os.environ))").stdout == (
        "['HOME', 'LANG', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'PATH', 'TMPDIR']\n"
    )


def test_the_folder_is_empty_and_gone_afterwards() -> None:
    code = "import os; print(os.listdir()); open('a', 'w').write('b'); print(open('a').read()); print(os.getcwd())"
    listed, read, folder = run_code(code).stdout.split()
    assert (listed, read) == ("[]", "b") and not Path(folder).exists()


def running(marker: str) -> bool:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return any(line.endswith(marker) for line in found.splitlines())


@pytest.mark.parametrize(("wait", "timed_out"), [("time.sleep(9)", True), ("time.sleep(0.2)", False)])
def test_children_end_with_the_program(kernel: frozenset[str], wait: str, timed_out: bool) -> None:
    needs(kernel, "processes")
    marker = f"sleep {97000 + os.getpid() % 1000}.{int(timed_out)}"
    code = f"import subprocess, time\nsubprocess.Popen({marker.split()}, start_new_session=True)\n{wait}"
    assert run_code(code, limits=Limits(seconds=1)).timed_out == timed_out
    deadline = time.monotonic() + 2
    while running(marker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running(marker)


def test_the_network_is_out_of_reach(kernel: frozenset[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # from here it is there
        result = run_code(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)")
    assert not result.ok and "network" in kernel


def test_other_processes_are_out_of_reach(kernel: frozenset[str]) -> None:
    result = run_code(f"import os\nos.kill({os.getpid()}, 0)")
    assert not result.ok and "ProcessLookupError" in result.error


def test_our_files_are_out_of_reach(kernel: frozenset[str], tmp_path: Path) -> None:
    needs(kernel, "files")
    (tmp_path / "ours").write_text("secret")
    for attempt in ("open('{}').read()", "open('{}', 'w')", "__import__('os').remove('{}')", "open('{}.new', 'w')"):
        error = run_code(attempt.format(tmp_path / "ours")).error
        assert "Permission" in error or "Read-only" in error
    assert (tmp_path / "ours").read_text() == "secret"


def test_packages_can_be_imported() -> None:
    assert run_code("import numpy; print(int(numpy.ones(3).sum()))", limits=Limits(memory_mb=1024)).stdout == "3\n"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that guarantees nothing, and somebody who asked for programs to be run all the same."""
    monkeypatch.setattr(sandbox, "LAYERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(sandbox.UNSAFE, "1")


@pytest.mark.usefixtures("bare")
def test_without_any_guarantee_programs_run_when_asked_for_and_are_limited() -> None:
    result = run_code("import numpy; print(int(numpy.ones(2).sum()))", tests=["assert True", "assert False"])
    assert (result.kernel, result.stdout, result.passed) == (frozenset(), "2\n", (True, False))
    assert run_code("while True: pass", limits=SHORT).timed_out
    assert "MemoryError" in run_code("bytearray(10**10)").error or sys.platform == "darwin"
    for attempt in (
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess; subprocess.run(['ls'])",
        "import _posixsubprocess; _posixsubprocess.fork_exec()",
        "import os; os.fork()",
        "import os; os.system('true')",
        "import os; os.kill(1, 0)",
        "import os; os.chmod('/tmp', 0o777)",
        "import os; os.setpriority(os.PRIO_PROCESS, 1, 0)",
        "import ctypes; ctypes.CDLL(None)",
    ):
        assert "not allowed in the sandbox" in run_code(attempt).error, attempt
    assert run_code("import asyncio\nasync def f(): return 1\nprint(asyncio.run(f()))").stdout == "1\n"


def test_a_program_that_leaves_its_session_ends_with_its_time(layers: tuple[str, ...]) -> None:
    marker = f"{86000 + os.getpid() % 1000}"
    code = (
        "import ctypes, os, time\nlibc = ctypes.CDLL(None)\nlibc.prctl(1, 0, 0, 0, 0)\n"
        f"try: os.setsid()\nexcept OSError: pass\nlibc.prctl(15, b'm{marker}', 0, 0, 0)\ntime.sleep(9)"
    )
    assert run_code(code, limits=Limits(seconds=1)).timed_out
    deadline = time.monotonic() + 2
    names = ["ps", "-eo", "comm"]
    while (left := f"m{marker}" in subprocess.run(names, capture_output=True, text=True).stdout.split()) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.02)
    assert not left


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_bubblewrap_takes_over_where_the_kernel_does_not_let_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "LAYERS", ())
    (tmp_path / "ours").write_text("secret")
    result = run_code("def f(x): return 2 * x\nprint(1)", tests=["assert f(2) == 4", "assert f(2) == 5"])
    assert (result.stdout, result.passed, len(result.kernel)) == ("1\n", (True, False), 3)
    for attempt in (
        f"open({str(tmp_path / 'ours')!r})",
        "open('/etc/shadow')",
        f"import os; os.kill({os.getpid()}, 0)",
    ):
        assert not run_code(attempt).ok


def test_a_folder_is_deleted_however_deep_and_closed(tmp_path: Path) -> None:
    inside, ours = tmp_path / "inside", tmp_path / "ours"
    ours.mkdir()
    (ours / "kept").write_text("kept")
    os.makedirs(inside / "a" / "b")
    (inside / "a" / "file").write_text("x")
    (inside / "a" / "link").symlink_to(ours)
    (inside / "broken").symlink_to(tmp_path / "nothing")
    here = os.open(inside, os.O_RDONLY)
    for _ in range(1100):  # beyond the longest path and the deepest recursion
        os.mkdir("nested", dir_fd=here)
        below = os.open("nested", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    for path in (inside / "a" / "b", inside / "a", inside):
        path.chmod(0)
    sandbox._delete(str(inside))
    assert os.listdir(tmp_path) == ["ours"] and (ours / "kept").read_text() == "kept"


# What a program and its tests tell each other --------------------------------------------------------------------


def one_of(random: Random, depth: int = 3) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: random.choice(
            [None, True, False, math.inf, -0.0, 10 ** random.randrange(5000), -(2**61), "\ud800", "é"]
        ),
        lambda: random.uniform(-1e9, 1e9),
        lambda: random.randbytes(3),
        lambda: Fraction(random.randrange(9), random.randrange(1, 9)),
        lambda: Decimal(random.randrange(99)) / 7,
        lambda: complex(random.random(), 1),
        lambda: datetime.datetime(2020, 1, random.randrange(1, 29), 3, 4, 5, 6),
        lambda: datetime.date(2020, 1, random.randrange(1, 29)),
        lambda: datetime.timedelta(1, 2, 3),
        lambda: range(1, random.randrange(1, 9), 2),
    ]
    if depth:
        several: Callable[[], list[Any]] = lambda: [one_of(random, depth - 1) for _ in range(random.randrange(4))]  # noqa: E731
        kinds += [several, lambda: tuple(several()), lambda: deque(several()), lambda: set(range(random.randrange(5)))]
        kinds += [lambda: dict(enumerate(several())), lambda: Counter("abca"), lambda: bytearray(b"ab")]
    return random.choice(kinds)()


def test_plain_values_come_through_as_they_are() -> None:
    here, there = socket.socketpair()
    with here, there:
        peer, random = Peer(here.fileno()), Random(0)
        for _ in range(500):
            value = one_of(random)
            found = peer.decode(json.loads(json.dumps(peer.encode(value))))
            assert found == value and type(found) is type(value)


def test_values_of_classes_of_ones_own_come_through_as_what_they_hold() -> None:
    class Int(int):
        __eq__ = __ge__ = __lt__ = lambda self, other: True  # type: ignore[assignment]
        __hash__ = int.__hash__
        __int__ = __index__ = lambda self: 4

    class Text(str):
        __eq__ = lambda self, other: True  # type: ignore[assignment]  # noqa: E731
        __hash__ = str.__hash__
        __str__ = lambda self: "4"  # noqa: E731

    class Rows(list[int]):
        __eq__ = lambda self, other: True  # type: ignore[assignment]  # noqa: E731
        __iter__ = lambda self: iter([4])  # noqa: E731

    here, there = socket.socketpair()
    with here, there:
        peer = Peer(here.fileno())
        for value, held in ((Int(3), 3), (Text("3"), "3"), (Rows([3]), [3])):
            found = peer.decode(json.loads(json.dumps(peer.encode(value))))
            assert type(found) is type(held) and found == held


def test_tests_show_a_program_nothing_but_what_they_give_it() -> None:
    """A callback can be called; what it belongs to, and other names, are out of reach."""
    code = """
def f(g):
    found = []
    for name in ("__globals__", "__code__", "__self__", "gi_frame", "f_globals"):
        try: found.append(getattr(g, name))
        except AttributeError: pass
    for request in (["ask", "name", "secret"], ["ask", "state", 0], ["ask", "await", 0], ["ask", "isinstance", 0, 0]):
        try: found.append(g._peer.exchange(request))
        except Exception: pass
    return found, g(1)
"""
    tests = [
        "secret = 4\nassert f(lambda x: x + 1) == ([], 2)",
        "def numbers():\n    yield 1\nassert f(iter([3]).__next__) == ([], 3) or True",
        "class T:\n    x = 3\n    _y = 4\nassert f(lambda x: T()) != ([], 3)",
    ]
    result = run_code(code, tests=tests)
    assert result.passed[0] and result.passed[2], result.error


def test_a_name_of_pythons_own_that_a_program_takes_has_to_pass_both_ways() -> None:
    tests = ["assert abs(f(2) - 4) < 0.1", "assert sum([1, 2]) == 3", "assert isinstance(f(2), int)"]
    cheat = "abs = lambda x: 0\nisinstance = lambda *a: True\ndef f(x): return 9.0\ndef sum(xs): return 4"
    assert run_code(cheat, tests=tests).passed == (False, False, False)
    assert run_code("def f(x): return 4\ndef sum(xs): return xs[0] + xs[1]", tests=tests).passed == (True,) * 3


def test_without_isolation_a_program_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LAYERS", ("landlock",))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(sandbox.UNSAFE, raising=False)
    with pytest.raises(UsageError, match=r"^the sandbox cannot run .* keep its files, network, processes out of reach"):
        run_code(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert not (tmp_path / "ran").exists()


def test_a_limit_has_to_be_positive() -> None:
    with pytest.raises(UsageError, match=r"^the limit seconds of a sandbox is 0, and has to be positive"):
        Limits(seconds=0)
