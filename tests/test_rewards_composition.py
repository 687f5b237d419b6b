"""Several rewards at once: normalised within prompts, and named on a command line."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from autotelic.errors import UsageError
from autotelic.plugins import BUILT_IN, named, require
from autotelic.rewards.image.normalised import NormalisedSum
from autotelic.rewards.image.pictures import Colourfulness, JPEGSize
from autotelic.rewards.names import compose, make_reward
from autotelic.rewards.reward import Reward, WeightedSum
from autotelic.trainers.scoring import RewardError, score
from autotelic.types import Rollout, Task


def quality(quality: Sequence[float | None], **_: Any) -> Sequence[float | None]:
    return quality


def size(size: Sequence[float | None], **_: Any) -> Sequence[float | None]:
    return size


def fussy(size: Sequence[float], **_: Any) -> list[float]:
    return [1 / value for value in size]


def rollout(group: str, sample: int, **extra: Any) -> Rollout:
    task = Task(f"{group}/{sample}", "a prompt", extra=extra)
    mask = torch.ones(1, dtype=torch.bool)
    return Rollout(task, "output", {}, torch.zeros(1), mask, torch.zeros(1, dtype=torch.long), group=group)


def test_terms_are_normalised_within_their_prompts_before_they_are_weighted() -> None:
    """Prompt a: quality 1, 2, 3 has mean 2 and std 1; size 0, 0, 300 has mean 100 and std 100 sqrt(3).
    Prompt b: quality 5, 9 has mean 7 and std sqrt(8)."""
    both = NormalisedSum([(0.5, Reward(quality)), (2.0, Reward(size))])
    scores = both(quality=[1, 5, 2, 9, 3], size=[0, 7, 0, 7, 300], groups=["a", "b", "a", "b", "a"])
    third, eighth = 1 / 3**0.5, 2 / 8**0.5
    expected = [-0.5 - 2 * third, -0.5 * eighth, -2 * third, 0.5 * eighth, 0.5 + 4 * third]
    assert scores["total"] == pytest.approx(expected)
    assert scores["quality"] == [1, 5, 2, 9, 3] and scores["size"] == [0, 7, 0, 7, 300], "raw terms are kept"


def test_a_term_that_does_not_apply_is_left_out_of_the_sum_and_of_the_statistics() -> None:
    both = NormalisedSum([(1.0, Reward(quality)), (3.0, Reward(size))])
    scores = both(quality=[1, None, 3, None], size=[4, 6, None, None], groups=["a"] * 4)
    half = 2**-0.5  # of two samples, each is std / sqrt(2) from the mean
    assert scores["total"] == [pytest.approx(-half - 3 * half), pytest.approx(3 * half), pytest.approx(half), None]


def test_equal_scores_and_single_samples_contribute_nothing() -> None:
    one = NormalisedSum([(1.0, Reward(quality))])
    assert one(quality=[0.1, 0.1, 0.1, 5.0], groups=["a", "a", "a", "b"])["total"] == [0, 0, 0, 0]
    assert one(quality=[2.0, None], groups=["a", "a"])["total"] == [0, None]


def test_a_spread_below_the_floor_is_not_blown_up() -> None:
    one = NormalisedSum([(1.0, Reward(quality))], std_floor=0.5)
    assert one(quality=[1.0, 1.1], groups=["a", "a"])["total"] == pytest.approx([-0.1, 0.1])
    assert one(quality=[1.0, 9.0], groups=["a", "a"])["total"] == pytest.approx([-(2**-0.5), 2**-0.5])


def test_tensors_and_terms_with_several_scores_are_normalised_by_their_totals() -> None:
    def judged(**_: Any) -> dict[str, Any]:
        return {"style": [7.0, 7.0], "total": torch.tensor([1.0, 3.0])}

    scores = NormalisedSum([(1.0, Reward(judged))])(groups=["a", "a"])
    assert scores["total"] == pytest.approx([-(2**-0.5), 2**-0.5])
    assert list(scores["judged"]) == [1, 3] and scores["style"] == [7.0, 7.0]


def test_the_terms_of_a_weighted_sum_and_of_a_normalised_one_are_the_same() -> None:
    raw = 0.3 * Reward(quality) + 2 * Reward(size)
    normalised = pickle.loads(pickle.dumps(NormalisedSum(raw.terms)))
    assert normalised.name == "normalised 0.3 quality + 2 size" and not normalised.differentiable
    assert [(weight, term.name) for weight, term in normalised.terms] == [(0.3, "quality"), (2, "size")]


def test_a_normalised_sum_is_not_flattened_into_a_raw_one() -> None:
    both = NormalisedSum([(1.0, Reward(quality)), (1.0, Reward(size))])
    plain = Reward(fussy)
    for first, second in ((both, plain), (plain, both), (plain + plain, both)):
        with pytest.raises(UsageError, match="not added to another reward: put that reward among its terms"):
            first + second
    with pytest.raises(UsageError, match="not weighted as a whole: give its terms their weights"):
        2 * both


def test_what_cannot_be_normalised_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one reward"):
        NormalisedSum([])
    with pytest.raises(UsageError, match="two rewards are named quality"):
        NormalisedSum([(1.0, Reward(quality)), (2.0, Reward(quality))])
    with pytest.raises(UsageError, match="std_floor is 0"):
        NormalisedSum([(1.0, Reward(quality))], std_floor=0)
    one = NormalisedSum([(1.0, Reward(quality))])
    with pytest.raises(ValueError, match='needs the column "groups"'):
        one(quality=[1.0])
    with pytest.raises(ValueError, match="reward quality gives a score per segment"):
        one(quality=[[1.0, 2.0]], groups=["a"])
    with pytest.raises(ValueError, match="reward quality returned inf"):
        one(quality=[float("inf")], groups=["a"])
    assert one(quality=[float("nan"), 1.0], groups=["a", "a"])["total"] == [None, 0.0]
    with pytest.raises(ValueError, match="reward quality returned 1 scores for 2 samples"):
        one(quality=[1.0], groups=["a", "a"])


def test_rollouts_are_scored_and_the_guilty_term_is_named() -> None:
    rollouts = [rollout("a", 0, quality=1.0, size=4.0), rollout("a", 1, quality=3.0, size=2.0)]
    both = NormalisedSum([(1.0, Reward(quality)), (0.0, Reward(fussy))])
    means = score(rollouts, both)
    assert means == {"reward/quality": 2.0, "reward/fussy": 0.375, "reward": 0.0}
    assert [r.scores["total"] for r in rollouts] == pytest.approx([-(2**-0.5), 2**-0.5])
    rollouts = [rollout("a", 2, quality=3.0, size=0.0)]
    with pytest.raises(RewardError, match=r"^reward fussy raised ZeroDivisionError: .*test_rewards_composition.py"):
        score(rollouts, NormalisedSum([(1.0, Reward(quality)), (0.0, Reward(fussy))]))


@pytest.mark.parametrize("name", BUILT_IN["reward"])
def test_every_name_leads_to_a_class_that_scores(name: str) -> None:
    assert isinstance(require("reward", named("reward", name)), type)


def test_a_name_makes_its_reward() -> None:
    small, large = make_reward("jpeg"), make_reward("incompressible")
    assert isinstance(small.function, JPEGSize) and (small.name, large.name) == ("jpeg", "incompressible")
    images = torch.zeros(1, 3, 8, 8)
    assert small(outputs=images)["total"] == [-score for score in large(outputs=images)["total"]]  # type: ignore[operator]
    assert make_reward("colourfulness").differentiable and not small.differentiable
    siglip: Any = make_reward("siglip", device="meta").function  # nothing is loaded before the first call
    assert siglip.probability and siglip.device == "meta"


def test_a_reward_of_a_file_or_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards_of_this_test.py").write_text(
        """
from autotelic.rewards.reward import Reward
def tidy(images, **_): return [1.0 for _ in images]
class Messy:
    differentiable = True
    def __call__(self, images, **_): return [2.0 for _ in images]
both = 0.5 * Reward(tidy) + 2 * Reward(Messy())
number = 3
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    for place in (tmp_path / "my_rewards_of_this_test.py", "my_rewards_of_this_test"):
        tidy, messy, both = (make_reward(f"{place}:{name}") for name in ("tidy", "Messy", "both"))
        assert (tidy.name, messy.name, both.name) == ("tidy", "Messy", "0.5 tidy + 2 Messy")
        assert both(images=[0, 0])["total"] == [4.5, 4.5] and messy.differentiable and not tidy.differentiable
        weighted = compose([f"{place}:tidy:0.25"])
        assert weighted(images=[0])["total"] == [0.25]
        with pytest.raises(UsageError, match=r"the reward int has no __call__"):
            make_reward(f"{place}:number")
        with pytest.raises(UsageError, match=r'unknown name ".*:absent"'):
            make_reward(f"{place}:absent")


def test_what_is_not_there_is_told_in_one_line() -> None:
    with pytest.raises(
        UsageError, match=r'^unknown reward "jepg": did you mean jpeg\? \(your own: package.module:NAME'
    ):
        make_reward("jepg")
    with pytest.raises(UsageError, match=r"^cannot import no_such_module: ModuleNotFoundError: No module named"):
        make_reward("no_such_module:f")
    with pytest.raises(UsageError, match=r"^there is no file nowhere.py"):
        make_reward("nowhere.py:f")
    with pytest.raises(UsageError, match=r'^the weight of the reward jpeg is "much", which is no number'):
        compose(["jpeg:much"])
    with pytest.raises(UsageError, match=r"^no reward is named: there is aesthetic, boxes,"):
        compose([])
    with pytest.raises(UsageError, match="two rewards are named jpeg"):
        compose(["jpeg", "jpeg:2"])


def test_a_single_reward_is_taken_as_it_is_and_several_are_normalised() -> None:
    assert isinstance(compose(["colourfulness"]).function, Colourfulness)
    third = compose(["colourfulness:0.3"])
    assert isinstance(third, WeightedSum) and not isinstance(third, NormalisedSum) and third.differentiable
    several = compose(["jpeg:-0.5", "colourfulness", "sharpness:1e1"], normalise=True)
    assert isinstance(several, NormalisedSum) and not several.differentiable
    assert [(w, t.name) for w, t in several.terms] == [(-0.5, "jpeg"), (1, "colourfulness"), (10, "sharpness")]
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scores = several(outputs=images, groups=["a", "a", "b", "b"])
    assert list(scores) == ["jpeg", "colourfulness", "sharpness", "total"]
    assert scores["total"][0] == pytest.approx(-scores["total"][1])  # type: ignore[operator]
