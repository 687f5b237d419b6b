"""A small world of visual questions: sixteen cells, eighteen kinds of objects, exact answers.

A picture is a grid of four by four cells of eight pixels. Seven types of questions ask for more than one look, and an
answer may be preceded by the cells that it looked at (its trace): "what is right of red_disc" -> "p5 p6 = blue_plus".
Answers range over 18 kinds or 6 to 8 numbers, and are drawn flat where the type allows, so that guessing from the
question alone pays little.

Drawn by this project; no data set stands behind it.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ...types import Task

SIDE = 4
"""Cells per row and per column."""
CELLS = SIDE * SIDE
PIXELS = 8
"""Pixels per cell and axis."""
NOISE = 12.0
"""Standard deviation of a picture's pixel noise, in 8-bit levels, where nothing else is said."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 230, 40),
    "blue": (40, 40, 230),
    "yellow": (230, 230, 40),
    "magenta": (230, 40, 230),
    "cyan": (40, 230, 230),
}
"""Closed under permutations of the channels, so that these are augmentations with a known effect."""
SHAPES = ("square", "disc", "plus")
"""Symmetric, so that a turned picture shows the same shapes."""
KINDS = ("empty", *(f"{colour}_{shape}" for colour in COLOURS for shape in SHAPES))
"""What a cell holds: KINDS[0] is nothing, KINDS[1 + 3 * colour + shape] an object."""
ATTRIBUTES = (*COLOURS, *SHAPES)
DIRECTIONS: dict[str, tuple[int, int]] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
"""Steps in rows and columns."""
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th", "6th")
TYPES = ("hop1", "hop2", "count", "either", "dist", "odd", "kth")

Scene = tuple[int, ...]
"""The kind in each of the sixteen cells, in reading order."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Question:
    """A question without a scene.

    Attributes:
        type: one of TYPES, or "name" (what is in a cell) or "find" (where a kind is).
        words: what it is about: directions and kinds, attributes, or a place.
    """

    type: str
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        w = self.words
        match self.type:
            case "hop1":
                return f"what is {w[0]} of {w[1]}"
            case "hop2":
                return f"what is {w[0]} then {w[1]} of {w[2]}"
            case "count":
                return f"how many {w[0]}"
            case "either":
                return f"how many {w[0]} or {w[1]}"
            case "dist":
                return f"how far {w[0]} to {w[1]}"
            case "odd":
                return "which is odd"
            case "find":
                return f"where is {w[0]}"
            case _:
                return f"what is {w[0]}"

    @classmethod
    def parse(cls, text: str) -> Question:
        """The question that a text asks.

        Raises:
            ValueError: it is none of this world.
        """
        w = tuple(text.split())
        match w:
            case ("what", "is", way, "of", kind):
                return cls("hop1", (way, kind))
            case ("what", "is", way, "then", next_way, "of", kind):
                return cls("hop2", (way, next_way, kind))
            case ("how", "many", one):
                return cls("count", (one,))
            case ("how", "many", one, "or", other):
                return cls("either", (one, other))
            case ("how", "far", one, "to", other):
                return cls("dist", (one, other))
            case ("which", "is", "odd"):
                return cls("odd")
            case ("where", "is", kind):
                return cls("find", (kind,))
            case ("what", "is", place):
                return cls("kth" if place in ORDINALS else "name", (place,))
        raise ValueError(f"not a question of this world: {text!r}")


@dataclass(frozen=True)
class Answer:
    """What is right of a question in a scene: the cells to look at, in order, and the answer's word."""

    cells: tuple[int, ...]
    word: str

    def __str__(self) -> str:
        """As demonstrations say it: "p5 p6 = blue_plus"."""
        return " ".join([*(f"p{cell}" for cell in self.cells), "=", self.word])


def matches(kind: int, word: str) -> bool:
    """Whether a cell's kind is, or has, what a word names."""
    return kind > 0 and (word == KINDS[kind] or word in KINDS[kind].split("_"))


def step(cell: int, way: str) -> int | None:
    """The neighbour in a direction; None outside the grid."""
    down, right = DIRECTIONS[way]
    row, column = cell // SIDE + down, cell % SIDE + right
    return row * SIDE + column if 0 <= row < SIDE and 0 <= column < SIDE else None


def distance(one: int, other: int) -> int:
    """Steps between two cells along rows and columns."""
    return abs(one // SIDE - other // SIDE) + abs(one % SIDE - other % SIDE)


def odd_cells(scene: Scene) -> list[int]:
    """Cells whose object alone breaks a colour or a shape that all others share."""
    objects = [cell for cell, kind in enumerate(scene) if kind]
    found = []
    for cell in objects:
        rest = [scene[other] - 1 for other in objects if other != cell]
        own = scene[cell] - 1
        shared = {kind // 3 for kind in rest} == {rest[0] // 3} and own // 3 != rest[0] // 3
        formed = {kind % 3 for kind in rest} == {rest[0] % 3} and own % 3 != rest[0] % 3
        if len(rest) >= 2 and (shared or formed):
            found.append(cell)
    return found


def answer(question: Question, scene: Scene) -> Answer | None:
    """The right answer with its trace; None where the scene does not settle the question."""
    w = question.words
    match question.type:
        case "hop1" | "hop2":
            start = [cell for cell in range(CELLS) if matches(scene[cell], w[-1])]
            path = start[:1]
            for way in w[:-1]:
                following = step(path[-1], way) if path else None
                if following is None:
                    return None
                path.append(following)
            settled = len(start) == 1 and scene[path[-1]] > 0
            return Answer(tuple(path), KINDS[scene[path[-1]]]) if settled else None
        case "count" | "either":
            cells = tuple(cell for cell in range(CELLS) if any(matches(scene[cell], word) for word in w))
            return Answer(cells, str(len(cells)))
        case "dist":
            ends = [[cell for cell in range(CELLS) if matches(scene[cell], word)] for word in w]
            if [len(end) for end in ends] != [1, 1]:
                return None
            return Answer((ends[0][0], ends[1][0]), str(distance(ends[0][0], ends[1][0])))
        case "odd":
            cells = tuple(odd_cells(scene))
            return Answer(cells, KINDS[scene[cells[0]]]) if len(cells) == 1 else None
        case "kth":
            cells = tuple(cell for cell in range(CELLS) if scene[cell])[: ORDINALS.index(w[0]) + 1]
            return Answer(cells, KINDS[scene[cells[-1]]]) if len(cells) == ORDINALS.index(w[0]) + 1 else None
        case "name":
            return Answer((), KINDS[scene[int(w[0][1:])]])
        case "find":
            cells = tuple(cell for cell in range(CELLS) if matches(scene[cell], w[0]))
            return Answer((), f"p{cells[0]}") if len(cells) == 1 else None
    raise ValueError(f"no question of this world: {question.type}")


# making questions

Draft = Callable[[random.Random], tuple[Question, Scene]]


def _fill(scene: list[int], allowed: Sequence[int], count: int, draw: random.Random) -> None:
    """Put ``count`` objects of allowed kinds into random empty cells."""
    empty = [cell for cell in range(CELLS) if scene[cell] == 0]
    for cell in draw.sample(empty, min(count, len(empty))):
        scene[cell] = draw.choice(allowed)


def _chain(hops: int, draw: random.Random) -> tuple[Question, Scene]:
    scene, kind = [0] * CELLS, draw.randint(1, len(KINDS) - 1)
    while True:
        path, ways = [draw.randrange(CELLS)], []
        for _ in range(hops):
            way = draw.choice(list(DIRECTIONS))
            following = step(path[-1], way)
            if following is None or following in path:
                break
            ways.append(way)
            path.append(following)
        if len(path) == hops + 1:
            break
    others = [other for other in range(1, len(KINDS)) if other != kind]
    scene[path[0]], scene[path[-1]] = kind, draw.choice(others)
    _fill(scene, others, draw.randint(0, 10), draw)
    return Question(f"hop{hops}", (*ways, KINDS[kind])), tuple(scene)


def _count(kind: str, draw: random.Random) -> tuple[Question, Scene]:
    if kind == "count":
        words: tuple[str, ...] = (draw.choice(ATTRIBUTES),)
    else:
        words = tuple(draw.sample(ATTRIBUTES, 2))
    inside = [k for k in range(1, len(KINDS)) if any(matches(k, word) for word in words)]
    outside = [k for k in range(1, len(KINDS)) if k not in inside]
    if not outside:
        return _count(kind, draw)
    n, scene = draw.randint(0 if kind == "count" else 1, 7), [0] * CELLS
    _fill(scene, inside, n, draw)
    _fill(scene, outside, draw.randint(max(0, 2 - n), 12 - n), draw)
    return Question(kind, words), tuple(scene)


def _dist(draw: random.Random) -> tuple[Question, Scene]:
    far, (one, other) = draw.randint(1, 6), draw.sample(range(1, len(KINDS)), 2)
    ends = [(a, b) for a in range(CELLS) for b in range(CELLS) if distance(a, b) == far]
    scene = [0] * CELLS
    first, second = draw.choice(ends)
    scene[first], scene[second] = one, other
    _fill(scene, [k for k in range(1, len(KINDS)) if k not in (one, other)], draw.randint(0, 10), draw)
    return Question("dist", (KINDS[one], KINDS[other])), tuple(scene)


def _odd(draw: random.Random) -> tuple[Question, Scene]:
    while True:
        by_colour = draw.random() < 0.5
        shared, apart = draw.sample(range(len(COLOURS) if by_colour else len(SHAPES)), 2)
        objects = [(shared if i else apart, draw.randrange(3 if by_colour else 6)) for i in range(draw.randint(3, 9))]
        scene = [0] * CELLS
        for cell, (key, other) in zip(draw.sample(range(CELLS), len(objects)), objects, strict=True):
            scene[cell] = 1 + (3 * key + other if by_colour else 3 * other + key)
        if len(odd_cells(tuple(scene))) == 1:
            return Question("odd"), tuple(scene)


def _kth(draw: random.Random) -> tuple[Question, Scene]:
    place, scene = draw.randrange(len(ORDINALS)), [0] * CELLS
    _fill(scene, range(1, len(KINDS)), draw.randint(max(2, place + 1), 12), draw)
    return Question("kth", (ORDINALS[place],)), tuple(scene)


DRAFTS: dict[str, Draft] = {
    "hop1": lambda draw: _chain(1, draw),
    "hop2": lambda draw: _chain(2, draw),
    "count": lambda draw: _count("count", draw),
    "either": lambda draw: _count("either", draw),
    "dist": _dist,
    "odd": _odd,
    "kth": _kth,
}


def composition(question: Question, scene: Scene) -> str:
    """What may stand on one side of a split alone: what the question names, in any order; where questions are few
    (odd, kth) the scene."""
    named = (str(kind) for kind in scene) if question.type in ("odd", "kth") else question.words
    symmetric = question.type in ("either", "dist")
    return " ".join([question.type, *(sorted(named) if symmetric else named)])


def held_out(question: Question, scene: Scene, split: int) -> bool:
    """Whether a question's composition belongs to the held-out quarter of a split; those of a name or a place never
    do."""
    if question.type not in TYPES:
        return False
    key = f"{split} {composition(question, scene)}"
    return hashlib.blake2b(key.encode(), digest_size=2).digest()[0] % 4 == 0


def questions(
    kind: str, count: int, seed: str, *, split: int = 0, unseen: bool = False
) -> list[tuple[Question, Scene]]:
    """Questions of a type with their scenes, from the compositions that training sees or those it never does.

    Raises:
        UsageError: no such type, or a split that holds out none of its few compositions, or all of them.
    """
    if kind not in DRAFTS:
        raise UsageError(f"no question type {kind!r}: there are {', '.join(TYPES)}")
    draw = random.Random(f"{seed} {kind} {split} {unseen}")
    found: list[tuple[Question, Scene]] = []
    missed = 0
    while len(found) < count:
        question, scene = DRAFTS[kind](draw)
        if held_out(question, scene, split) == unseen and answer(question, scene) is not None:
            found.append((question, scene))
        elif (missed := missed + 1) > 1000 and not found:
            raise UsageError(f"split {split} leaves no {kind} questions {'unseen' if unseen else 'seen'}: take another")
    return found


# pictures and tasks


@lru_cache(maxsize=1)
def _stamps() -> NDArray[np.float32]:
    """[shapes, sizes, shifts down, shifts right, 8, 8] coverage of a cell by an object, in 0..1."""
    fine = 4
    place = (np.arange(PIXELS * fine) + 0.5) / fine
    stamps = np.zeros((3, 3, 3, 3, PIXELS, PIXELS), np.float32)
    for size, half in enumerate((2.2, 2.7, 3.2)):
        for down in range(3):
            for right in range(3):
                y = np.abs(place - PIXELS / 2 - (down - 1) * 0.7)[:, None]
                x = np.abs(place - PIXELS / 2 - (right - 1) * 0.7)[None]
                square = np.maximum(x, y) <= half * 0.9
                disc = x**2 + y**2 <= half**2
                plus = (np.maximum(x, y) <= half) & (np.minimum(x, y) <= half * 0.3)
                for shape, mask in enumerate((square, disc, plus)):
                    blocks = mask.reshape(PIXELS, fine, PIXELS, fine).mean((1, 3))
                    stamps[shape, size, down, right] = blocks
    return stamps


def render(scenes: Sequence[Scene], seed: str | None = None, noise: float = NOISE) -> Pixels:
    """[N, 32, 32, 3] pictures. With a seed sizes, places and pixel noise (8-bit levels) vary, else not."""
    kinds = np.asarray(scenes, np.int64).reshape(-1, CELLS)
    shape, colour = np.maximum(kinds - 1, 0) % 3, np.maximum(kinds - 1, 0) // 3
    if seed is None:
        size = down = right = np.ones_like(kinds)
    else:
        key = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "little")
        draw = np.random.default_rng(key)
        size, down, right = draw.integers(0, 3, (3, *kinds.shape))
    cover = _stamps()[shape, size, down, right] * (kinds > 0)[..., None, None]
    paint = np.asarray(list(COLOURS.values()), np.float32)[colour]
    cells = 20.0 + cover[..., None] * (paint[:, :, None, None] - 20.0)
    cells = cells.reshape(-1, SIDE, SIDE, PIXELS, PIXELS, 3).transpose(0, 1, 3, 2, 4, 5)
    pictures = cells.reshape(-1, SIDE * PIXELS, SIDE * PIXELS, 3)
    if seed is not None:
        pictures = pictures + noise * draw.standard_normal(pictures.shape, np.float32)
    whole: Pixels = np.clip(np.rint(pictures), 0, 255).astype(np.uint8)
    return whole


def tasks(
    items: Sequence[tuple[Question, Scene]],
    name: str,
    *,
    labels: bool = True,
    known: bool = True,
    noise: float = NOISE,
) -> list[Task]:
    """Questions with their pictures as tasks NAME/TYPE/NUMBER.

    Args:
        labels: the right answer as reference, and the right trace as ``extra["trace"]``.
        known: the scene as ``extra["scene"]``, for views and redrawing. A label-free run sets both to False, so that
            nothing can leak.
        noise: of the pictures' pixels.
    """
    pictures = render([scene for _, scene in items], name, noise)
    made = []
    for number, ((question, scene), picture) in enumerate(zip(items, pictures, strict=True)):
        found = answer(question, scene) if labels else None
        extra: dict[str, Any] = {} if found is None else {"trace": str(found)}
        extra |= {"scene": scene} if known else {}
        made.append(
            Task(
                f"{name}/{question.type}/{number}",
                str(question),
                (picture,),
                None if found is None else found.word,
                question.type,
                number,
                extra=extra,
            )
        )
    return made


# views: augmentations whose effect on question, trace and answer is known


@dataclass(frozen=True)
class View:
    """A picture turned, mirrored, and with its colour channels permuted.

    Attributes:
        turns: quarter turns counter-clockwise, after mirroring.
        mirrored: left and right swapped.
        channels: new channel i is the old channel channels[i].
    """

    turns: int = 0
    mirrored: bool = False
    channels: tuple[int, int, int] = (0, 1, 2)

    @classmethod
    def draw(cls, question: Question, random: random.Random) -> View:
        """A random view that keeps the question one of this world: reading order must not turn."""
        channels = tuple(random.sample(range(3), 3))
        still = question.type == "kth"
        return cls(0 if still else random.randrange(4), not still and random.random() < 0.5, channels)  # type: ignore[arg-type]

    def picture(self, pixels: Pixels) -> Pixels:
        """[32, 32, 3] as this view shows it."""
        mirrored = pixels[:, ::-1] if self.mirrored else pixels
        return np.ascontiguousarray(np.rot90(mirrored, self.turns)[..., list(self.channels)])

    def scene(self, scene: Scene) -> Scene:
        """What this view's picture shows."""
        kinds = {int(self.word(f"p{cell}")[1:]): KINDS.index(self.word(KINDS[kind])) for cell, kind in enumerate(scene)}
        return tuple(kinds[cell] for cell in range(CELLS))

    def word(self, word: str) -> str:
        """A cell, direction, colour or kind as this view names it; other words stay."""
        return _words(self).get(word, word)

    def text(self, text: str) -> str:
        """A question, trace or answer as this view would have it; lists of cells stay in reading order."""
        words = [self.word(word) for word in text.split()]
        return " ".join(words)

    def back(self, text: str) -> str:
        """What this view's words are in the picture that it was made from."""
        inverse = {new: old for old, new in _words(self).items()}
        return " ".join(inverse.get(word, word) for word in text.split())


VIEW_DRAWS = 16
"""So many views are drawn for one that asks nothing held out."""


def seen_view(question: Question, scene: Scene, split: int, random: random.Random) -> View | None:
    """A random view whose composition training may see; None where ``VIEW_DRAWS`` of them were held out.

    Turning a question, or permuting its colours, makes another composition of it.
    """
    for _ in range(VIEW_DRAWS):
        view = View.draw(question, random)
        turned = Question.parse(view.text(str(question)))
        if not held_out(turned, view.scene(scene) if question.type in ("odd", "kth") else scene, split):
            return view
    return None


@lru_cache(maxsize=64)
def _words(view: View) -> dict[str, str]:
    grid = np.arange(CELLS).reshape(SIDE, SIDE)
    moved = np.rot90(grid[:, ::-1] if view.mirrored else grid, view.turns).flatten().tolist()
    table = {f"p{old}": f"p{new}" for new, old in enumerate(moved)}
    place = {old: new for new, old in enumerate(moved)}
    for way in DIRECTIONS:
        start = next(cell for cell in (5, 10) if step(cell, way) is not None)
        end = step(start, way)
        assert end is not None
        table[way] = next(other for other in DIRECTIONS if step(place[start], other) == place[end])
    for colour, rgb in COLOURS.items():
        new = tuple(rgb[i] for i in view.channels)
        table[colour] = next(name for name, value in COLOURS.items() if value == new)
    for kind in KINDS[1:]:
        colour, shape = kind.split("_")
        table[kind] = f"{table[colour]}_{shape}"
    return table


def in_order(question: Question, trace: str) -> str:
    """A trace whose cells are a set (count, either) in reading order; others as they are."""
    cells, equals, word = f" {trace}".rpartition(" = ")
    if question.type not in ("count", "either") or not equals:
        return trace
    ordered = sorted(cells.split(), key=lambda cell: int(cell[1:]) if cell[1:].isdigit() else CELLS)
    return " ".join([*ordered, "=", word])


# looking again


def parse_answer(text: str) -> Answer | None:
    """Cells and word of "p5 p6 = blue_plus"; None where a text is no answer of this form."""
    words = text.split()
    names = [f"p{cell}" for cell in range(CELLS)]
    if len(words) < 2 or words[-2] != "=" or any(word not in names for word in words[:-2]):
        return None
    return Answer(tuple(names.index(word) for word in words[:-2]), words[-1])


def claims(question: Question, said: Answer, seen: Scene) -> list[bool]:
    """Whether each cell that a trace points at shows what the trace takes it for, and last whether the answer follows.

    Only cells that the trace points at are looked at (for reading order those between them too, for the odd one all).
    So a count that misses an object passes; the largest count that passes is then the likeliest. ``seen`` is what
    somebody reads in the picture: with the true scene, every right trace passes.
    """
    w, cells = question.words, said.cells
    match question.type:
        case "hop1" | "hop2":
            found = [matches(seen[cell], w[-1]) if i == 0 else True for i, cell in enumerate(cells)]
            for i, (one, other) in enumerate(itertools.pairwise(cells)):
                found[i + 1] = i < len(w) - 1 and step(one, w[i]) == other
            follows = len(cells) == len(w) and KINDS[seen[cells[-1]]] == said.word != KINDS[0]
        case "count" | "either":
            found = [
                any(matches(seen[cell], word) for word in w) and cell not in cells[:i] for i, cell in enumerate(cells)
            ]
            follows = said.word == str(len(cells))
        case "dist":
            found = [i < 2 and matches(seen[cell], w[i]) for i, cell in enumerate(cells)]
            follows = len(cells) == 2 and said.word == str(distance(*cells))
        case "odd":
            found = [odd_cells(seen) == [cell] for cell in cells]
            follows = len(cells) == 1 and KINDS[seen[cells[0]]] == said.word
        case "kth":
            before = [-1, *cells]
            found = [seen[cell] > 0 and not any(seen[before[i] + 1 : cell]) for i, cell in enumerate(cells)]
            found = [ok and cell > before[i] for i, (ok, cell) in enumerate(zip(found, cells, strict=True))]
            wanted = ORDINALS.index(w[0]) + 1
            follows = len(cells) == wanted and KINDS[seen[cells[-1]]] == said.word
        case _:
            raise ValueError(f"no trace is asked for by {question.type}")
    return [*found, bool(follows)]


# captions and changes


def caption(scene: Scene) -> str:
    """Every object with its cell, in reading order: "p0 red_disc p7 blue_plus"."""
    return " ".join(f"p{cell} {KINDS[kind]}" for cell, kind in enumerate(scene) if kind)


def redraw(text: str) -> Scene | None:
    """The scene that a caption describes, later words over earlier ones; None for what is no caption."""
    words, scene = text.split(), [0] * CELLS
    places = {f"p{cell}": cell for cell in range(CELLS)}
    for place, kind in zip(words[::2], words[1::2], strict=False):
        if place not in places or kind not in KINDS:
            return None
        scene[places[place]] = KINDS.index(kind)
    return tuple(scene) if words and len(words) % 2 == 0 else None


def change(scene: Scene, draw: random.Random) -> tuple[Scene, str]:
    """The scene after a random change of one object, and what happened to it.

    "p3 into red_plus", "p3 gone", "p3 new red_plus" or "p3 moved p5"; the last object never goes.
    """
    objects = [cell for cell, kind in enumerate(scene) if kind]
    empty = [cell for cell, kind in enumerate(scene) if not kind]
    kinds = range(1, len(KINDS))
    what = draw.choice(("into", "gone", "new", "moved")) if empty and len(objects) > 1 else "into"
    what = what if objects else "new"
    cell, after = draw.choice(empty if what == "new" else objects), list(scene)
    if what == "gone":
        after[cell], told = 0, f"p{cell} gone"
    elif what == "moved":
        place = draw.choice(empty)
        after[cell], after[place], told = 0, scene[cell], f"p{cell} moved p{place}"
    else:
        after[cell] = draw.choice([kind for kind in kinds if kind != scene[cell]])
        told = f"p{cell} {what} {KINDS[after[cell]]}"
    return tuple(after), told
