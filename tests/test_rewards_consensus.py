"""Rewards without labels, by hand; and whether novelty keeps several ways to the right answer alive."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autotelic.envs.toys import scenes
from autotelic.errors import UsageError
from autotelic.rewards.text.agreement import consistency, kendall_tau, same_extremes
from autotelic.rewards.text.answers import answer_of
from autotelic.rewards.text.consensus import (
    CrowdVote,
    MajorityNovelty,
    MajorityVote,
    SelfConsistency,
    ViewConsistency,
    band,
    letter_groups,
    majority,
    self_consistency,
)

NOTHING = "= "  # a mark without an answer


def test_the_majority_is_the_commonest_vote_and_the_earliest_among_equals() -> None:
    assert majority(["b", "a", "a", None, None, None]) == "a"
    assert majority(["b", "a", "a", "b"]) == "b"
    assert majority([None, None]) is None and majority([]) is None
    assert majority(["a", "b", "b"], [Fraction(3), Fraction(1), Fraction(1)]) == "a"


def test_majority_vote_is_counted_within_each_question() -> None:
    said = ["= 7", "7.", "Answer: 8", "8", "= 7", NOTHING, "x", NOTHING]
    groups = ["q", "q", "q", "r", "r", "q", "s", "t"]
    assert MajorityVote()(completions=said, groups=groups) == [1, 1, 0, 1, 0, 0, 1, 0]
    only_marked = MajorityVote(lambda text: answer_of(text, whole=False))
    assert only_marked(completions=["7", "7", "= 8"], groups=["q"] * 3) == [0, 0, 1]


def test_self_consistency_is_the_share_that_agrees() -> None:
    said = ["7", "7", "8", NOTHING, "9"]
    assert SelfConsistency()(completions=said, groups=["q"] * 4 + ["r"]) == [0.5, 0.5, 0.25, 0.0, 1.0]
    assert self_consistency(["a", "a", None, "b"]) == Fraction(1, 2) and self_consistency([]) == 0


# Crowds ---------------------------------------------------------------------------------------------------------


def crowd(votes: dict[str, str], weighted: bool) -> list[float]:
    said = [(player, vote) for player, some in votes.items() for vote in some]
    return CrowdVote(weighted)(
        completions=[NOTHING if vote == "-" else vote for _, vote in said],
        rollouts=[SimpleNamespace(player=player) for player, _ in said],
        tasks=[SimpleNamespace(id="q")] * len(said),
        groups=[f"q/{player}" for player, _ in said],
    )


def test_a_sure_model_outvotes_unsure_ones() -> None:
    """One says x, y (SC 1/2), two x, z (1/2), three w, w (1). Heads: x 2, w 2, and x came first. Weighted: x 1, w 2."""
    votes = {"one": "xy", "two": "xz", "three": "ww"}
    assert crowd(votes, weighted=False) == [1, 0, 1, 0, 0, 0]
    assert crowd(votes, weighted=True) == [0, 0, 0, 0, 1, 1]


def test_attempts_without_an_answer_make_a_model_unsure() -> None:
    """One: a, -, - has SC 1/3 and gives a 1/3. Two: b, c, d has SC 1/3 each: a tie, and a came first."""
    assert crowd({"one": "a--", "two": "bcd"}, weighted=True) == [1, 0, 0, 0, 0, 0]
    assert crowd({"one": "---", "two": "b--"}, weighted=True) == [0, 0, 0, 1, 0, 0]


def test_a_crowd_is_of_one_question() -> None:
    tasks = [SimpleNamespace(id=name) for name in "qrq"]
    rollouts = [SimpleNamespace(player=name) for name in "aba"]
    assert CrowdVote()(completions=["1", "2", "1"], rollouts=rollouts, tasks=tasks) == [1, 1, 1]


# Novelty --------------------------------------------------------------------------------------------------------

PLACES = {"r": (1.0, 0.0), "u": (0.0, 1.0), "d": (0.6, 0.8), "n": (-1.0, 0.0)}


def places(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    return np.array([PLACES[text[0]] for text in texts])


def novelty(said: Sequence[str], groups: Sequence[str] | None = None) -> list[float]:
    return MajorityNovelty(places)(completions=said, groups=groups or ["q"] * len(said))


def test_the_sign_is_the_majoritys_and_the_size_is_noveltys() -> None:
    """Two r and one u say 7, one u says 8, one nothing. Likeness: rr 1, ru 0, uu 1.
    u of r: 1 - (mean(1, 0) + max(1, 0, 0)) / 2 = 1/4; of the u that says 7: 1 - (0 + 1) / 2 = 1/2, its double says 8.
    Scaled: 0, 0, 1; the only 8 gets -1/2."""
    assert novelty(["r = 7", "r = 7", "u = 7", "u = 8", "r = "]) == [0.5, 0.5, 1.0, -0.5, -1.0]


def test_novelty_between_the_ends_of_its_side_by_hand() -> None:
    """7 is said by r, u, d: rd 0.6, ud 0.8, ru 0. Mean / max: r 0.3 / 0.6, u 0.4 / 0.8, d 0.7 / 0.8.
    u: 0.55, 0.4, 0.25; scaled 1, 0.5, 0. 8 is said by r, r: their u is 0, equal, and the max of r becomes 1 (its
    double), of d 0.8 still: r 0.35, u 0.4, d 0.25; scaled 2/3, 1, 0."""
    assert novelty(["r = 7", "u = 7", "d = 7"]) == pytest.approx([1.0, 0.75, 0.5])
    expected = [0.5 + 1 / 3, 1.0, 0.5, -0.75, -0.75]
    assert novelty(["r = 7", "u = 7", "d = 7", "r = 8", "r = 8"]) == pytest.approx(expected)


def test_opposite_texts_are_not_more_novel_than_unrelated_ones() -> None:
    assert novelty(["r = 7", "n = 7", "u = 7"]) == [0.75] * 3


def test_sides_that_are_alike_alone_or_silent() -> None:
    assert novelty(["r = 7", "r = 7", "r = 7"]) == [0.75] * 3
    assert novelty(["r = 7", "r = 7", "r = 7", "u = 8", "u = 8"])[3:] == [-0.75] * 2
    assert novelty(["r = 7", "r = "]) == [1.0, -1.0], "one valid answer is a majority of one"
    assert novelty(["r = 7", "u = 8"]) == [1.0, -0.5], "a tie goes to the first"
    assert novelty(["r = ", "u = "]) == [-1.0, -1.0] and novelty(["r = 7"]) == [1.0]
    assert novelty(["r = 7", "r = 8"], ["q", "s"]) == [1.0, 1.0]


def test_every_majority_score_is_above_every_minority_score() -> None:
    rng = np.random.default_rng(0)
    said = [f"{'rudn'[rng.integers(4)]} = {rng.integers(3)}" for _ in range(200)]
    scores = np.array(novelty(said, [f"q{i // 10}" for i in range(200)]))
    right = np.array(MajorityVote()(completions=said, groups=[f"q{i // 10}" for i in range(200)])) == 1
    assert scores[right].min() >= 0.5 and scores[~right].max() <= -0.5
    assert (band(True, 0), band(True, 1), band(False, 0), band(False, 1)) == (0.5, 1.0, -1.0, -0.5)


def test_only_the_reasoning_is_compared_if_asked() -> None:
    reward = MajorityNovelty(places, text=lambda text: text.split(":")[1])
    assert reward(completions=["x:r = 7", "y:r = 7", "z:u = 7"], groups=["q"] * 3) == [0.5, 0.5, 1.0]


def test_letter_groups_see_words() -> None:
    one, two, same, other = letter_groups(["red square and blue", "red circle and blue", "RED  square and blue", "xyz"])

    def cosine(a: Any, b: Any) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine(one, same) == pytest.approx(1) and 0.3 < cosine(one, two) < 0.9 and cosine(one, other) < 0.1
    assert letter_groups(["", "a"]).sum(1).tolist() == [1, 1]
    assert letter_groups(["abab"], size=2, width=8).sum() == 5  # " a", "ab", "ba", "ab", "b "


def ways_left(reward: Any, seed: int) -> tuple[float, float]:
    """Twelve ways to think, four of them lead to the right answer: P(right) after 300 GRPO steps on one question, and
    the effective number of right ways. The catalogue of systems ran this with 400 steps."""
    rng = np.random.default_rng(seed)
    answers = ["r"] * 4 + [f"w{k // 2}" for k in range(8)]
    logits = 0.1 * rng.standard_normal(12)
    for _ in range(300):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        ways = rng.choice(12, 32, p=p)
        r = np.array(reward(completions=[f"{way:02d} = {answers[way]}" for way in ways], groups=["q"] * 32))
        advantage = (r - r.mean()) / (r.std() + 1e-6)
        logits += 0.1 * (np.bincount(ways, advantage, 12) - advantage.sum() * p) / 32
    p = np.exp(logits - logits.max())
    p /= p.sum()
    right = p[:4] / p[:4].sum()
    return float(p[:4].sum()), math.exp(-float(right @ np.log(right)))


def test_novelty_keeps_several_ways_to_the_right_answer() -> None:
    def one_hot(texts: Sequence[str]) -> np.ndarray[Any, Any]:
        return np.eye(12)[[int(text[:2]) for text in texts]]

    plain = [ways_left(MajorityVote(), seed) for seed in range(3)]
    novel = [ways_left(MajorityNovelty(one_hot), seed) for seed in range(3)]
    assert min(p for p, _ in plain + novel) > 0.8, "both learn the answer"
    assert np.mean([ways for _, ways in novel]) > np.mean([ways for _, ways in plain]) + 0.3


# Views ----------------------------------------------------------------------------------------------------------


def test_views_are_compared_after_their_effect_is_undone() -> None:
    """The question a, seen as it is (left, left), mirrored (right, left; undone left, right) and turned (up):
    against the two other views, left of a: (1/2 + 0) / 2; undone left of the mirror: (2/2 + 0) / 2."""

    def task(name: str, parent: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(id=name, parent=parent)

    mirror = {"left": "right", "right": "left"}
    tasks = [task("a"), task("a"), task("m", "a"), task("m", "a"), task("t", "a"), task("b")]
    said = ["left", "left", "right", "left", "up", "left"]
    scores = ViewConsistency()(completions=said, tasks=tasks, back=[None, None, mirror, mirror, None, None])
    assert scores == [0.25, 0.25, 0.5, 0.0, 0.0, None]
    said[4] = NOTHING
    assert ViewConsistency()(completions=said, tasks=tasks) == [0.25, 0.25, 0.0, 0.5, 0.0, None]


def test_right_answers_about_views_of_a_scene_agree() -> None:
    draw = random.Random(0)
    said, tasks, back = [], [], []
    for number, (question, scene) in enumerate(scenes.questions("hop1", 10, "views")):
        gold = scenes.answer(question, scene)
        assert gold is not None
        for view in range(3):
            shown = scenes.View.draw(question, draw)
            said.append(shown.text(str(gold)))
            tasks.append(SimpleNamespace(id=f"{number}/{view}", parent=str(number)))
            back.append(shown.back)
    assert ViewConsistency()(completions=said, tasks=tasks, back=back) == [1.0] * 30
    raw = [score or 0.0 for score in ViewConsistency()(completions=said, tasks=tasks)]
    assert math.fsum(raw) < 20, "the views do change the answers"


# Rankings -------------------------------------------------------------------------------------------------------


def test_kendalls_tau_by_hand() -> None:
    """1 2 3 4 against 1 3 2 4: five pairs agree, one does not. With the tie 1 1 2 against 1 2 3: two pairs agree and
    one is tied in one list, 2 / sqrt(2 · 3)."""
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    assert kendall_tau([1, 2, 3], [30, 20, 10]) == -1 and kendall_tau([5, 1, 9], [0.5, 0.1, 0.9]) == 1
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))
    assert kendall_tau([1, 1], [1, 2]) == kendall_tau([1], [1]) == kendall_tau([], []) == 0
    assert consistency([1, 2], [1, 2]) == 1 and consistency([1, 2], [2, 1]) == 0 and consistency([1, 1], [1, 2]) == 0.5


def test_tau_equals_scipys() -> None:
    from scipy.stats import kendalltau

    rng = np.random.default_rng(0)
    for n in (2, 5, 20):
        a, b = rng.integers(0, 6, n).astype(float), rng.standard_normal(n)
        found = kendalltau(a, b).statistic
        assert kendall_tau(a.tolist(), b.tolist()) == pytest.approx(0.0 if math.isnan(found) else found)


def test_extremes_are_things_and_not_places() -> None:
    assert same_extremes([3, 1, 2], [30, 10, 20]) and same_extremes([3, 1, 2, 2.5], [9, 1, 8, 2])
    assert not same_extremes([3, 1, 2], [3, 2, 1]) and not same_extremes([3, 1, 2], [2, 1, 3])


# Bad input ------------------------------------------------------------------------------------------------------


def test_bad_input_is_told_in_one_line() -> None:
    for reward in (MajorityVote(), SelfConsistency(), MajorityNovelty()):
        with pytest.raises(ValueError, match=rf'^{type(reward).__name__} needs the column "groups"'):
            reward(completions=["1"])
    with pytest.raises(ValueError, match=r"^the embedding of 2 texts is of shape \(3, 2\), or not finite"):
        MajorityNovelty(lambda _: np.ones((3, 2)))(completions=["1", "2"], groups=["q", "q"])
    with pytest.raises(UsageError, match=r"^letter groups have a positive size and width, not 0"):
        letter_groups(["a"], size=0)
    with pytest.raises(ValueError, match="have one length, not 1 and 2"):
        kendall_tau([1], [1, 2])
    with pytest.raises(ValueError, match="holds a score that is not finite"):
        kendall_tau([1, math.nan], [1, 2])
