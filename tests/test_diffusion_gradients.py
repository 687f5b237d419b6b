"""Reward gradients through the chain against plain autograd, and pictures that every method makes brighter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.diffusion.gradients import OneStep, Renoised, RewardGradient, Truncation, check_differentiable
from autotelic.diffusion.policy import DenoisingPolicy
from autotelic.errors import UsageError
from autotelic.rewards.gradient import GradientKept
from autotelic.rewards.reward import Reward
from autotelic.testing.held import Held
from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import Optimisation, PolicyLearner, backpropagate
from autotelic.trainers.objectives import ForwardNFT, KLPenalty, PairwiseRegression, PPOClip, WeightedImitation
from autotelic.trainers.pairing import all_pairs, best_of_group, optimality
from autotelic.trainers.randomness import generator
from autotelic.trainers.scoring import score
from autotelic.types import Batch, Evaluation

from .small_drawing import TASKS, Calls, assert_same, gradients, policy_of, shake, shapes_policy, with_column


class Stripes:
    """A reward with another gradient at every pixel, and another for every prompt."""

    differentiable = True

    def __call__(self, outputs: Tensor, prompts: list[str], **_: Any) -> Tensor:
        pattern = torch.linspace(-1, 1, outputs[0].numel()).sin().reshape(outputs.shape[1:])
        sign = torch.tensor([1.0 if "red" in prompt else -0.5 for prompt in prompts])
        return sign * (outputs**2 * pattern).sum((1, 2, 3))


def brightness(outputs: Tensor, **_: Any) -> Tensor:
    return outputs.mean((1, 2, 3))


OBJECTIVE = RewardGradient(Stripes())


def sampled(policy: DenoisingPolicy, *, other_weights: bool) -> Batch:
    batch = policy.collate(policy.act(TASKS, 3))
    if other_weights:
        shake(policy, 0.02, seed=2)
    return batch


def by_hand(policy: DenoisingPolicy, batch: Batch, first: int, last: int | None = None) -> Tensor:
    """Pictures [B, 3, H, W] with one graph over the steps from first on, begun at what was sampled; with ``last`` the
    estimate of the picture at that step."""
    chain, rollouts = policy.sampler, batch.payload["rollouts"]
    shape = (chain.steps + 1, *policy.adapter.latent_shape)
    noise = torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(int(r.payload["seed"]))) for r in rollouts]
    )
    x = torch.stack([r.payload["path"][first] for r in rollouts])
    condition = policy.adapter.encode([r.task.prompt for r in rollouts])
    nothing = policy.adapter.unconditional(len(x))
    for i in range(first, chain.steps if last is None else last + 1):
        time = chain.levels.timesteps[i].expand(len(x))
        seen = chain.levels.input_scale[i] * x
        out = policy.adapter.predict_guided(policy.module, seen, time, condition, nothing, policy.guidance)
        if i == last:
            x = chain.clean_x[i] * x + chain.clean_p[i] * out
        else:
            x = chain.mean_x[i] * x + chain.mean_p[i] * out + chain.std[i] * noise[:, i + 1]
    return policy.adapter.decode(x)


def gradient_by_hand(policy: DenoisingPolicy, batch: Batch, pictures: Tensor) -> list[Tensor]:
    prompts = [r.task.prompt for r in batch.payload["rollouts"]]
    copies = len(pictures) // len(prompts)
    (-Stripes()(pictures, [p for p in prompts for _ in range(copies)]).mean()).backward()
    return gradients(policy)


def assert_gradient(policy: DenoisingPolicy, batch: Batch, right: list[Tensor], share: float = 1e-4) -> None:
    """At once, in pieces, with and without checkpointing."""
    for checkpointing, rows in ((True, 1024), (True, 4), (False, 1024), (False, 4)):
        policy.checkpointing, policy.micro_batch_rows = checkpointing, rows
        backpropagate(policy, OBJECTIVE, batch)
        assert_same(gradients(policy), right, share)


@pytest.mark.parametrize("other_weights", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("steps", [4, 2, 1], ids=["whole", "last-2", "last-1"])
def test_the_gradient_of_a_chain_is_that_of_autograd(steps: int, other_weights: bool) -> None:
    policy = shapes_policy(4)
    batch = sampled(policy, other_weights=other_weights)
    right = gradient_by_hand(policy, batch, by_hand(policy, batch, 4 - steps))
    batch = batch if steps == 4 else Truncation("fixed", steps)(batch)
    assert_gradient(policy, batch, right)


def test_rows_may_be_cut_in_different_ways() -> None:
    policy = shapes_policy(4)
    batch = sampled(policy, other_weights=True)
    cuts = [3, 1, 4, 1, 3, 2]
    rows = [by_hand(policy, batch.select(torch.tensor([i])), 4 - cut) for i, cut in enumerate(cuts)]
    right = gradient_by_hand(policy, batch, torch.cat(rows))
    batch = with_column(batch, "last_steps", cuts)
    torch.testing.assert_close(policy.evaluate_actions(batch, {"outputs"}).outputs, torch.cat(rows), rtol=0, atol=1e-5)
    assert_gradient(policy, batch, right)


@pytest.mark.parametrize("other_weights", [False, True], ids=["on-policy", "off-policy"])
def test_one_step_judges_what_the_model_sees_there(other_weights: bool) -> None:
    policy = shapes_policy(4)
    batch = OneStep(0.5, 0.75)(sampled(policy, other_weights=other_weights))
    assert batch.columns["only_step"].tolist() == [2] * 6
    right = gradient_by_hand(policy, batch, by_hand(policy, batch, 2, last=2))
    assert_gradient(policy, batch, right)


def test_renoised_pictures_average_the_last_step() -> None:
    policy = shapes_policy(4)
    batch = Renoised(2)(sampled(policy, other_weights=True))
    sigma = float(policy.sampler.levels.sigma[3])
    clean = batch.payload["path"][:, -1].repeat_interleave(2, 0)
    draws = [generator("renoised", int(seed), copy) for seed in batch.payload["seed"] for copy in range(2)]
    x = (1 - sigma) * clean + sigma * torch.stack([torch.randn(3, 16, 16, generator=draw) for draw in draws])
    condition = policy.adapter.encode([r.task.prompt for r in batch.payload["rollouts"] for _ in range(2)])
    flow = policy.adapter.predict(policy.module, x, torch.full((12,), 1000 * sigma), condition)
    pictures = policy.adapter.decode(x - sigma * flow)
    found = policy.evaluate_actions(batch, {"outputs"}).outputs
    assert found is not None and found.shape == (6, 2, 3, 16, 16)
    torch.testing.assert_close(found.flatten(0, 1), pictures.detach(), rtol=0, atol=1e-5)
    assert_gradient(policy, batch, gradient_by_hand(policy, batch, pictures))
    calls = Calls(policy.module)
    policy.micro_batch_rows = 4
    backpropagate(policy, OBJECTIVE, batch)
    assert max(calls.rows) == 4


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_gradients_run_through_guidance_adapters_and_decoder(family: str) -> None:
    policy = policy_of(family, 3, rank=2, noise=0.05, guidance=3.0)
    batch = sampled(policy, other_weights=True)
    right = gradient_by_hand(policy, batch, by_hand(policy, batch, 0))
    assert_gradient(policy, batch, right, 1e-3)


def test_a_chain_is_cut_in_one_way() -> None:
    policy = shapes_policy(4)
    batch = OneStep()(Truncation("fixed", 2)(sampled(policy, other_weights=False)))
    with pytest.raises(ValueError, match="cut in one way: last_steps and only_step are both there"):
        policy.evaluate_actions(batch, {"outputs"})


def test_outputs_are_those_that_were_sampled_or_that_the_weights_of_now_would_draw() -> None:
    policy = shapes_policy(4)
    rollouts = policy.act(TASKS, 2, key=(5,))
    batch = policy.collate(rollouts)
    calls = Calls(policy.module)
    same = policy.evaluate_actions(batch, {"outputs"}).outputs
    assert same is not None and calls.rows == [], "what was sampled by these weights is not drawn again"
    assert torch.equal(same, torch.stack([r.output for r in rollouts]))
    shake(policy, 0.02, seed=2)
    again = policy.evaluate_actions(batch, {"outputs"}).outputs
    drawn = torch.stack([r.output for r in policy.act(TASKS, 2, key=(5,))])
    torch.testing.assert_close(again, drawn, rtol=0, atol=1e-5)
    assert float((drawn - same).abs().max()) > 1e-3


def test_a_reward_gradient_may_stand_beside_a_penalty() -> None:
    """The sum's gradient is the sum of gradients, in every size of pieces."""
    policy = shapes_policy(4)
    references = {"start": policy.fork("start")}
    batch = sampled(policy, other_weights=True)
    penalty = KLPenalty("start", "exact")
    right = gradient_by_hand(policy, batch, by_hand(policy, batch, 0))
    loss, _ = penalty(policy.forward_decisions(batch, penalty.needs, references), batch)
    (0.5 * loss).backward()
    right = [a + b for a, b in zip(right, gradients(policy), strict=True)]
    for rows in (1024, 5):
        policy.micro_batch_rows = rows
        backpropagate(policy, OBJECTIVE + 0.5 * penalty, batch, references)
        assert_same(gradients(policy), right)


def test_checkpointing_holds_one_step() -> None:
    steps = 8
    policy = shapes_policy(steps)
    batch = sampled(policy, other_weights=True)
    most = {}
    for checkpointing in (True, False):
        policy.checkpointing = checkpointing
        with Held(policy.module) as kept:
            backpropagate(policy, OBJECTIVE, batch)
        most[checkpointing] = kept.most
    assert most[False] > 1e6
    assert most[True] < 1.2 * most[False] / steps


# --- columns -------------------------------------------------------------------------------------


def rounds(count: int) -> list[Batch]:
    policy = shapes_policy(10)
    batch = policy.collate(policy.act(TASKS, 1))
    return [replace(batch, payload=batch.payload | {"round": torch.tensor([i, i])}) for i in range(count)]


def test_cuts_are_drawn_once_per_update_within_their_range() -> None:
    batches = rounds(200)

    def values(change: Callable[[Batch], Batch], name: str) -> list[int]:
        columns = [change(batch).columns[name] for batch in batches]
        assert all(len(column.unique()) == 1 and len(column) == 2 for column in columns)
        return [int(column[0]) for column in columns]

    assert set(values(Truncation("uniform", 2, 5), "last_steps")) == {2, 3, 4, 5}
    assert set(values(Truncation("uniform", 9, 20), "last_steps")) == {9, 10}, "no more than there are steps"
    assert set(values(Truncation("fixed", 3), "last_steps")) == {3}
    gaussian = values(Truncation("gaussian", 5, 2), "last_steps")
    assert set(gaussian) <= set(range(1, 11)) and 4.5 < sum(gaussian) / 200 < 5.5 and len(set(gaussian)) > 5
    assert set(values(OneStep(), "only_step")) == {7, 8, 9}
    assert set(values(OneStep(0.0, 0.2), "only_step")) == {0, 1}
    assert set(values(OneStep(1.0, 1.0), "only_step")) == {9}
    assert values(Truncation(), "last_steps") == values(Truncation(), "last_steps")


# --- the objective's numbers ---------------------------------------------------------------------


def test_the_loss_is_what_the_paper_says() -> None:
    """Pictures of brightness 0.2 and 0.8: -E[r], E|r - target|, E max(0, ceiling - r), and their slopes."""
    policy = shapes_policy(4)
    batch = policy.collate([policy.act(TASKS[:1], 1)[0]] * 2)
    pictures = torch.tensor([0.2, 0.8]).reshape(2, 1, 1, 1).expand(2, 3, 4, 4).clone()

    def of(objective: RewardGradient) -> tuple[float, list[float]]:
        now = Evaluation(torch.zeros(2, 4), outputs=pictures).leaves()
        loss, metrics = objective(now, batch)
        assert metrics["objective/reward"] == pytest.approx(0.5)
        slope = now.gradient_of(loss).outputs
        assert slope is not None
        return float(loss), [round(float(s.sum()), 4) for s in slope]

    reward = Reward(brightness, differentiable=True)
    assert of(RewardGradient(reward)) == (pytest.approx(-0.5), [-0.5, -0.5])
    assert of(RewardGradient(reward, target=0.6)) == (pytest.approx((0.4 + 0.2) / 2), [-0.5, 0.5])
    assert of(RewardGradient(reward, ceiling=0.6)) == (pytest.approx(0.4 / 2), [-0.5, 0.0])
    assert of(RewardGradient(0.75 * reward + 0.25 * reward)) == (pytest.approx(-0.5), [-0.5, -0.5])
    batch.totals = {"rollouts": 4.0}  # this process has two of four
    assert of(RewardGradient(reward)) == (pytest.approx(-0.25), [-0.25, -0.25])


@pytest.mark.parametrize("target", [None, 0.3])
def test_a_reward_whose_gradient_was_kept_is_asked_once_and_the_gradient_is_the_same(target: float | None) -> None:
    calls = []

    class Counted(Stripes):
        def __call__(self, outputs: Tensor, prompts: list[str], **_: Any) -> Tensor:
            calls.append(len(outputs))
            return super().__call__(outputs, prompts)

    policy = shapes_policy(4)
    kept = GradientKept(Reward(Counted()))
    rollouts = policy.act(TASKS, 3)
    score(rollouts, kept)
    plain = [r.scores["total"] for r in rollouts]
    score(rollouts, Stripes())
    assert [r.scores["total"] for r in rollouts] == plain and calls == [6]
    found = []
    for reward in (kept, Stripes()):
        policy.module.zero_grad()
        batch = Truncation("fixed", 2)(policy.collate(rollouts))
        metrics = backpropagate(policy, RewardGradient(reward, target), batch.select(torch.tensor([4, 1, 2])))
        found.append((gradients(policy), metrics))
    assert calls == [6], "the update asked for nothing"
    assert_same(*(mine for mine, _ in found))
    assert found[0][1] == pytest.approx(found[1][1])
    shake(policy, 0.02, seed=2)
    backpropagate(policy, RewardGradient(kept, target), Truncation("fixed", 2)(policy.collate(rollouts)))
    assert calls == [6, 6], "other weights draw other pictures"


def test_a_reward_without_gradient_is_refused() -> None:
    line = "reward brightness has no gradient: diffusion/prdp, ddpo, .* learn without one"
    for reward in (brightness, Reward(brightness)):
        with pytest.raises(UsageError, match=line):
            check_differentiable(reward)
    check_differentiable(Stripes())
    with pytest.raises(UsageError, match="has no gradient"):
        check_differentiable(Reward(Stripes()) + Reward(brightness))
    policy = shapes_policy(4)
    batch = sampled(policy, other_weights=False)
    for wrong in (
        lambda **c: [0.0] * 6,
        lambda images, **c: images.detach().mean((1, 2, 3)),
        lambda images, **c: images.mean()[None],
    ):
        with pytest.raises(ValueError, match="one score per picture"):
            backpropagate(policy, RewardGradient(wrong), batch)
    with pytest.raises(ValueError, match="no outputs"):
        OBJECTIVE(Evaluation(torch.zeros(6, 4)), batch)


# --- learning ------------------------------------------------------------------------------------

METHODS: dict[str, dict[str, Any]] = {
    "alignprop": {"objective": RewardGradient(Reward(brightness, differentiable=True)), "lr": 2e-3, "rounds": 8},
    "alignprop-1": {
        "objective": RewardGradient(Reward(brightness, differentiable=True)),
        "prepare": [Truncation("fixed", 1)],
        "lr": 2e-3,
        "rounds": 8,
    },
    "draft-lv": {
        "objective": RewardGradient(Reward(brightness, differentiable=True)),
        "prepare": [Renoised(2)],
        "lr": 2e-3,
        "rounds": 8,
    },
    "refl": {
        "objective": RewardGradient(Reward(brightness, differentiable=True), ceiling=2.0),
        "prepare": [OneStep()],
        "lr": 2e-3,
        "rounds": 8,
    },
    "ppo": {"objective": PPOClip(), "advantage": grpo(), "lr": 2e-3, "rounds": 20},
    "pairwise": {"objective": PairwiseRegression(2e-4, "start"), "prepare": [all_pairs], "lr": 2e-3, "rounds": 20},
    "nft": {"objective": ForwardNFT(), "prepare": [optimality], "lr": 2e-3, "rounds": 20},
    "raft": {
        "objective": WeightedImitation(decisions="forward"),
        "prepare": [best_of_group],
        "lr": 5e-3,
        "rounds": 20,
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_pictures_grow_brighter(name: str) -> None:
    method = dict(METHODS[name])
    policy = shapes_policy(4, noise=0.02)
    rounds = method.pop("rounds")
    optimisation = Optimisation(method.pop("lr"))
    learner = PolicyLearner(
        policy, method.pop("objective"), optimisation, references={"start": policy.fork("start")}, **method
    )

    def mean() -> float:
        return float(torch.stack([r.output for r in policy.act(TASKS, 16, key=(99,))]).mean())

    before = mean()
    for i in range(rounds):
        rollouts = policy.act(TASKS, 8, key=(i,))
        score(rollouts, Reward(brightness, differentiable=True))
        learner.update(rollouts)
    assert mean() - before > 0.04
