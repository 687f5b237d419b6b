"""Rows of people's files: JSON lines, JSON, CSV, Parquet and datasets of the hub, each row with where it stands.

    read_table("questions.jsonl")          one JSON object a line; .json may also be one array of objects
    read_table("questions.csv")            a header and rows; .tsv too. Cells are texts, empty ones are missing
    read_table("questions.parquet")        by ``datasets``; pictures inside become files while the process lasts
    read_table("owner/name@config:split")  of the hub, by ``datasets``; @config and :split where it has several

JSON and CSV are read by Python's own readers, since those of ``datasets`` guess one type per column: an answer "72"
among numbers becomes 72, 72 beside 72.5 becomes 72.0, "2020-01-01" a time, and in a CSV 007 becomes 7 and NA nothing.
"""

from __future__ import annotations

import atexit
import csv
import hashlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from io import StringIO
from pathlib import Path
from typing import Any

from .cache import cache_folder
from .errors import UsageError
from .json_files import DEEPEST, is_deep

PICTURES = ("image", "images", "chosen", "rejected")
"""Columns that name pictures, relative to the file."""
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^:@]+))?(?::(.+))?")
_LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        where: file and line, or file and number, for messages.
        number: its place among the rows, from 1.
        values: by column.
    """

    where: str
    number: int
    values: Mapping[str, Any]


class Contents(dict[str, str]):
    """Path of a file -> SHA-256 of its bytes, read when it is first asked for."""

    def __missing__(self, path: str) -> str:
        with open(path, "rb") as file:
            self[path] = digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest


@dataclass(frozen=True)
class Table:
    """What was read.

    Attributes:
        source: as it was named.
        name: the file's or dataset's name without folders, for messages.
        folder: what paths of pictures are relative to.
        rows: one or more.
    """

    source: str
    name: str
    folder: Path
    rows: Sequence[Row]
    contents: Contents = field(default_factory=lambda: Contents(), compare=False, repr=False)
    """Of pictures that were looked at."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the rows in their order and of the pictures that they name; space between them does not count."""
        whole = hashlib.sha256()
        for row in self.rows:
            whole.update(canonical(row.values).encode())
            named = (row.values.get(name) for name in PICTURES)
            for path in (each for value in named for each in (value if isinstance(value, list) else [value])):
                if isinstance(path, str) and is_file(self.folder / path):
                    whole.update(self.contents[str(self.folder / path)].encode())
        return whole.hexdigest()

    @property
    def repeats(self) -> list[tuple[Row, Row]]:
        """Rows that say what a row before them says, each after that one."""
        first: dict[str, Row] = {}
        seen = [(first.setdefault(canonical(row.values), row), row) for row in self.rows]
        return [(earlier, row) for earlier, row in seen if earlier is not row]


def read_table(source: str | Path) -> Table:
    """The rows of a file or of a dataset of the hub.

    Raises:
        UsageError: naming file and row of what cannot be read; or there are none.
    """
    path = Path(source).expanduser()
    kind = path.suffix.lower()
    hub = None if path.exists() or kind in READERS else _HUB.fullmatch(str(source))
    if hub is not None and not str(source).startswith((".", "/", "~")):
        repository, config, split = hub.groups()
        table = Table(str(source), repository, Path(), list(_hub_rows(repository, config, split)))
    else:
        if path.is_dir():
            raise UsageError(f"{source} is a folder: name a file in it ({_kinds()}), or a dataset of the hub")
        if not is_file(path):
            raise UsageError(f"there is no file {source}")
        if kind not in READERS:
            raise UsageError(f"{path.name} is none of {_kinds()}: save it as one of these")
        table = Table(str(source), path.name, path.parent, list(READERS[kind](path)))
    if not table.rows:
        raise UsageError(f"{table.name} holds no row")
    return table


def is_file(path: str | Path) -> bool:
    """Whether there is a file; a text that can be no path names none."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def _kinds() -> str:
    return ", ".join(READERS)


# --- text -----------------------------------------------------------------------------------------


def text_of_file(path: Path) -> str:
    """A text file in UTF-8, without its byte order mark.

    Raises:
        UsageError: it cannot be read, or has another encoding.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path.name} is no text in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of every line that is not blank. Only line feeds end lines, alone or after a return."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


# --- JSON -----------------------------------------------------------------------------------------


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UsageError: naming where it stands: no JSON, no object, a name twice, a number that is none or cannot be kept,
            half of a character.
    """
    value = _parse(text, where)
    if not isinstance(value, dict):
        raise UsageError(f"{where} is no JSON object but {_told(value)}")
    return value


def _parse(text: str, where: str) -> Any:
    try:
        value = json.loads(text, strict=False, object_pairs_hook=_object, parse_float=_float, parse_constant=_no_number)
        if text.count("[") + text.count("{") > DEEPEST and is_deep(value):
            raise RecursionError
        if "\\u" in text:  # an escape may stand for half of a character
            canonical(value).encode()
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is no JSON object: {error.msg} (character {error.pos + 1})") from error
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise UsageError(f"{where} holds half of a character ({half}): write the whole one, or leave it out") from error
    except RecursionError as error:
        raise UsageError(f"{where} is no JSON object: too many brackets inside each other") from error
    except ValueError as error:  # integers of more digits than Python reads, and what the hooks refuse
        raise UsageError(f"{where} is no JSON object: {str(error).partition(':')[0]}") from error
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f'it says "{name}" twice')
        made[name] = value
    return made


def _float(written: str) -> float:
    value = float(written)
    if math.isinf(value):
        raise ValueError(f"the number {written[:20]} is too large")
    return value


def _no_number(written: str) -> float:
    raise ValueError(f"{written} is no number of JSON, where null is what is missing")


def _told(value: Any) -> str:
    kinds = {list: "an array", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def canonical(value: Any) -> str:
    """A value as JSON, the same for equal values of equal types."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=repr)


def _json_rows(path: Path) -> Iterator[Row]:
    """Objects in lines, or (.json) one array of objects."""
    text = text_of_file(path)
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        for number, value in enumerate(_parse(text, path.name), 1):
            where = f"{path.name} row {number}"
            if not isinstance(value, dict):
                raise UsageError(f"{where} is no JSON object but {_told(value)}")
            yield Row(where, number, value)
        return
    for count, (number, line) in enumerate(lines_of(text), 1):
        where = f"{path.name} line {number}"
        yield Row(where, count, parse_object(line, where))


# --- CSV ------------------------------------------------------------------------------------------


def _csv_rows(path: Path) -> Iterator[Row]:
    """A header and rows; columns are separated by what its first line has most of: comma, semicolon or tab."""
    text = text_of_file(path)
    head = next((line for _, line in lines_of(text)), "")
    reader = csv.reader(
        StringIO(text, newline=""), delimiter=max("\t;," if "," not in head else ",;\t", key=head.count), strict=True
    )
    before = csv.field_size_limit(_LONGEST_CELL)
    names: list[str] = []
    count = 0
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                if twice := next((name for name in names if names.count(name) > 1), None):
                    raise UsageError(f'{path.name} names the column "{twice}" twice')
                continue
            where = f"{path.name} line {reader.line_num}"
            if len(cells) != len(names):
                raise UsageError(f"{where} has {len(cells)} cells, and the header {len(names)}")
            count += 1
            yield Row(where, count, {name: cell if cell else None for name, cell in zip(names, cells, strict=True)})
    except csv.Error as error:
        raise UsageError(f"{path.name} line {reader.line_num} is no CSV: {error}") from error
    finally:
        csv.field_size_limit(before)
    if names and not count:
        raise UsageError(f"{path.name} holds no row below its header")


# --- Parquet and the hub --------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[Row]:
    import datasets
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        dataset = datasets.Dataset(table)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path.name} is no Parquet file that can be read: {_first_line(error)}") from error
    yield from _dataset_rows(dataset, path.name)


def _hub_rows(repository: str, config: str | None, split: str | None) -> Iterator[Row]:
    import datasets

    name = f"{repository}@{config}" if config else repository
    try:
        found = datasets.load_dataset(repository, config, split=split, cache_dir=str(cache_folder() / "datasets"))
    except Exception as error:  # of the hub, the network, its files and their builder
        raise UsageError(
            f"cannot read {name}, which is no file here, as a dataset of the hub: {_first_line(error)}"
        ) from error
    if isinstance(found, Mapping):
        if len(found) > 1:
            splits = ", ".join(f"{name}:{each}" for each in found)
            raise UsageError(f"{name} has several splits: name one of {splits}")
        (found,) = found.values()
    yield from _dataset_rows(found, name)


def _dataset_rows(dataset: Any, name: str) -> Iterator[Row]:
    """Rows of a ``datasets.Dataset``; pictures are taken as they are stored, not decoded and encoded anew."""
    stored = [column for column, feature in dataset.features.items() if _decodes(feature)]
    plain = dataset.remove_columns(stored) if stored else dataset
    raw = dataset.select_columns(stored).with_format("arrow") if stored else None
    size, number = 256, 0
    for first in range(0, len(dataset), size):
        last = min(first + size, len(dataset))
        columns = {column: list(values) for column, values in plain[first:last].items()}
        if raw is not None:
            columns |= raw[first:last].to_pydict()
        for place in range(last - first):
            number += 1
            where = f"{name} row {number}"
            values = {column: _kept(several[place], where) for column, several in columns.items()}
            yield Row(where, number, {column: values[column] for column in dataset.column_names})


def _decodes(feature: Any) -> bool:
    """Whether a feature of ``datasets`` holds what is decoded when it is looked at: pictures, sound, video."""
    if isinstance(feature, Mapping):
        return any(map(_decodes, feature.values()))
    if (inner := getattr(feature, "feature", None)) is not None:
        return _decodes(inner)
    if isinstance(feature, list):
        return _decodes(feature[0])
    return type(feature).__name__ in ("Image", "Audio", "Video", "Pdf")


def _kept(value: Any, where: str) -> Any:
    """A cell: NaN is what is missing, a stored picture is the path of its file, arrays are lists."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        if set(value) == {"bytes", "path"}:
            return value["path"] if value["bytes"] is None else stored(value["bytes"])
        return {key: _kept(each, where) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_kept(each, where) for each in value]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{where} holds half of a character: write the whole one, or leave it out") from error
    return _kept(value.tolist(), where) if hasattr(value, "tolist") else value


@cache
def _pictures() -> Path:
    folder = tempfile.mkdtemp(prefix="autotelic-pictures-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def stored(content: bytes, folder: Path | None = None) -> str:
    """A file with this content: its name in a folder; or its path, in one that lasts as long as the process."""
    name = hashlib.sha256(content).hexdigest()
    path = (_pictures() if folder is None else folder) / name
    if not path.exists():
        path.write_bytes(content)
    return str(path) if folder is None else name


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
