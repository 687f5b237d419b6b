"""Families: who may judge whom, through wrappers, sums and functions that declare nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotelic.builtin import REWARDS
from autotelic.envs.metaworld import OBSERVATION
from autotelic.families import GROUND_TRUTH, declared, families_of, of_family, proxies
from autotelic.rewards.image.hub import CLIPScore
from autotelic.rewards.image.normalised import NormalisedSum
from autotelic.rewards.image.pictures import JPEGSize
from autotelic.rewards.log_ratio import LogRatio, scorer
from autotelic.rewards.models.judge import PairwiseJudge, YesNoJudge
from autotelic.rewards.models.rubric import RubricJudge
from autotelic.rewards.models.vlm import VLM
from autotelic.rewards.names import make_reward
from autotelic.rewards.progress.critics import CriticTraining, ProgressCritic
from autotelic.rewards.progress.end_conditions import EndConditions
from autotelic.rewards.progress.estimates import EpisodeProgress, FinalProgress, MeanProgress
from autotelic.rewards.progress.features import RelationFeatures
from autotelic.rewards.progress.frame_critics import FrameCritic, FrameTraining
from autotelic.rewards.progress.vlm_progress import VLAC
from autotelic.rewards.reward import Reward
from autotelic.rewards.text.consensus import MajorityVote
from autotelic.rewards.text.steps import MonteCarlo, WeakestStep
from autotelic.rewards.text.verifiers import Exact, Numeric

from .toys import TokenToy


def brief(completions: Any, **columns: Any) -> list[float]:
    return [1.0] * len(completions)


class Kind:
    """A progress model of a user's own."""

    kind = "absolute"

    def __call__(self, observations: Any, initial: Any, instructions: Any, references: Any = None) -> Any:
        return np.zeros(len(observations), np.float32)


def test_an_undeclared_function_is_a_proxy_of_its_source() -> None:
    own = f"undeclared:{Path(__file__).resolve()}"
    assert families_of(brief) == families_of(partial(brief, limit=3)) == Reward(brief).families == {own}
    assert families_of(Kind()) == {own}, "two functions of one file may share what they compute"
    assert not declared(families_of(brief)) and not declared(families_of(Exact(), brief))
    assert len(families_of(len)) == 1 and len(families_of(torch.sigmoid)) == 1, "built in"


def test_a_function_can_declare_them() -> None:
    @of_family("taste")
    def tasty(**columns: Any) -> list[float]:
        return []

    assert families_of(tasty) == {"taste"} and declared(families_of(tasty))
    assert Reward(brief, families=["taste"]).families == {"taste"}
    assert families_of(MajorityVote().votes) == {"majority vote"}, "a method has its object's"


def test_sums_and_wrappers_unite_them() -> None:
    right, votes = Reward(Exact()), Reward(MajorityVote())
    assert (0.5 * right).families == {GROUND_TRUTH}
    assert (right + 0.1 * votes).families == {GROUND_TRUTH, "majority vote"}
    assert families_of((right + votes).combine) == {GROUND_TRUTH, "majority vote"}
    assert NormalisedSum([(1.0, Reward(JPEGSize())), (1.0, votes)]).families == {"jpeg", "majority vote"}
    assert proxies((right + votes).families) == {"majority vote"}
    assert families_of(Exact()) == families_of(Numeric()) and not proxies(families_of(Exact()))


def test_critics_of_one_kind_are_one_family_whatever_their_seeds() -> None:
    features = RelationFeatures(OBSERVATION)
    first, second = (ProgressCritic("absolute", features, CriticTraining(seed=seed)) for seed in (1, 2))
    pairs, ends = ProgressCritic("pairwise", features), EndConditions(features)
    looking = [FrameCritic("pairwise", FrameTraining(seed=seed)) for seed in (1, 2)]
    assert families_of(first) == families_of(second) and families_of(looking[0]) == families_of(looking[1])
    kinds = [families_of(model) for model in (first, pairs, ends, *looking[:1])]
    assert len(set(kinds)) == 4 and all(name.startswith("demonstrations:") for (name,) in kinds)
    both = MeanProgress([first, ends])
    assert EpisodeProgress(both).families == families_of(first, ends)
    assert FinalProgress(hindsight=EpisodeProgress(both)).families == FinalProgress(model=both).families
    assert FinalProgress(model=both).families == families_of(first, ends)
    assert not families_of(EpisodeProgress(pairs)) & FinalProgress(model=both).families
    assert not declared(FinalProgress().families), "whose estimate it is, nobody knows"


def test_judges_are_of_their_askers_family() -> None:
    one, other = VLM("one"), VLM("other")
    assert families_of(YesNoJudge(asker=one)) == families_of(PairwiseJudge("x", asker="one")) == {"vlm:one"}
    assert families_of(VLAC(one)) == families_of(RubricJudge("one")) == {"vlm:one"}
    assert families_of(YesNoJudge(asker=other)) == {"vlm:other"}
    assert not declared(families_of(YesNoJudge(asker=lambda prompts: [])))
    assert CLIPScore().families == {"clip"} != CLIPScore("google/siglip-base-patch16-224").families


def test_rewards_by_the_policy_are_the_policys() -> None:
    toy = TokenToy(1)
    score = scorer(toy)
    assert LogRatio(score, scorer(toy, "base")).families == {"policy:self", "policy:base"}
    steps = WeakestStep(MonteCarlo(score, Exact()), Exact())  # type: ignore[arg-type]
    assert steps.families == {"policy:self", GROUND_TRUTH}


@pytest.mark.parametrize("name", [name for names in REWARDS.values() for name in names if name != "text"])
def test_every_reward_by_name_declares_its_families(name: str) -> None:
    reward = make_reward(name)
    assert reward.families and declared(reward.families)
