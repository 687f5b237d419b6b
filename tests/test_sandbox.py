"""Generated code: what it may do, what it may not, and how its end is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotelic import sandbox, sandbox_child
from autotelic.errors import UsageError
from autotelic.sandbox import Limits, run_code

SHORT = Limits(seconds=0.5)


@pytest.fixture(scope="module")
def kernel() -> frozenset[str]:
    return run_code("").kernel


def needs(kernel: frozenset[str], guarantee: str) -> None:
    if guarantee not in kernel:
        pytest.skip(f"this kernel does not guarantee: {guarantee}")


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
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # from here it is there
        result = run_code(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)")
    said = "Network is unreachable" if "network" in kernel else "not allowed in the sandbox"
    assert not result.ok and said in result.error


def test_other_processes_are_out_of_reach(kernel: frozenset[str]) -> None:
    result = run_code(f"import os\nos.kill({os.getpid()}, 0)")
    assert not result.ok
    assert "processes" not in kernel or "ProcessLookupError" in result.error


def test_our_files_are_out_of_reach(kernel: frozenset[str], tmp_path: Path) -> None:
    needs(kernel, "files")
    (tmp_path / "ours").write_text("secret")
    for attempt in ("open('{}').read()", "open('{}', 'w')", "__import__('os').remove('{}')", "open('{}.new', 'w')"):
        assert "PermissionError" in run_code(attempt.format(tmp_path / "ours")).error
    assert (tmp_path / "ours").read_text() == "secret"


def test_packages_can_be_imported() -> None:
    assert run_code("import numpy; print(int(numpy.ones(3).sum()))", limits=Limits(memory_mb=1024)).stdout == "3\n"


def test_without_namespaces_python_refuses_sockets_processes_and_signals() -> None:
    attempts = ["import socket; socket.socket()", "import os; os.fork()", "import os; os.system('true')"]
    attempts += ["import subprocess; subprocess.run(['true'])", "import os; os.kill(1, 0)"]
    attempts += ["import ctypes; ctypes.CDLL(None)"]
    tried = "".join(
        f"try: exec({attempt!r})\nexcept PermissionError as e: print(e)\nelse: print('done')\n" for attempt in attempts
    )
    source = Path(str(sandbox_child.__file__)).read_text().split("if __name__")[0]
    done = subprocess.run([sys.executable, "-c", f"{source}\nforbid()\n{tried}"], capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert len(said) == len(attempts) and all("is not allowed in the sandbox" in line for line in said), done.stdout


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that guarantees nothing."""
    source = Path(str(sandbox_child.__file__)).read_text()
    for guarantee in ("namespaces(libc)", 'files(libc, _JOB["folder"])'):
        assert f"= {guarantee}\n" in source
        source = source.replace(f"= {guarantee}\n", "= False\n")
    (tmp_path / "child.py").write_text(source)
    monkeypatch.setattr(sandbox, "_CHILD", tmp_path / "child.py")


@pytest.mark.usefixtures("bare")
def test_without_any_guarantee_programs_run_and_are_limited() -> None:
    result = run_code("import numpy; print(int(numpy.ones(2).sum()))", tests=["assert True", "assert False"])
    assert (result.kernel, result.stdout, result.passed) == (frozenset(), "2\n", (True, False))
    assert run_code("while True: pass", limits=SHORT).timed_out
    assert "MemoryError" in run_code("bytearray(10**10)").error or sys.platform == "darwin"
    for attempt in (
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess; subprocess.run(['ls'])",
    ):
        assert "is not allowed in the sandbox" in run_code(attempt).error


def test_a_limit_has_to_be_positive() -> None:
    with pytest.raises(UsageError, match=r"^the limit seconds of a sandbox is 0, and has to be positive"):
        Limits(seconds=0)
