"""Samples of a run as elements of its report: videos with captions, pictures, sheets, answers."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from ...json_files import read_object, value_of
from .run_folder import RunFolder

MEDIA = {".mp4": "video/mp4", ".webm": "video/webm", ".webp": "image/webp", ".gif": "image/gif", ".png": "image/png"}
MAX_EMBEDDED = 64 * 2**20
"""Bytes of videos and images that go into the page; the rest is named by path."""
SMALL = 128
"""Pixels: pictures less high than this are enlarged without smoothing."""
WIDEST = 1040
"""Pixels: twice the widest place for a picture on the page; larger ones are scaled down for it."""
HEAVY = 200_000
"""Bytes from which on a picture goes into the page compressed with losses; the run keeps it as it is."""
_SEED = re.compile(r"-\d{6,}$")
"""At the end of a film's name: the number of its initial state, which tells a reader nothing."""
CAPTIONS = "captions.json"
"""In a folder of samples: name of a sample -> its caption."""


@dataclass
class Samples:
    """What samples/KIND holds.

    Attributes:
        sheets: (name, [(side, element)], prompts), a prompt per row of the picture.
        pairs: (caption, [(side, element)]).
        skipped: paths of what is too large for the page.
        missing: why there are none.
    """

    sheets: list[tuple[str, list[tuple[str, Markup]], list[str]]] = field(default_factory=list)
    pairs: list[tuple[str, list[tuple[str, Markup]]]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: str = ""

    @property
    def empty(self) -> bool:
        return not (self.sheets or self.pairs or self.skipped or self.missing)


def samples_of(folder: RunFolder, kind: str) -> Samples:
    """The media of samples/KIND, before and after side by side, or why there are none, as missing.txt says.

    Where NAME.txt stands beside NAME-before and NAME-after they are sheets, with a prompt per line of the text and
    per row of the picture. captions.json has captions of samples by name.
    """
    place = folder.path / "samples" / kind
    paths = sorted(place.glob("*")) if place.is_dir() else []
    prompts = {_name_and_side(path)[0]: _lines(path) for path in paths if path.suffix == ".txt"}
    missing = prompts.pop("missing", [])
    told = read_object(place / CAPTIONS) if (place / CAPTIONS).is_file() else {}
    captions = {name.replace("_", "-"): str(text) for name, text in told.items()}
    sides: dict[str, dict[str, Markup]] = {}
    left, found = MAX_EMBEDDED, Samples()
    for path in (path for path in paths if path.suffix in MEDIA):
        name, side = _name_and_side(path)
        content, suffix = _for_page(path)
        left -= len(content)
        if left < 0:
            found.skipped.append(str(path.relative_to(folder.path)))
            continue
        sides.setdefault(name, {})[side] = _element(path, content, suffix, max(1, len(prompts.get(name, ()))))
    for name, elements in sides.items():
        ordered = sorted(elements.items(), key=lambda side: side[0] != "before")
        if name in prompts:
            found.sheets.append((name, ordered, prompts[name]))
        else:
            found.pairs.append((captions.get(name, _SEED.sub("", name)), ordered))
    if not (sides or found.skipped):  # what was missing once may have been made since
        found.missing = " ".join(missing)
    return found


def answers_of(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows of samples/answers/answers.json, pictures embedded."""
    place = folder.path / "samples" / "answers"
    file = place / "answers.json"
    rows: list[dict[str, Any]] = value_of(file.read_bytes(), str(file)) if file.is_file() else []
    for row in rows:
        picture = place / str(row.get("picture", ""))
        row["media"] = _element(picture, *_for_page(picture), 1) if picture.is_file() else None
    return rows


def _name_and_side(path: Path) -> tuple[str, str]:
    """("cup", "before") of cup-before.png or cup_before.png; a file without a side keeps its whole name."""
    stem, _, side = path.stem.replace("_", "-").rpartition("-")
    return (stem, side) if stem and side in ("before", "after") else (path.stem.replace("_", "-"), "")


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").strip().splitlines()


def _for_page(path: Path) -> tuple[bytes, str]:
    """A sample's bytes as they go into the page, and their kind: large pictures that stand still are made smaller."""
    content = path.read_bytes()
    if MEDIA[path.suffix].startswith("video") or len(content) < HEAVY:
        return content, path.suffix
    try:
        with Image.open(path) as picture:
            if _moves(picture):
                return content, path.suffix
            picture.thumbnail((WIDEST, 16 * WIDEST))
            smaller = io.BytesIO()
            picture.convert("RGB").save(smaller, "WEBP", quality=75)
    except (UnidentifiedImageError, OSError):
        return content, path.suffix
    return min((content, path.suffix), (smaller.getvalue(), ".webp"), key=lambda each: len(each[0]))


def _moves(picture: Image.Image) -> bool:
    try:
        picture.seek(1)
    except EOFError:
        picture.seek(0)
        return False
    return True


def _element(path: Path, content: bytes, suffix: str, rows: int) -> Markup:
    """A sample as an element of the page; ``rows`` tells the height of one picture on a sheet."""
    kind = MEDIA[suffix]
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    if kind.startswith("video"):
        return Markup('<video src="{}" controls loop muted playsinline autoplay></video>').format(source)
    try:
        with Image.open(path) as picture:
            small = picture.height / rows < SMALL
    except (UnidentifiedImageError, OSError):
        small = False
    marked = Markup(' class="pixels"') if small else ""
    return Markup('<img src="{}" alt="{}"{}>').format(source, path.stem, marked)
