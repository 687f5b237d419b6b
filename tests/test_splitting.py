"""Rows dealt out to evaluation, gate and training: nothing lost, nothing on two sides, every category held out."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from autotelic.errors import UsageError
from autotelic.splitting import Part, assert_disjoint, clusters, deal, ordered


def singles(count: int) -> list[set[str]]:
    return [{f"row {i}"} for i in range(count)]


@pytest.mark.parametrize("seed", range(60))
def test_any_file_is_dealt_out_without_loss_or_leak(seed: int) -> None:
    draw = random.Random(seed)
    count, pictures, kinds = draw.randrange(1, 200), draw.randrange(1, 150), draw.randrange(1, 8)
    keys = [{f"p{draw.randrange(pictures)}" for _ in range(draw.choice([1, 1, 1, 2]))} for _ in range(count)]
    categories = [f"k{min(draw.randrange(kinds), draw.randrange(kinds))}" for _ in range(count)]
    fit = None if draw.random() < 0.5 else {i for i in range(count) if draw.random() < 0.7}
    parts = [Part(0.2, each=draw.choice([None, 3, 10]), fit=fit), Part(0.2, total=draw.choice([None, 5]))]
    sides = deal(keys, categories, parts, salt=seed % 3)
    assert sorted(row for side in sides for row in side) == list(range(count)), "each row is on one side"
    seen = [set().union(*(keys[row] for row in side)) if side else set() for side in sides]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2]), "what is one thing is on one side"
    assert {categories[row] for row in sides[2]} == set(categories), "no category is taken from training"
    assert all(side == sorted(side) for side in sides)
    if parts[1].total is not None:
        assert len(sides[1]) <= parts[1].total
    assert deal(keys, categories, parts, salt=seed % 3) == sides


@pytest.mark.parametrize(("sizes", "held"), [((1, 2, 3, 7, 8, 13, 100), (0, 1, 1, 1, 2, 3, 20)), ((2, 2), (1, 1))])
def test_a_fifth_of_every_category_is_held_out(sizes: tuple[int, ...], held: tuple[int, ...]) -> None:
    categories = [f"k{kind}" for kind, size in enumerate(sizes) for _ in range(size)]
    side, rest = deal(singles(len(categories)), categories, [Part(0.2)])
    counts = Counter(categories[row] for row in side)
    assert tuple(counts[f"k{kind}"] for kind in range(len(sizes))) == held and len(rest) == sum(sizes) - sum(held)


def test_limits_are_kept_and_shared_out_by_size() -> None:
    categories = ["a"] * 600 + ["b"] * 300 + ["c"] * 100
    each, total, _ = deal(singles(1000), categories, [Part(0.2, each=30), Part(0.2, total=20)])
    assert Counter(categories[row] for row in each) == {"a": 30, "b": 30, "c": 20}
    assert Counter(categories[row] for row in total) == {"a": 12, "b": 6, "c": 2}
    (few, _) = deal(singles(40), [f"k{i // 2}" for i in range(40)], [Part(0.5, total=3)])
    assert len(few) == 3, "fewer than there are categories"


def test_what_is_held_out_hangs_on_content_and_salt_alone() -> None:
    keys, categories = singles(200), [f"k{i % 3}" for i in range(200)]
    held = {next(iter(keys[row])) for row in deal(keys, categories, [Part(0.2)])[0]}
    order = list(range(200))
    random.Random(1).shuffle(order)
    again = deal([keys[i] for i in order], [categories[i] for i in order], [Part(0.2)])[0]
    assert {next(iter(keys[order[row]])) for row in again} == held
    more = deal([*keys, {"new"}], [*categories, "k0"], [Part(0.2)])[0]
    assert len(held - {next(iter([*keys, {"new"}][row])) for row in more}) <= 1, "a file that grows keeps it"
    other = {next(iter(keys[row])) for row in deal(keys, categories, [Part(0.2)], salt=1)[0]}
    assert other != held and len(other) == len(held)


def test_a_cluster_too_large_is_taken_only_where_there_is_no_other() -> None:
    keys = [{"big"}] * 50 + [{f"s{i}"} for i in range(10)]
    side, rest = deal(keys, ["a"] * 60, [Part(0.1)])
    assert len(side) == 6 and not set(side) & set(range(50))
    side, rest = deal([{"big"}] * 50 + [{"half"}] * 10, ["a"] * 60, [Part(0.05)])
    assert side == list(range(50, 60)) and len(rest) == 50
    assert deal([{"all"}] * 9, ["a"] * 9, [Part(0.2)]) == [[], list(range(9))]


def test_rows_hang_together_over_others() -> None:
    keys = [{"a"}, {"b"}, {"a", "c"}, {"d"}, {"c", "b"}, set(), set()]
    assert sorted(clusters(keys)) == [[0, 1, 2, 4], [3], [5], [6]]
    assert len(clusters([{f"{i}", f"{i + 1}"} for i in range(5000)])) == 1


def test_an_order_by_content_is_the_same_for_every_order_of_rows() -> None:
    keys = singles(50)
    names = [next(iter(keys[row])) for row in ordered(range(50), keys)]
    turned = keys[::-1]
    assert [next(iter(turned[row])) for row in ordered(range(50), turned)] == names
    assert names != [next(iter(key)) for key in keys]


def test_sides_that_share_content_are_named() -> None:
    one, other = {"a": {"cat", "dog"}, "b": {"cow"}}, {"c": {"emu"}, "d": {"cow", "fox"}}
    assert_disjoint({"training": one, "evaluation": {"c": {"emu"}}})
    with pytest.raises(UsageError, match=r"training and evaluation share content, 1 times: b and d \(cow\)$"):
        assert_disjoint({"training": one, "evaluation": other})
    many = {str(i): {str(i)} for i in range(5)}
    with pytest.raises(UsageError, match=r"share content, 5 times: 0 and 0 \(0\), .* and 2 more$"):
        assert_disjoint({"training": many, "the gate's probes": one, "evaluation": many})
    with pytest.raises(
        UsageError, match="this split leaves nothing for evaluation: give more data, or another --split"
    ):
        assert_disjoint({"training": one, "evaluation": {}})
