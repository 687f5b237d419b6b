"""Rows dealt out to evaluation, gate and training, so that nothing that is one thing stands on two sides.

Rows that share a key (a picture's content, a question's text) are one cluster, and a cluster is dealt as a whole. Which
clusters are held out hangs on the hash of their content, not on the order of rows, a seed or the other rows of the
file, so that a file which grows keeps most of what was held out. Every category is held out that has two rows or more
and can spare one; no category is taken away from training as a whole.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from .errors import UsageError

Contents = Mapping[str, Collection[str]]
"""What stands on a side, by name -> the keys of its content."""


def assert_disjoint(sides: Mapping[str, Contents]) -> None:
    """Refuse a split in which two sides share content, or that leaves nothing of a side.

    Args:
        sides: what each is called -> what stands on it.

    Raises:
        UsageError: naming the sides, how much is shared and some of it.
    """
    owners = {side: {key: name for name, keys in things.items() for key in keys} for side, things in sides.items()}
    for side, things in sides.items():
        if not things:
            raise UsageError(f"this split leaves nothing for {side}: give more data, or another --split")
    for (side, owned), (other, theirs) in combinations(owners.items(), 2):
        if shared := sorted(owned.keys() & theirs.keys()):
            named = ", ".join(f"{owned[key]} and {theirs[key]} ({key[:60]})" for key in shared[:3])
            more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
            raise UsageError(f"{side} and {other} share content, {len(shared)} times: {named}{more}")


@dataclass(frozen=True)
class Part:
    """What is held out for a purpose, as a share of every category.

    Attributes:
        share: of a category's rows that are left, 0..1; one row at the least where there are two.
        each: most rows of a category.
        total: most rows of all categories together.
        fit: rows that may be taken; None for all.
    """

    share: float
    each: int | None = None
    total: int | None = None
    fit: Collection[int] | None = None


def deal(
    keys: Sequence[Collection[str]], categories: Sequence[str], parts: Sequence[Part], salt: object = 0
) -> list[list[int]]:
    """Rows of each part, in their order, and at the end those of all others.

    A cluster may bring rows into a part that are not ``fit`` for it, or more of a category than ``each``.

    Args:
        keys: of every row; rows with a common key stay together. A row without any stands alone.
        categories: of every row.
        salt: another one deals otherwise.
    """
    left = sorted(clusters(keys), key=lambda rows: _order(rows, keys, salt))
    dealt = []
    for part in parts:
        taken = _take(left, categories, part)
        dealt.append(sorted(row for number in taken for row in left[number]))
        left = [rows for number, rows in enumerate(left) if number not in taken]
    return [*dealt, sorted(row for rows in left for row in rows)]


def clusters(keys: Sequence[Collection[str]]) -> list[list[int]]:
    """Rows that hang together by common keys, directly or over others."""
    parent = list(range(len(keys)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    first: dict[str, int] = {}
    for row, several in enumerate(keys):
        for key in several:
            parent[root(row)] = root(first.setdefault(key, row))
    found: dict[int, list[int]] = defaultdict(list)
    for row in range(len(keys)):
        found[root(row)].append(row)
    return list(found.values())


def ordered(rows: Iterable[int], keys: Sequence[Collection[str]], salt: object = 0) -> list[int]:
    """Rows in the order of their hashes, which is the same however a file is sorted."""
    return sorted(rows, key=lambda row: (_order([row], keys, salt), row))


def _order(rows: Sequence[int], keys: Sequence[Collection[str]], salt: object) -> bytes:
    content = sorted({key for row in rows for key in keys[row]})
    return hashlib.blake2b(repr((salt, content)).encode(), digest_size=16).digest()


def _take(left: Sequence[Sequence[int]], categories: Sequence[str], part: Part) -> set[int]:
    """Numbers of the clusters that a part gets."""
    holding: dict[str, list[int]] = defaultdict(list)
    sizes = [Counter(categories[row] for row in rows) for rows in left]
    fit = [Counter(categories[row] for row in rows if part.fit is None or row in part.fit) for rows in left]
    for number, counts in enumerate(fit):
        for category in counts:
            holding[category].append(number)
    spare = Counter(categories[row] for rows in left for row in rows)
    wanted = _wanted({name: sum(fit[number][name] for number in holding[name]) for name in holding}, spare, part)
    taken: set[int] = set()
    got: Counter[str] = Counter()
    for name in sorted(wanted, key=lambda name: (wanted[name], name)):
        for number in _choice(name, holding[name], fit, wanted[name], got):
            if number in taken or any(spare[each] <= count for each, count in sizes[number].items()):
                continue
            if part.total is not None and sum(got.values()) + sum(fit[number].values()) > part.total:
                continue
            if got[name] and got[name] + fit[number][name] > wanted[name]:
                continue
            taken.add(number)
            got.update(fit[number])
            spare.subtract(sizes[number])
            if got[name] >= wanted[name]:
                break
    return taken


def _choice(
    name: str, holding: Sequence[int], fit: Sequence[Counter[str]], wanted: int, got: Counter[str]
) -> Iterable[int]:
    """Clusters with a category: those that bring no more of it than is wanted, then the others, the smallest first."""
    if got[name] >= wanted:
        return []
    small = [number for number in holding if fit[number][name] <= wanted]
    return [*small, *sorted((n for n in holding if fit[n][name] > wanted), key=lambda n: sum(fit[n].values()))]


def _wanted(counts: Mapping[str, int], all_rows: Mapping[str, int], part: Part) -> dict[str, int]:
    """How many rows of every category a part asks for."""
    asked = {name: max(1, round(part.share * count)) for name, count in counts.items() if all_rows[name] > 1}
    if part.each is not None:
        asked = {name: min(part.each, count) for name, count in asked.items()}
    total = sum(asked.values())
    if part.total is None or total <= part.total:
        return {name: count for name, count in asked.items() if count}
    exact = {name: part.total * count / total for name, count in asked.items()}
    floors = {name: int(value) for name, value in exact.items()}
    rest = part.total - sum(floors.values())
    for name in sorted(exact, key=lambda name: (floors[name] - exact[name], name))[:rest]:
        floors[name] += 1
    return {name: count for name, count in floors.items() if count}
