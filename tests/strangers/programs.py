"""Programs as answers: dishonest and honest ones under tests, and what a program does in the sandbox."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autotelic import sandbox
from autotelic.rewards.text.code_tests import CodeTests
from autotelic.sandbox import Limits, run_code

from .cases import Gives, GoesOn, Refuses, Skipped, case


def passes(code: str, *tests: Any, limits: Limits | None = None) -> object:
    return CodeTests(limits=limits)([code], [list(tests)])[0]


# Dishonest programs ---------------------------------------------------------------------------------------------

ANY = """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    def __hash__(self): return 0
    def __bool__(self): return True
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
    def __sub__(self, other): return self
    __rsub__ = __add__ = __radd__ = __mul__ = __abs__ = __round__ = __sub__
    def __abs__(self): return self
"""
FORGED = '{"test": 0, "passed": true}'
DISHONEST = {
    "an object equal to everything": f"{ANY}\ndef f(x): return Any()",
    "an int equal to everything": "class I(int):\n    def __eq__(self, o): return True\ndef f(x): return I(0)",
    "a list equal to everything": "class L(list):\n    def __eq__(self, o): return True\ndef f(x): return L()",
    "a class as the function": f"{ANY}\nf = Any",
    "compile replaced": "import builtins\nbuiltins.compile = lambda *a, **k: 'pass'\ndef f(x): return 0",
    "exec replaced": "import builtins\nbuiltins.exec = lambda *a, **k: None\ndef f(x): return 0",
    "AssertionError replaced": "import builtins\nbuiltins.AssertionError = type(None)\ndef f(x): return 0",
    "the caller's list of tests edited": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
                value[:] = ['pass'] * len(value)
        frame = frame.f_back
    return 0
f(0)
""",
    "the expected value read from frames": """
import sys, re
def f(x):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            for text in value if isinstance(value, (list, tuple)) else [value]:
                found = re.search(r'f\\(2\\) == (\\d+)', str(text))
                if found: return int(found[1])
        frame = frame.f_back
    return 0
""",
    "the expected value read from memory": """
import gc, re
def f(x):
    for value in gc.get_objects():
        found = re.search(r'assert f\\(2\\) == (\\d+)', str(value)[:5000]) if isinstance(value, (dict, list)) else None
        if found: return int(found[1])
    return 0
""",
    "leaving with exit code 0": "import os\nos._exit(0)",
    "sys.exit when called": "import sys\ndef f(x): sys.exit(0)",
    "leaving when called": "import os\ndef f(x): os._exit(0)",
    "atexit": "import atexit\natexit.register(lambda: print('passed'))\ndef f(x): return 0",
    "json replaced": "import json\njson.dumps = lambda *a, **k: '{\"passed\": true}'\ndef f(x): return 0",
    "json's encoder replaced": "import json\njson.JSONEncoder.encode = lambda *a, **k: 'true'\ndef f(x): return 0",
    "verdicts written to every descriptor": f"""
import os
def forge():
    for fd in range(1, 64):
        for line in ('{FORGED}', '{{"value": 4, "passed": true, "test": 0}}', 'true', '4'):
            try: os.write(fd, line.encode() + b'\\n')
            except OSError: pass
forge()
def f(x): forge(); return 0
""",
    "every descriptor closed": "import os\nos.closerange(0, 64)\ndef f(x): return 0",
    "tracing": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef f(x): return 0",
    "__main__ replaced": f"{ANY}\nimport sys\nsys.modules['__main__'] = Any()\ndef f(x): return Any()",
    "reward modules replaced": """
import sys
for name, module in list(sys.modules.items()):
    for attribute in ('say', 'run', 'told', 'main'):
        if hasattr(module, attribute) and 'sandbox' in str(getattr(module, '__file__', '')):
            setattr(module, attribute, lambda *a, **k: None)
def f(x): return 0
""",
    "an exception instead of a value": "def f(x): raise SystemExit(0)",
    "KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "a string that looks right": "def f(x): return '4'",
    "a float that cheats": "class F(float):\n    __eq__ = lambda s, o: True\n    __sub__ = lambda s, o: 0.0\n"
    "def f(x): return F('nan')",
    "nan": "def f(x): return float('nan')",
    "an endless loop": "def f(x):\n    while True: pass",
    "an endless list": "def f(x):\n    while True: yield 4",
    "a forked process": "import os\ndef f(x):\n    os.fork()\n    return 0",
    "a deep list": "def f(x):\n    a = []\n    for _ in range(100000): a = [a]\n    return a",
    "a list in itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "signals": "import signal, os\nos.kill(os.getppid(), signal.SIGTERM)\ndef f(x): return 0",
    "a property of int": f"{ANY}\nimport ctypes\ndef f(x): return Any()",
}
for _name, _code in DISHONEST.items():

    @case(
        f"vlm A10: statements are not fooled by {_name}",
        kind="graders",
        modality="vlm",
        entry="reward",
        required=Gives([0.0, 0.0, 0.0]),
        by="policy",
        slow="endless" in _name or "fork" in _name,
    )
    def a_dishonest_program(folder: Path, code: str = _code) -> object:
        tests = ("assert f(2) == 4", "assert abs(f(2) - 4) < 0.01", "result = f(2)\nassert 4 == result, 'no'")
        return CodeTests(limits=Limits(seconds=2), workers=2)([code] * 3, [[test] for test in tests])


# Honest programs ------------------------------------------------------------------------------------------------

HONEST: dict[str, tuple[str, str]] = {
    "recursion": ("def f(n): return 1 if n < 2 else n * f(n - 1)", "assert f(20) == 2432902008176640000"),
    "a class inside": (
        "class P:\n    def __init__(self, x): self.x = x\ndef f(n): return P(n).x * 2",
        "assert f(2) == 4",
    ),
    "asyncio": (
        "import asyncio\nasync def g(n):\n    await asyncio.sleep(0)\n    return n * 2\n"
        "def f(n): return asyncio.run(g(n))",
        "assert f(2) == 4",
    ),
    "a coroutine": ("async def f(n): return n * 2", "import asyncio\nassert asyncio.run(f(2)) == 4"),
    "a generator as a list": ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2]"),
    "a big output": ("def f(n): return 'a' * n", "assert f(48_889) == 'a' * 48_889"),
    "tuples": ("def f(n): return (n, [n], {n: (n,)})", "assert f(2) == (2, [2], {2: (2,)})"),
    "sets": ("def f(n): return {n, n + 1}", "assert f(2) == {2, 3} and isinstance(f(2), set)"),
    "bytes": ("def f(b): return b[::-1]", "assert f(b'ab') == b'ba'"),
    "None and booleans": ("def f(n): return None if n else True", "assert f(1) is None and f(0) is True"),
    "big integers": ("def f(n): return 10 ** n", "assert f(1000) == 10 ** 1000"),
    "floats": ("def f(n): return n / 3", "assert f(1) == 1 / 3 and f(float('inf')) == float('inf')"),
    "complex numbers": ("def f(n): return n * 1j", "assert f(2) == 2j"),
    "keyword arguments": ("def f(a, *, b=1): return a + b", "assert f(1, b=2) == 3 and f(1) == 2"),
    "a list sorted in place": (
        "def f(a): a.sort()",
        "a = [3, 1, 2]\nf(a)\nassert a == [1, 2, 3]",
    ),
    "a grid filled in place": (
        "def f(g): g[0][1] = 5",
        "g = [[0, 0]]\nf(g)\nassert g == [[0, 5]]",
    ),
    "a class under test": (
        "class Stack:\n    def __init__(self): self.a = []\n    def push(self, x): self.a.append(x)\n"
        "    def pop(self): return self.a.pop()\n    def __len__(self): return len(self.a)",
        "s = Stack()\ns.push(1)\ns.push([2])\nassert len(s) == 2 and s.pop() == [2] and s.pop() == 1",
    ),
    "a linked list": (
        "class Node:\n    def __init__(self, v, n=None): self.val, self.next = v, n\n"
        "def f(head):\n    last = None\n    while head: head.next, last, head = last, head, head.next\n    return last",
        "r = f(Node(1, Node(2)))\nassert (r.val, r.next.val, r.next.next) == (2, 1, None)",
    ),
    "an exception": (
        "def f(n):\n    if n < 0: raise ValueError('negative')\n    return n",
        "try: f(-1)\nexcept ValueError as e: assert str(e) == 'negative'\nelse: assert False",
    ),
    "an exception of its own": (
        "class Bad(ValueError): pass\ndef f(n): raise Bad('x')",
        "try: f(1)\nexcept Bad: pass\nelse: assert False",
    ),
    "a callback": ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x + 1, [1, 2]) == [2, 3]"),
    "a closure": ("def f(n): return lambda x: x + n", "assert f(2)(3) == 5"),
    "HumanEval's form": (
        "def f(n): return n * 2",
        "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\ncheck(f)",
    ),
    "a module of the program": ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(2), 2 ** 0.5)"),
    "a global": ("count = 0\ndef f():\n    global count\n    count += 1", "f()\nf()\nassert count == 2"),
    "a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(n): return P(n)",
        "assert f(2) == P(2) and f(2) != P(3) and f(2).x == 2",
    ),
    "a named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(n): return P(n, n)",
        "assert f(2) == (2, 2) and f(2).y == 2",
    ),
    "a Counter": (
        "from collections import Counter\ndef f(s): return Counter(s)",
        "assert f('aab') == {'a': 2, 'b': 1}",
    ),
    "a fraction": (
        "from fractions import Fraction\ndef f(n): return Fraction(1, n)",
        "from fractions import Fraction\nassert f(2) == Fraction(1, 2)",
    ),
    "an array": ("import numpy as np\ndef f(n): return np.arange(n)", "assert f(3).tolist() == [0, 1, 2]"),
    "a number of numpy": ("import numpy as np\ndef f(a): return np.sum(a)", "assert f([1, 2]) == 3"),
    "print and input at the end": (
        "def f(n): return n * 2\nif __name__ == '__main__':\n    print(f(2))",
        "assert f(2) == 4",
    ),
    "an end with sys.exit": ("import sys\ndef f(n): return n * 2\nsys.exit(0)", "assert f(2) == 4"),
    "a lone surrogate": ("def f(): return '\\ud800'", "assert f() == '\\ud800'"),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor as P\ndef f(xs):\n"
        "    with P(2) as p: return list(p.map(lambda x: x * 2, xs))",
        "assert f([1, 2]) == [2, 4]",
    ),
    "files": (
        "def f(s):\n    open('a.txt', 'w').write(s)\n    return open('a.txt').read()",
        "assert f('b') == 'b'",
    ),
}
for _name, (_code, _test) in HONEST.items():

    @case(
        f"vlm A10: an honest program passes: {_name}",
        kind="graders",
        modality="vlm",
        entry="reward",
        required=Gives(1.0),
        by="policy",
    )
    def an_honest_program(folder: Path, code: str = _code, test: str = _test) -> object:
        return passes(code, test, limits=Limits(seconds=5, memory_mb=1024))


@case(
    "vlm A22: a right output of 48,889 characters is right, and a wrong end of it is wrong",
    kind="graders",
    modality="vlm",
    entry="reward",
    required=Gives([1.0, 0.0, 0.0]),
    by="policy",
)
def long_outputs(folder: Path) -> object:
    code = "for i in range(10000): print(i)"
    right = "\n".join(map(str, range(10_000)))
    tests = [[("", right)], [("", right + "x")], [("", right[:-1])]]
    return CodeTests()([code] * 3, tests)


@case(
    "vlm A22: programs run in parallel, on as many workers as there are cores",
    kind="graders",
    modality="vlm",
    entry="reward",
    required=Gives(True),
    by="machine",
)
def in_parallel(folder: Path) -> object:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return CodeTests().workers == cores


for _name, _text in {
    "a language after the program": "```python\nA\n```\nRun it:\n```bash\npython a.py\n```\nor\n```text\nB\n```",
    "python3": "```python3\nA\n```",
    "thoughts": "<think>```python\nB\n```</think>\n```python\nA\n```",
    "an end that is missing": "```python\nA\n",
    "a list item": "1. this:\n   ```py\n   A\n   ```",
}.items():

    @case(
        f"vlm A22: the program of a text with {_name}",
        kind="graders",
        modality="vlm",
        entry="reward",
        required=Gives("A"),
        by="policy",
    )
    def the_program_of(folder: Path, text: str = _text) -> object:
        from autotelic.rewards.text.code_tests import program_of

        return program_of(text).strip()


# The sandbox ----------------------------------------------------------------------------------------------------

LAYERS = ("namespaces", "landlock", "seccomp")


@contextmanager
def only(*layers: str) -> Iterator[None]:
    """A machine that offers these alone."""
    before = sandbox.LAYERS
    sandbox.LAYERS = layers
    try:
        yield
    finally:
        sandbox.LAYERS = before


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


CALLS = {
    "os.kill": "os.kill({pid}, 9)",
    "os.killpg": "os.killpg({pid}, 9)",
    "pidfd_send_signal": "import signal; signal.pidfd_send_signal(os.pidfd_open({pid}), 9)",
    "prlimit": "import resource; resource.prlimit({pid}, resource.RLIMIT_NOFILE, (3, 3))",
    "setpriority": "os.setpriority(os.PRIO_PROCESS, {pid}, 19)",
    "setpriority of a user": "os.setpriority(os.PRIO_USER, os.getuid(), 19)",
    "sched_setaffinity": "os.sched_setaffinity({pid}, {{0}})",
    "sched_setscheduler": "os.sched_setscheduler({pid}, os.SCHED_IDLE, os.sched_param(0))",
    "ptrace": "import ctypes; assert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0",
    "/proc/PID/mem": "open('/proc/{pid}/mem', 'rb')",
    "/proc/PID/environ": "open('/proc/{pid}/environ', 'rb').read()",
    "process_vm_readv": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nparts = (ctypes.c_void_p * 2)(0, 8)\n"
    "libc.process_vm_readv({pid}, parts, 1, parts, 1, 0)\nassert ctypes.get_errno() == 14  # reached, at a bad address",
    "a process that outlives it": "import subprocess; subprocess.Popen(['sleep', '61.{pid}'], start_new_session=True)",
}
SETS = [LAYERS, ("landlock", "seccomp"), ("namespaces", "landlock")]
for _layers in SETS:
    for _name, _call in CALLS.items():

        @case(
            f"vlm A11: {_name} reaches no foreign process under {', '.join(_layers)}",
            kind="sandbox",
            modality="vlm",
            entry="program",
            required=Gives([True, False]),
            by="policy",
        )
        def a_foreign_process(folder: Path, call: str = _call, layers: tuple[str, ...] = _layers) -> object:
            if sys.platform != "linux":
                raise Skipped("Linux alone")
            with sleeper() as other, only(*layers):

                def state() -> object:
                    import resource

                    pid = other.pid
                    return (
                        other.poll(),
                        resource.prlimit(pid, resource.RLIMIT_NOFILE),
                        os.getpriority(os.PRIO_PROCESS, pid),
                        os.sched_getaffinity(pid),
                        os.sched_getscheduler(pid),
                    )

                before = state()
                result = run_code(f"import os\n{call.format(pid=other.pid)}")
                time.sleep(0.05)
                left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
                allowed = result.ok and "outlives" not in call and "sleep" not in call
                return [state() == before and f"sleep 61.{other.pid}" not in left, allowed]


NETWORK = {
    "a connection": "socket.create_connection(('127.0.0.1', {port}), 1).send(b'out')",
    "a datagram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'out', ('127.0.0.1', {port}))",
    "a child with a socket": "import _posixsubprocess, sys, os\n"
    "code = \"import socket; socket.create_connection(('127.0.0.1', {port}), 1).send(b'out')\"\n"
    "r, w = os.pipe()\n"
    "_posixsubprocess.fork_exec([sys.executable, '-c', code], [os.fsencode(sys.executable)], True, (), None, None,"
    " -1, -1, -1, -1, -1, -1, r, w, False, False, -1, None, None, None, -1, None, False)\n"
    "import time; time.sleep(1)",
}
for _layers in SETS:
    for _name, _call in NETWORK.items():

        @case(
            f"vlm A11: {_name} does not leave the sandbox under {', '.join(_layers)}",
            kind="sandbox",
            modality="vlm",
            entry="program",
            required=Gives("nothing came"),
            by="policy",
        )
        def the_network(folder: Path, call: str = _call, layers: tuple[str, ...] = _layers) -> object:
            with socket.create_server(("127.0.0.1", 0)) as server, only(*layers):
                server.settimeout(0.1)
                run_code(f"import socket\n{call.format(port=server.getsockname()[1])}", limits=Limits(seconds=3))
                try:
                    return server.accept()[0].recv(10)
                except TimeoutError:
                    return "nothing came"


FILES = {
    "chmod": "os.chmod(path, 0o777)",
    "fchmod": "os.fchmod(os.open(path, os.O_RDONLY), 0o777)",
    "chown": "os.chown(path, 1, 1)",
    "utime": "os.utime(path, (0, 0))",
    "setxattr": "os.setxattr(path, 'user.a', b'b')",
    "writing": "open(path, 'w').write('x')",
    "truncating": "os.truncate(path, 0)",
    "removing": "os.remove(path)",
    "renaming": "os.rename(path, path + '2')",
    "linking": "os.link(path, 'mine'); open('mine', 'w').write('x')",
    "reading": "assert open(path).read() != 'secret'",
    "listing": "assert not os.listdir(os.path.dirname(path))",
    "a mount": "import ctypes\nplace = os.path.dirname(path).encode()\n"
    "assert ctypes.CDLL(None).mount(b'tmpfs', place, b'tmpfs', 0, 0) == 0",
}
for _layers in SETS:
    for _name, _call in FILES.items():

        @case(
            f"vlm A23: {_name} does not reach our files under {', '.join(_layers)}",
            kind="sandbox",
            modality="vlm",
            entry="program",
            required=Gives([True, False]),
            by="policy",
        )
        def our_files(folder: Path, call: str = _call, layers: tuple[str, ...] = _layers) -> object:
            (ours := folder / "ours").write_text("secret")

            def state() -> object:
                seen = ours.stat()
                extra = os.listxattr(ours) if sys.platform == "linux" else []
                return seen.st_mode, seen.st_uid, seen.st_mtime, extra, ours.read_text(), sorted(os.listdir(folder))

            before = state()
            with only(*layers):
                result = run_code(f"import os\npath = {str(ours)!r}\n{call}")
            return [state() == before, result.ok]


@case(
    "vlm A23: of /etc a program reads what the C library wants and nothing more",
    kind="sandbox",
    modality="vlm",
    entry="program",
    required=Gives([]),
    by="policy",
)
def secrets_of_the_system(folder: Path) -> object:
    places = [
        "/etc/shadow",
        "/etc/gshadow",
        "/etc/sudoers",
        "/etc/hostname",
        "/root",
        "/home",
        "/var/log",
        "/proc/1/environ",
    ]
    tried = "".join(
        f"try:\n    (os.listdir if os.path.isdir({place!r}) else open)({place!r})\n    print({place!r})\n"
        "except OSError: pass\n"
        for place in places
        if os.path.exists(place)
    )
    return run_code(f"import os\n{tried}").stdout.splitlines()


@case(
    "vlm A8: 1,200 nested folders do not end the caller, and nothing of them is left",
    kind="sandbox",
    modality="vlm",
    entry="program",
    required=Gives([True, []]),
    by="policy",
    slow=True,
)
def nested_folders(folder: Path) -> object:
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        code = "import os\nfor _ in range(1200):\n    os.mkdir('nested')\n    os.chdir('nested')\n"
        ok = run_code(f"{code}open('a', 'w').write('b')").ok
    finally:
        tempfile.tempdir = before
    return [ok, os.listdir(folder)]


@case(
    "vlm A8: folders that may not be entered are deleted, and links out of the folder are not followed",
    kind="sandbox",
    modality="vlm",
    entry="program",
    required=Gives([True, ["ours"]]),
    by="policy",
)
def closed_folders(folder: Path) -> object:
    (folder / "ours").mkdir()
    (folder / "ours" / "kept").write_text("kept")
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        code = f"import os\nos.makedirs('a/b')\nos.symlink({str(folder / 'ours')!r}, 'a/link')\nos.chmod('a/b', 0)"
        run_code(f"{code}\nos.chmod('a', 0)\nos.chmod('.', 0)")
    finally:
        tempfile.tempdir = before
    return [(folder / "ours" / "kept").exists(), os.listdir(folder)]


for _layers in ((), ("landlock",), ("seccomp",)):

    @case(
        f"vlm A11: with {', '.join(_layers) or 'nothing'} alone no program of others is run",
        kind="sandbox",
        modality="vlm",
        entry="program",
        required=Refuses("sandbox.*AUTOTELIC_UNSAFE_SANDBOX"),
        by="machine",
    )
    def without_isolation(folder: Path, layers: tuple[str, ...] = _layers) -> object:
        before = os.environ.get("PATH", "")
        os.environ["PATH"] = str(folder)  # no bubblewrap either
        try:
            with only(*layers):
                return run_code("print(1)").stdout
        finally:
            os.environ["PATH"] = before

    @case(
        f"vlm A11: with {', '.join(_layers) or 'nothing'} alone a program runs when that is asked for",
        kind="sandbox",
        modality="vlm",
        entry="program",
        required=Gives("1\n"),
        by="machine",
    )
    def asked_for(folder: Path, layers: tuple[str, ...] = _layers) -> object:
        before = os.environ.get("PATH", "")
        os.environ |= {"PATH": str(folder), "AUTOTELIC_UNSAFE_SANDBOX": "1"}
        try:
            with only(*layers):
                return run_code("print(1)").stdout
        finally:
            os.environ["PATH"] = before
            del os.environ["AUTOTELIC_UNSAFE_SANDBOX"]


for _layers in SETS[1:]:

    @case(
        f"vlm A11: asyncio, threads and its own files work under {', '.join(_layers)}",
        kind="sandbox",
        modality="vlm",
        entry="program",
        required=Gives("1 2 b\n"),
        by="policy",
    )
    def honest_work(folder: Path, layers: tuple[str, ...] = _layers) -> object:
        code = (
            "import asyncio, threading, os\nasync def one():\n    await asyncio.sleep(0)\n    return 1\n"
            "box = []\nthread = threading.Thread(target=box.append, args=[2])\nthread.start()\nthread.join()\n"
            "os.mkdir('d')\nopen('d/a', 'w').write('b')\nos.rename('d/a', 'd/c')\n"
            "print(asyncio.run(one()), *box, open('d/c').read())"
        )
        with only(*layers):
            result = run_code(code)
        return result.stdout or result.error


@case(
    "vlm A8: a program that fills its report, its output and its memory is scored",
    kind="sandbox",
    modality="vlm",
    entry="program",
    required=GoesOn(),
    by="policy",
    slow=True,
)
def everything_full(folder: Path) -> object:
    code = "import os\nfor fd in range(1, 64):\n    try:\n        for _ in range(80): os.write(fd, b'[' * 65536)\n"
    return passes(f"{code}    except OSError: pass\ndef f(x): return '[' * 10**8", "assert f(2) == 4")
