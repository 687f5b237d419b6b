"""Rows of people's files: what comes back as it was written, whatever it is, and what is refused by its row."""

from __future__ import annotations

import csv
import json
import os
import random
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotelic.errors import UsageError
from autotelic.tables import READERS, lines_of, parse_object, read_table

SIGNS = [*string.printable, *"\u0085\u2028\u2029\u00e9\u6f22\U0001f600\u200b\u0000\ufeff"]


def drawn(random: random.Random, depth: int = 0) -> Any:
    """A value that JSON can hold."""
    kind = random.randrange(8 if depth < 3 else 6)
    if kind == 0:
        return random.choice([None, True, False])
    if kind == 1:
        return random.randrange(-(10**20), 10**20)
    if kind == 2:
        return random.choice([0.1, -2.5e-9, 1e300, 72.0])
    if kind < 6:
        return "".join(random.choice(SIGNS) for _ in range(random.randrange(12)))
    if kind == 6:
        return [drawn(random, depth + 1) for _ in range(random.randrange(4))]
    return {f"k{i}": drawn(random, depth + 1) for i in range(random.randrange(4))}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ascii", [True, False])
def test_lines_of_json_come_back_with_their_types(seed: int, ascii: bool, tmp_path: Path) -> None:
    draw = random.Random(seed)
    rows = [{name: drawn(draw) for name in "abc"} for _ in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=ascii) for row in rows), newline="")
    found = [dict(row.values) for row in read_table(path).rows]
    assert found == rows
    assert [[type(v) for v in row.values()] for row in found] == [[type(v) for v in row.values()] for row in rows]
    whole = tmp_path / "rows.json"
    whole.write_text(json.dumps(rows, ensure_ascii=ascii, indent=1), newline="")
    assert [dict(row.values) for row in read_table(whole).rows] == rows
    assert read_table(whole).digest == read_table(path).digest, "the same rows, whatever stands between them"


@pytest.mark.parametrize("seed", range(10))
def test_texts_of_csv_come_back(seed: int, tmp_path: Path) -> None:
    """Cells of any sign but the carriage return, which CSV writers and readers treat in their own ways."""
    draw = random.Random(seed)
    signs = [sign for sign in SIGNS if sign not in "\r\ufeff"]
    rows = [["".join(draw.choice(signs) for _ in range(draw.randrange(9))) for _ in "abc"] for _ in range(20)]
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    for suffix, delimiter in ((".csv", ","), (".csv", ";"), (".tsv", "\t")):
        path = tmp_path / f"rows{suffix}"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerows([["a", "b", "c"], *rows])
        assert [[value or "" for value in row.values.values()] for row in read_table(path).rows] == rows


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("suffix", sorted(READERS))
def test_a_damaged_file_is_read_or_refused_in_a_line(seed: int, suffix: str, tmp_path: Path) -> None:
    """Bytes changed, cut and put in at random: rows or one line, never another error."""
    draw = random.Random(f"{seed}{suffix}")
    path = tmp_path / f"rows{suffix}"
    rows = [{"prompt": f"q {i}", "answer": "é" * i} for i in range(5)]
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        content = path.read_bytes()
    elif suffix in (".csv", ".tsv"):
        mark = "," if suffix == ".csv" else "\t"
        content = "\n".join(mark.join(row) for row in [["prompt", "answer"], *map(dict.values, rows)]).encode()
    else:
        content = ("\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(rows)).encode()
    for _ in range(draw.randrange(1, 4)):
        place = draw.randrange(len(content) + 1)
        junk = bytes(draw.randrange(256) for _ in range(draw.randrange(6)))
        content = content[:place] + junk + content[place + draw.randrange(20) :]
    path.write_bytes(content)
    try:
        assert read_table(path).rows
    except UsageError as error:
        assert "rows" in str(error) and "\n" not in str(error)


def test_only_line_feeds_end_lines() -> None:
    assert list(lines_of("a\u2028b\u0085c\x0bd\r\n \n\x1ce\rf")) == [(1, "a\u2028b\u0085c\x0bd"), (3, "\x1ce\rf")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1, "a": 2}', 'x is no JSON object: it says "a" twice'),
        ('{"a": {"b": 1, "b": 1}}', 'x is no JSON object: it says "b" twice'),
        ('{"a": -Infinity}', "x is no JSON object: -Infinity is no number of JSON"),
        ('{"a": 1e400}', "x is no JSON object: the number 1e400 is too large"),
        ('{"a": ' + "7" * 4301 + "}", "x is no JSON object: Exceeds the limit"),
        ('{"a": "\\udfff"}', r"x holds half of a character \(U\+DFFF\)"),
        ('{"\\ud800": 1}', r"x holds half of a character \(U\+D800\)"),
        ("[1]", "x is no JSON object but an array"),
        ("null", "x is no JSON object but null"),
        ("true", "x is no JSON object but true or false"),
        ('{"a": 1} {', r"x is no JSON object: Extra data \(character 10\)"),
    ],
)
def test_what_is_no_object_is_told_where_it_stands(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_object(text, "x")


def test_a_pair_of_halves_is_a_character() -> None:
    assert parse_object('{"a": "\\ud83d\\ude00"}', "x") == {"a": "\U0001f600"}


def test_the_digest_is_of_rows_their_order_and_their_pictures(tmp_path: Path) -> None:
    path, picture = tmp_path / "q.jsonl", tmp_path / "a.png"
    picture.write_bytes(b"one")

    def digest(*rows: Any) -> str:
        path.write_text("\n".join(map(json.dumps, rows)))
        return read_table(path).digest

    first, second = {"prompt": "a", "image": "a.png"}, {"prompt": "b", "images": ["a.png", "none.png"], "n": 1}
    once = digest(first, second)
    assert once == digest(dict(reversed(first.items())), second)
    others = [digest(second, first), digest(first), digest(first, {**second, "n": 1.0}), digest(first, second, first)]
    picture.write_bytes(b"two")
    others.append(digest(first, second))
    assert len({once, *others}) == 6


def test_parquet_is_read_without_a_word_and_nothing_is_left(tmp_path: Path) -> None:
    """Features of ``datasets`` and plain columns alike; the home stays empty, pictures go with the process."""
    pytest.importorskip("datasets")
    script = """
import io, sys
from pathlib import Path
import datasets
from PIL import Image
from autotelic.tables import read_table

content = io.BytesIO()
Image.new("RGB", (4, 4), (1, 2, 3)).save(content, "PNG")
picture = Image.open(io.BytesIO(content.getvalue()))
rows = {"prompt": ["a", "b"], "images": [[picture, picture], []], "score": [float("nan"), 1.5]}
rows["meta"] = [{"x": 1}, {"x": None}]
features = datasets.Features(
    prompt=datasets.Value("string"), images=datasets.List(datasets.Image()), score=datasets.Value("float64"),
    meta={"x": datasets.Value("int64")},
)
datasets.Dataset.from_dict(rows, features=features).to_parquet("rows.parquet")
first, second = (row.values for row in read_table("rows.parquet").rows)
assert list(first) == ["prompt", "images", "score", "meta"], first
one, other = first["images"]
assert one == other and Image.open(one).getpixel((0, 0)) == (1, 2, 3)
assert (first["score"], second["score"], second["images"]) == (None, 1.5, [])
assert (first["meta"], second["meta"]) == ({"x": 1}, {"x": None})
print(one)
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONWARNINGS": "error::ResourceWarning"}
    for name in ("HF_HOME", "XDG_CACHE_HOME", "AUTOTELIC_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written = done.stdout.strip().splitlines()[-1]
    assert not Path(written).exists(), "a picture outlived the process"
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    assert [str(path) for path in home.rglob("*")] == []


def test_importing_tables_imports_nothing_heavy() -> None:
    heavy = ("datasets", "pandas", "pyarrow", "torch")
    code = f"import sys, autotelic.tables; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
