"""What states are worth: GAE and the loss of values by hand, beside Stable-Baselines3, and on a chain that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autotelic.errors import UsageError
from autotelic.trainers.advantages import GAE, ReinforcePlusPlus
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.minibatches import Minibatches
from autotelic.trainers.normalization import RewardNormalizer, RunningMeanStd
from autotelic.trainers.objectives import DPO, PPOClip, ValueLoss
from autotelic.trainers.policy import TorchPolicy, collate
from autotelic.types import Batch, Evaluation, Rollout, Task

from .toys import TokenToy

D = torch.float64


def batch_of(
    rewards: list[list[float]], values: list[list[float]], last: list[float] | None = None, per_segment: int = 1
) -> Batch:
    """Rows of S segments, shorter ones padded; ``last`` is None where nothing follows anywhere."""
    longest = max(map(len, rewards))
    rows = [row + [torch.nan] * (longest - len(row)) for row in rewards]
    worth = [row + [0.0] * (longest - len(row)) for row in values]
    lengths = torch.tensor([len(row) for row in rewards])
    segments = torch.arange(longest).repeat_interleave(per_segment).expand(len(rows), -1)
    return Batch(
        payload={},
        mask=segments < lengths[:, None],
        segments=segments,
        dims=torch.ones_like(segments),
        log_probs={},
        rewards={"total": torch.tensor(rows, dtype=D)},
        groups=torch.eye(len(rows), dtype=torch.bool),
        values=torch.tensor(worth, dtype=D),
        last_values=None if last is None else torch.tensor(last, dtype=D),
    )


def near(found: Tensor, expected: Any, tolerance: float = 1e-9) -> bool:
    return torch.allclose(found.to(D), torch.as_tensor(expected, dtype=D), atol=tolerance, rtol=0)


# --- GAE ------------------------------------------------------------------------------------------


def test_gae_by_hand() -> None:
    """gamma 1/2, lambda 1/2. One that was terminated, one that was cut off at a state worth 4, one of one segment."""
    rewards, values = [[1.0, 2.0, 3.0], [1.0, 2.0], [5.0]], [[2.0, 4.0, 6.0], [2.0, 4.0], [1.0]]
    batch = batch_of(rewards, values, [0.0, 4.0, 0.0])
    # Deltas of the first: 1 + 2 - 2 = 1, 2 + 3 - 4 = 1, 3 + 0 - 6 = -3; of the second: 1, 2 + 2 - 4 = 0.
    plain = GAE(0.5, 0.5, normalize=False)
    expected = [[1 + (1 - 3 / 4) / 4, 1 - 3 / 4, -3], [1, 0, 0], [4, 0, 0]]
    assert near(plain(batch), expected)
    assert near(plain.value_targets(batch), torch.tensor(expected, dtype=D) + batch.values)
    chosen = torch.tensor([1 + (1 - 3 / 4) / 4, 1 - 3 / 4, -3, 1, 0, 4], dtype=D)
    by_hand = (chosen - chosen.mean()) / (chosen.std() + 1e-8)
    assert near(GAE(0.5, 0.5)(batch)[batch.mask], by_hand)
    assert not near(GAE(0.6, 0.5, normalize=False)(batch), expected), "gamma"
    assert not near(GAE(0.5, 0.6, normalize=False)(batch), expected), "lambda"


def test_lambda_one_is_the_return_and_zero_is_one_step() -> None:
    batch = batch_of([[1.0, 2.0, 3.0]], [[9.0, 8.0, 7.0]], [10.0])
    assert near(GAE(0.5, 1).value_targets(batch), [[1 + 1 + 3 / 4 + 10 / 8, 2 + 3 / 2 + 10 / 4, 3 + 5]])
    assert near(GAE(0.5, 0).value_targets(batch), [[1 + 4, 2 + 3.5, 3 + 5]])


def test_every_decision_of_a_segment_has_its_advantage() -> None:
    batch = batch_of([[1.0, 2.0]], [[0.5, 0.25]], per_segment=3)
    found = GAE(0.5, 0.5, normalize=False)(batch)
    assert near(found[:, :3], [[1 + 0.125 - 0.5 + 1.75 / 4] * 3]) and near(found[:, 3:], [[1.75] * 3])


def test_what_nobody_decided_is_passed_over() -> None:
    """Segment 1 is the environment's own: it has no value, and what it paid is due to the segment before."""
    whole = batch_of([[1.0, 2.0, 3.0]], [[2.0, 50.0, 6.0]])
    mask = whole.mask.clone()
    mask[0, 1] = False
    found = GAE(0.5, 0.5, normalize=False)(replace(whole, mask=mask))
    assert near(found, [[(1 + 2) + 3 - 2 + (3 - 6) / 4, 0, -3]])


def test_gae_is_that_of_stable_baselines3() -> None:
    """Numbers of RolloutBuffer.compute_returns_and_advantage (2.9.2), gamma .9, lambda .8, three environments of six
    steps: one goes on, one is over at the last step, one was over after three and goes on."""
    rewards = [
        [0.841, -0.757, 0.657, -0.544, 0.42, -0.288],
        [0.909, -0.959, 0.989, -1.0, 0.991, -0.961],
        [0.141, -0.279, 0.412],
        [-0.537, 0.65, -0.751],
    ]
    values = [
        [-0.416, 0.284, -0.146, 0.004, 0.137, -0.275],
        [-0.99, 0.96, -0.911, 0.844, -0.76, 0.66],
        [-0.654, 0.754, -0.839],
        [0.907, -0.958, 0.989],
    ]
    advantages = [
        [1.05702, -0.63275, 0.74951, -0.07929, 0.47974, 0.617],
        [1.5427, -1.69486, 1.45005, -1.67993, 1.17788, -1.621],
        [0.83469, -0.88738, 1.251, 0, 0, 0],
        [-1.29294, 1.4073, -1.515, 0, 0, 0],
    ]
    batch = batch_of(rewards, values, [0.7, 0, 0, 0.25])
    assert near(GAE(0.9, 0.8, normalize=False)(batch), advantages, 1e-5)
    targets = GAE(0.9, 0.8).value_targets(batch)
    assert near(targets[0], [0.64102, -0.34875, 0.60351, -0.07529, 0.61674, 0.342], 1e-5)


def test_shaping_is_paid_too() -> None:
    batch = batch_of([[1.0, 2.0]], [[0.0, 0.0]], per_segment=2)
    shaped = replace(batch, shaping=torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=D))
    assert near(GAE(1, 1).value_targets(shaped), [[4.0, 2.7]])


def test_explained_variance_by_hand() -> None:
    batch = batch_of([[0.0, 0.0, 0.0]], [[1.0, 2.0, 6.0]])
    told = GAE().metrics(replace(batch, value_targets=torch.tensor([[1.0, 3.0, 5.0]], dtype=D)))
    # Targets vary by 8/3; what is missed is 0, 1, -1, which varies by 2/3.
    assert told["values/explained_variance"] == pytest.approx(0.75)
    assert told["values/mean"] == pytest.approx(3) and told["values/target_mean"] == pytest.approx(3)


# --- the loss of values ----------------------------------------------------------------------------


def loss_of(objective: ValueLoss, now: list[list[float]], batch: Batch) -> tuple[float, Tensor, dict[str, float]]:
    leaves = Evaluation(torch.zeros(batch.mask.shape, dtype=D), values=torch.tensor(now, dtype=D)).leaves()
    loss, metrics = objective(leaves, batch)
    cotangent = leaves.gradient_of(loss).values
    assert cotangent is not None
    return float(loss), cotangent, metrics


def test_the_loss_of_values_by_hand() -> None:
    """Three segments count, of which two rows of two decisions each hold one and two."""
    batch = batch_of([[0.0, 0.0], [0.0]], [[1.0, 1.0], [1.0]], per_segment=2)
    batch = replace(batch, value_targets=torch.tensor([[3.0, 1.0], [2.0, 9.0]], dtype=D))
    now = [[2.0, 3.0], [1.1, 7.0]]
    loss, gradient, told = loss_of(ValueLoss(), now, batch)
    assert loss == pytest.approx((1 + 4 + 0.81) / 3) == told["values/loss"]
    assert near(gradient, [[-2 / 3, 4 / 3], [-1.8 / 3, 0]])
    # Near the old value of 1: 1.5, 1.5 and 1.1; the losses are 2.25 against 1, .25 against 4, and the same.
    loss, gradient, told = loss_of(ValueLoss(0.5), now, batch)
    assert loss == pytest.approx((2.25 + 4 + 0.81) / 3)
    assert near(gradient, [[0, 4 / 3], [-1.8 / 3, 0]]) and told["values/clip_fraction"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="None does not clip"):
        ValueLoss(0.0)


def test_its_divisor_counts_all_processes() -> None:
    batch = replace(batch_of([[0.0]], [[0.0]]), value_targets=torch.tensor([[2.0]], dtype=D), totals={"segments": 8.0})
    assert loss_of(ValueLoss(), [[0.0]], batch)[0] == pytest.approx(0.5)


# --- what is refused -------------------------------------------------------------------------------


def test_a_policy_without_values_is_refused_by_name() -> None:
    toy = TokenToy(1)
    with pytest.raises(ValueError, match="ValueLoss needs values, which asks for the capability values; TokenToy has"):
        PolicyLearner(toy, PPOClip() + ValueLoss(), Optimisation(), advantage=GAE())
    with pytest.raises(ValueError, match="GAE needs values, which asks for the capability values; TokenToy has"):
        PolicyLearner(toy, PPOClip(), Optimisation(), advantage=GAE())
    with pytest.raises(ValueError, match="ValueLoss needs value_targets, which GAE and its like set"):
        PolicyLearner(Walk(), PPOClip() + ValueLoss(), Optimisation(), advantage=ReinforcePlusPlus())
    with pytest.raises(ValueError, match="the learner fills it"):
        GAE()(replace(batch_of([[0.0]], [[0.0]]), values=None))
    with pytest.raises(UsageError, match="which segments tear apart"):
        references = {"reference": toy.fork("reference")}
        PolicyLearner(toy, DPO(), Optimisation(cut="segments"), references=references)


def test_a_reward_of_the_whole_has_nothing_after_it() -> None:
    """One number for an attempt that was cut off is all that there is; numbers of segments leave the rest open."""
    walk = Walk()
    rollouts = [walk.rollout([2, 3, 2], [0.0, 0.0, 0.0], truncated=cut) for cut in (True, True, False)]
    rollouts[0].scores["total"] = 1.0
    assert walk.collate(rollouts).truncated.tolist() == [False, True, False]  # type: ignore[union-attr]
    assert [r.terminated for r in rollouts] == [False, False, True]


# --- a chain whose values are known ----------------------------------------------------------------


class Walk(TorchPolicy):
    """A random walk over five states between two ends, of which the right one pays 1: states are worth 1/6 to 5/6."""

    capabilities = frozenset({"exact", "values"})

    def __init__(self) -> None:
        super().__init__(nn.Embedding(5, 1))
        nn.init.zeros_(self.module.weight)

    def rollout(self, states: list[int], rewards: list[float], *, truncated: bool = False) -> Rollout:
        """The states visited, of which the last one is where it was cut off, if it was."""
        steps, task = len(rewards), Task("walk", "walk")
        visited = torch.tensor(states[:steps])
        payload = {"states": visited, "last": torch.tensor([states[-1]])}
        ones = torch.ones(steps)
        rollout = Rollout(task, None, payload, ones * 0, ones.bool(), torch.arange(steps), truncated=truncated)
        rollout.scores["total"] = rewards
        return rollout

    def walk(self, random: torch.Generator, limit: int) -> Rollout:
        place, states, rewards = int(torch.randint(5, (), generator=random)), [], []
        while 0 <= place < 5 and len(states) < limit:
            states.append(place)
            place += 1 - 2 * int(torch.randint(2, (), generator=random))
            rewards.append(float(place == 5))
        cut = 0 <= place < 5
        return self.rollout([*states, place if cut else 0], rewards, truncated=cut)

    def forward_decisions(self, batch: Batch, needs: frozenset[str], references: Mapping[str, Any]) -> Evaluation:
        values = self.module(batch.payload["states"])[..., 0] * batch.decided
        last = self.module(batch.payload["last"])[:, 0, 0]
        return Evaluation(values * 0, values=values, last_values=last if "last_values" in needs else None)


@pytest.mark.parametrize("limit", [1000, 3])
@pytest.mark.parametrize("cut", ["groups", "segments"])
def test_values_of_a_known_chain_are_learned(limit: int, cut: Any) -> None:
    """By the loss of values alone; walks that are cut off after three steps lead to the same values."""
    walk, random = Walk(), torch.Generator().manual_seed(0)
    how = Optimisation(lr=0.05, epochs=2, minibatches=4, cut=cut, decay=40)
    learner = PolicyLearner(walk, 1.0 * ValueLoss(), how, advantage=GAE(1.0, 0.8))
    for _ in range(40):
        told = learner.update([walk.walk(random, limit) for _ in range(128)])
    found = walk.module.weight.detach()[:, 0]  # type: ignore[union-attr]
    assert near(found, torch.arange(1, 6) / 6, 0.07), found
    assert told["values/explained_variance"] > 0.3


def test_without_what_follows_values_of_the_chain_are_too_low() -> None:
    """The control: the same walks, as if each had ended where it was cut off."""
    walk, random = Walk(), torch.Generator().manual_seed(0)
    learner = PolicyLearner(walk, 1.0 * ValueLoss(), Optimisation(lr=0.1, epochs=4, decay=30), advantage=GAE(1.0, 0.9))
    for _ in range(30):
        rollouts = [walk.walk(random, 3) for _ in range(64)]
        learner.update([replace(rollout, truncated=False) for rollout in rollouts])
    assert float(walk.module.weight[2]) < 0.3  # type: ignore[index, arg-type]


def test_segments_share_a_round_among_gradient_steps() -> None:
    """Each segment is in one minibatch of an epoch, and the steps of an epoch are those of the learner's seed."""
    walk = Walk()
    batch = collate([walk.rollout([0, 1, 2, 1], [0, 0, 0, 1]), walk.rollout([3], [1.0])], [1, 1])
    for epoch in range(2):
        parts = list(Minibatches(batch, "segments", 2).epoch(0, epoch))
        assert sorted(int(part.mask.sum()) for part in parts if part is not None) == [2, 3]
        states = torch.cat([part.payload["states"][part.mask] for part in parts if part is not None])
        assert sorted(states.tolist()) == [0, 1, 1, 2, 3]


# --- statistics --------------------------------------------------------------------------------------


def test_running_statistics_are_those_of_all_rows() -> None:
    rows, running = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 4 + 2, RunningMeanStd(3)
    for part in torch.split(rows, [1, 20, 0, 29]):
        running.update(part)
    assert near(running.mean, rows.double().mean(0)) and near(running.var, rows.double().var(0, correction=0))
    other = RunningMeanStd(3)
    other.load_state_dict(running.state_dict())
    running.update(rows)
    assert other.count == 50 and running.count == 100 and near(other.var, running.var)


def test_rewards_are_scaled_by_the_spread_of_discounted_returns() -> None:
    """gamma 1/2: returns run 1, 2.5, 4.25 and 8; a whole attempt's number counts once."""
    walk, scale = Walk(), RewardNormalizer(0.5)
    rollouts = [walk.rollout([0, 1, 2], [1.0, 2.0, 3.0]), walk.rollout([3], [8.0])]
    rollouts[1].scores["total"] = 8.0
    told = scale.update(rollouts)
    std = float(torch.tensor([1, 2.5, 4.25, 8], dtype=D).std(correction=0))
    assert told == {"returns/std": pytest.approx(std), "segments": 4}
    batch = walk.collate(rollouts)
    assert near(scale(batch).rewards["total"][0], batch.rewards["total"][0].double() / std, 1e-6)
    assert float(batch.rewards["total"][0, 2]) == 3.0, "what is reported stays"
    again = RewardNormalizer(0.5)
    again.load_state_dict(scale.state_dict())
    assert again.std == scale.std
