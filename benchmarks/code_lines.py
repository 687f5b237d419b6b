"""How much code there is: lines without docstrings, comments and blank lines; and where objects are felt for names.

    python benchmarks/code_lines.py [--quick] [--json FILE] [--at REV] [--since REV]

Counted are the package (the core, its rooms and ``autotelic.testing``) and the scripts in benchmarks/; a line counts if
a token of code lies on it, and strings that stand alone are docstrings. --at counts a revision without checking it out.
--since lists the files that a revision did not have, and says what there is for what existed then: everything but what
``FEATURES`` tells to be new since b19163d. Of a file that existed then, what it grew by is new.

Seams are the places where code asks an object what it is instead of relying on what it promises: getattr, hasattr,
vars, __dict__, except AttributeError, and isinstance of a class of this package. The loop, the learner, the gates and
every evaluation are to have none.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Callable, Container, Iterable
from fnmatch import fnmatch
from typing import Any

from common import ROOT, git, parser_of, save

ROOMS = ("envs", "rewards", "trainers", "vlm", "vla", "diffusion")
NO_SEAMS = ("trainers/loop.py", "trainers/learner.py", "trainers/gates.py")
NO_SEAMS += ("vlm/evaluation.py", "vla/evaluation.py", "diffusion/evaluation.py")
FEATURES: dict[str, tuple[str, ...]] = {
    "plugins, and what is said of them": (
        *("src/autotelic/plugins.py", "src/autotelic/plugin_files.py", "src/autotelic/builtin.py"),
        *("src/autotelic/listing.py", "benchmarks/extension_cost.py"),
    ),
    "comparisons as a command": ("src/autotelic/sweep.py", "src/autotelic/comparing/*"),
    "checks before training": ("src/autotelic/check.py", "src/autotelic/doctor.py"),
    "the front door of Python": ("src/autotelic/__init__.py", "src/autotelic/trainer.py"),
    "options in groups, from files too": ("src/autotelic/config_files.py", "src/autotelic/options.py"),
    "callbacks and trackers": ("trainers/runs/callbacks.py", "trainers/runs/trackers.py"),
    "contracts that are checked, players, rounds in which nobody learns": (
        *("trainers/contracts.py", "trainers/shaping.py", "trainers/loop.py", "src/autotelic/types.py"),
        "src/autotelic/families.py",
    ),
    "environments as data, several cameras": ("envs/gym_simulator.py", "envs/simulator.py"),
    "models for tests, for everybody": ("src/autotelic/testing/*",),
    "process rewards by continuation": ("vlm/continuation.py",),
    "CoMAS": ("vlm/discussion.py", "vlm/recipes/comas.py", "benchmarks/comas.py"),
    "TT-SI": ("vlm/adaptation.py", "vlm/recipes/tt_si.py", "benchmarks/tt_si.py"),
    "this script": ("benchmarks/code_lines.py",),
}
"""What came since b19163d: feature -> files that are new by it, or grew by it."""
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
SILENT |= {tokenize.ENCODING, tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Lines of a module that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def classes_in(texts: Iterable[str]) -> set[str]:
    """Names of the classes that modules define."""
    return {node.name for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)}


def seams(text: str, own: Container[str]) -> list[str]:
    """Every seam of a module as LINE: CODE; ``own`` are the package's classes."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            named = {n.id for each in node.args[1:] for n in ast.walk(each) if isinstance(n, ast.Name)}
            asks = node.func.id == "isinstance" and any(name in own for name in named)
            asks |= node.func.id in ("getattr", "hasattr", "vars")
        elif isinstance(node, ast.ExceptHandler):
            asks = node.type is not None and "AttributeError" in ast.unparse(node.type)
        else:
            asks = isinstance(node, ast.Attribute) and node.attr == "__dict__"
        if asks:
            found.append(f"{node.lineno}: {ast.unparse(node).splitlines()[0]}")
    return found


def room_of(path: str) -> str | None:
    """The part of the project that a file is counted in; None for what is not counted."""
    if not path.endswith(".py"):
        return None
    room = path.removeprefix("src/autotelic/").split("/")[0].removesuffix(".py")
    if room in (*ROOMS, "testing", "benchmarks"):
        return room
    return "core" if path.startswith("src/autotelic/") else None


def files_at(revision: str) -> dict[str, str]:
    """Path -> text of every file that is counted, at a revision or, if it is empty, in the working tree."""
    if revision:
        listed, read = git("ls-tree", "-r", "--name-only", revision), _reader(revision)
    else:
        listed = git("ls-files", "--cached", "--others", "--exclude-standard")
        read = lambda path: (ROOT / path).read_text()  # noqa: E731
    paths = [path for path in sorted(listed.splitlines()) if room_of(path)]
    return {path: read(path) for path in paths if revision or (ROOT / path).is_file()}


def _reader(revision: str) -> Callable[[str], str]:
    return lambda path: git("show", f"{revision}:{path}")


def moved(since: str, at: str) -> dict[str, str]:
    """New path -> old path of files that git takes for renamed."""
    rows = [row.split("\t") for row in git("diff", "-M", "--name-status", since, *([at] if at else [])).splitlines()]
    return {row[2]: row[1] for row in rows if row[0].startswith("R")}


def main() -> None:
    parser = parser_of(__doc__, "the same, as it takes seconds")
    parser.add_argument("--at", default="", metavar="REV", help="count this revision; the working tree if not given")
    parser.add_argument("--since", metavar="REV", help="list what is new since this revision")
    options = parser.parse_args()
    texts = files_at(options.at)
    files = {path: code_lines(text) for path, text in texts.items()}
    rooms: Counter[str] = Counter()
    for path, count in files.items():
        rooms[str(room_of(path))] += count
    figures: dict[str, Any] = {"total": sum(files.values()), "rooms": dict(sorted(rooms.items()))}
    figures["counted"] = git("rev-parse", "--short", options.at or "HEAD").strip() + ("" if options.at else "+")
    if options.since:
        before = {path: code_lines(text) for path, text in files_at(options.since).items()}
        renamed = moved(options.since, options.at)
        new = {path: n for path, n in files.items() if path not in before and renamed.get(path) not in before}
        grown = {path: n - before.get(path, before.get(renamed.get(path, ""), 0)) for path, n in files.items()}
        features = {
            what: {path: n for path, n in grown.items() if any(fnmatch(path, glob) for glob in globs)}
            for what, globs in FEATURES.items()
        }
        more = sum(sum(each.values()) for each in features.values())
        figures["since"] = {
            "revision": options.since,
            "total_then": sum(before.values()),
            "total_for_what_existed": figures["total"] - more,
            "new_features": features,
            "other_new_files": {p: n for p, n in new.items() if not any(p in each for each in features.values())},
            "moved": {path: renamed[path] for path in files if path in renamed},
            "gone": sorted(set(before) - set(files) - set(renamed.values())),
        }
    package = {path: text for path, text in texts.items() if room_of(path) != "benchmarks"}
    own = classes_in(package.values())
    found = {path: len(seams(text, own)) for path, text in package.items()}
    figures["seams"] = {path: count for path, count in found.items() if count or path in NO_SEAMS}
    for name, value in figures.items():
        print(f"{name}: {value}")
    save(options, figures | {"files": files})


if __name__ == "__main__":
    main()
