"""The denoising policy: what it recorded it finds again, in any number of pieces, and its forks stay what they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.diffusion.policy import DenoisingPolicy
from autotelic.errors import UsageError
from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import Optimisation, PolicyLearner, backpropagate
from autotelic.trainers.objectives import (
    DPO,
    Entropy,
    ForwardNFT,
    KLPenalty,
    PairwiseRegression,
    PPOClip,
    Reinforce,
    Term,
    WeightedImitation,
)
from autotelic.trainers.pairing import all_pairs, best_of_group, preference_pairs
from autotelic.types import Batch, Policy, Task

from .small_drawing import TASKS, Calls, assert_same, gradients, policy_of, scored, shake, shapes_policy

SETTINGS: dict[str, Callable[[], DenoisingPolicy]] = {
    "shapes": shapes_policy,
    "shapes-flow-sde": lambda: shapes_policy(kind="flow_sde"),
    "sd": lambda: policy_of("sd"),
    "sd-guided": lambda: policy_of("sd", guidance=3.0),
    "sd-lora": lambda: policy_of("sd", rank=2, noise=0.05),
    "sd-euler": lambda: policy_of("sd-euler", guidance=3.0),
    "sdxl": lambda: policy_of("sdxl", guidance=3.0),
    "sd3": lambda: policy_of("sd3", guidance=3.0),
    "flux": lambda: policy_of("flux"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_recorded_log_probs_are_found_again(name: str) -> None:
    policy = SETTINGS[name]()
    rollouts = policy.act(TASKS, 2)
    batch = policy.collate(rollouts)
    now = policy.evaluate_actions(batch).log_probs
    size = rollouts[0].payload["path"][0].numel()
    assert batch.dims.unique().tolist() == [size]
    assert batch.mask.sum() > 0
    difference = (now - batch.log_probs["behaviour"]).abs() / size
    assert float(difference.max()) < 1e-5
    assert bool((now[~batch.mask] == 0).all())
    assert rollouts[0].output.shape == (3, 16, 16)
    assert 0 <= float(rollouts[0].output.min()) <= float(rollouts[0].output.max()) <= 1
    policy.micro_batch_rows = 2
    shake(policy, 0.0)  # other weights, as far as the policy knows
    pieces = policy.evaluate_actions(batch).log_probs
    torch.testing.assert_close(pieces, now, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_without_noise_a_policy_draws_what_its_pipeline_draws(family: str) -> None:
    kind = "ddim" if family.startswith("sd") and family != "sd3" else "flow_ancestral"
    policy = policy_of(family, 3, kind=kind, eta=0.0, guidance=3.0)
    (rollout,) = policy.act(TASKS[:1], 1)
    adapter: Any = policy.adapter
    start = rollout.payload["path"][:1]
    theirs = adapter.pipeline(
        TASKS[0].prompt,
        num_inference_steps=3,
        latents=adapter.pack(start) if family == "flux" else start,
        guidance_scale=3.0,
        output_type="pt",
        height=16,
        width=16,
    ).images
    torch.testing.assert_close(rollout.output[None], theirs, rtol=0, atol=1e-4)
    assert not rollout.mask.any()


@pytest.mark.parametrize("name", ["sd-guided", "sd-euler", "shapes"])
def test_a_log_prob_is_the_density_of_the_step_that_was_taken(name: str) -> None:
    """By hand, from the path alone."""
    policy = SETTINGS[name]()
    (rollout,) = policy.act(TASKS[:1], 1)
    assert rollout.log_probs is not None
    chain, path = policy.sampler, rollout.payload["path"]
    assert float(path[0].std()) == pytest.approx(float(chain.levels.start), rel=0.2)
    condition, nothing = policy.adapter.encode([TASKS[0].prompt]), policy.adapter.unconditional(1)
    for i in range(chain.steps):
        seen = (path[i] * chain.levels.input_scale[i])[None]
        time = chain.levels.timesteps[i].reshape(1)
        with torch.no_grad():
            out = policy.adapter.predict_guided(policy.module, seen, time, condition, nothing, policy.guidance)[0]
        mean = chain.mean_x[i] * path[i] + chain.mean_p[i] * out
        if chain.std[i] == 0:
            torch.testing.assert_close(path[i + 1], mean, rtol=0, atol=1e-5)
            assert not rollout.mask[i]
            continue
        right = torch.distributions.Normal(mean, chain.std[i]).log_prob(path[i + 1]).double().sum()
        torch.testing.assert_close(rollout.log_probs[i], right, rtol=1e-5, atol=1e-3)
        assert rollout.mask[i]
    torch.testing.assert_close(rollout.output, policy.adapter.decode(path[-1:])[0])


# --- pieces --------------------------------------------------------------------------------------

OBJECTIVES: dict[str, Term] = {
    "ppo": PPOClip() + 0.1 * KLPenalty("start", "exact"),
    "pairwise": PairwiseRegression(0.5, "start"),
    "pairwise-clipped": PairwiseRegression(0.5, "start", clip=0.1),
    "pairwise-forward": PairwiseRegression(0.5, "start", decisions="forward"),
    "nft": ForwardNFT(),
    "raft": WeightedImitation(decisions="forward") + 0.2 * KLPenalty("start", "exact"),
    "dpo": DPO(reference="start"),
    "diffusion-dpo": DPO(reference="start", decisions="forward"),
}


def prepared(policy: DenoisingPolicy, objective: Term) -> tuple[Batch, dict[str, Any]]:
    """A batch with all that objectives ask for, away from where it was sampled and from the references, and those."""
    references = {"start": policy.fork("start"), "proximal": policy.fork("proximal")}
    rollouts = scored(policy.act(TASKS, 3))
    shake(policy, 0.01, seed=2)
    batch = policy.collate(rollouts, "forward" if "forward" in objective.needs else "sampled")
    batch = best_of_group(preference_pairs(batch) if isinstance(objective, DPO) else all_pairs(batch))
    batch.advantages = grpo()(batch)
    batch.log_probs["start"] = references["start"].evaluate_actions(batch).log_probs
    return batch, references


def plain(policy: DenoisingPolicy, objective: Term, batch: Batch, references: Any = None) -> list[Tensor]:
    """The objective's gradient with one graph from the weights to the loss."""
    policy.micro_batch_rows = 1024
    loss, _ = objective(policy.forward_decisions(batch, objective.needs, references or {}), batch)
    loss.backward()
    return gradients(policy)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_gradient_in_pieces_is_the_whole_one(name: str) -> None:
    """Pieces of 5 decisions cut pictures, pairs and groups apart."""
    policy, objective = shapes_policy(), OBJECTIVES[name]
    batch, references = prepared(policy, objective)
    right = plain(policy, objective, batch, references)
    calls = Calls(policy.module)
    backpropagate(policy, objective, batch, references)
    assert_same(gradients(policy), right)
    whole, calls.rows = calls.rows, []
    policy.sample_rows = policy.micro_batch_rows = 5
    backpropagate(policy, objective, batch, references)
    assert_same(gradients(policy), right)
    assert max(calls.rows) <= 5 < max(whole)


def test_what_is_evaluated_and_fits_is_not_computed_twice() -> None:
    policy = shapes_policy()
    batch, _ = prepared(policy, OBJECTIVES["ppo"])
    calls = Calls(policy.module)
    backpropagate(policy, PPOClip(), batch)
    assert calls.rows == [int(batch.mask.sum())]
    policy.evaluate_actions(batch)
    policy.micro_batch_rows, calls.rows = 5, []
    backpropagate(policy, PPOClip(), batch)
    assert sum(calls.rows) == 2 * int(batch.mask.sum()), "a graph of before is used"


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_pieces_are_exact_for_every_family(name: str) -> None:
    policy = policy_of(name, rank=2, noise=0.05, guidance=3.0)
    batch, references = prepared(policy, OBJECTIVES["ppo"])
    right = plain(policy, OBJECTIVES["ppo"], batch, references)
    policy.micro_batch_rows = 4
    backpropagate(policy, OBJECTIVES["ppo"], batch, references)
    assert_same(gradients(policy), right, 1e-3)


def test_exact_divergence_is_that_of_the_steps() -> None:
    policy = shapes_policy()
    batch, references = prepared(policy, OBJECTIVES["ppo"])
    start = references["start"]
    now = policy.evaluate_actions(batch, {"kl:start"}, references)
    path = batch.payload["path"]
    row, i = 4, 1
    step, x = torch.tensor([i]), path[row, i][None]
    condition = policy.adapter.encode([TASKS[1].prompt])
    with torch.no_grad():
        means = [policy.sampler.mean(step, x, p._predict(policy.sampler, step, x, condition)) for p in (policy, start)]
    std = policy.sampler.std[i]
    normal = [torch.distributions.Normal(mean, std) for mean in means]
    right = torch.distributions.kl_divergence(*normal).sum()
    assert float(right) > 1e-3
    torch.testing.assert_close(now.kl["start"][row, i], right.double(), rtol=1e-3, atol=1e-5)


# --- the shortcut of strictly on-policy data -----------------------------------------------------


def test_own_rollouts_need_no_second_forward_and_give_the_same_gradient() -> None:
    policy = shapes_policy()
    rollouts = scored(policy.act(TASKS, 3))
    batch = policy.collate(rollouts)
    batch.advantages = grpo()(batch)
    right = plain(policy, PPOClip(), batch)
    calls = Calls(policy.module)
    policy.micro_batch_rows = 5
    now = policy.evaluate_actions(batch)
    assert calls.rows == [] and torch.equal(now.log_probs, batch.log_probs["behaviour"])
    backpropagate(policy, PPOClip(), batch)
    assert sum(calls.rows) == int(batch.mask.sum())
    assert_same(gradients(policy), right)
    assert torch.equal(policy.evaluate_actions(batch.select(torch.tensor([1, 4]))).log_probs, now.log_probs[[1, 4]])


def after_a_step(policy: DenoisingPolicy) -> None:
    optimizer = torch.optim.AdamW(list(policy.parameters()), 1e-2)
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    gradients(policy)


CHANGES: dict[str, Callable[[DenoisingPolicy], Any]] = {
    "an optimiser's step": after_a_step,
    "other weights loaded": lambda p: p.load_state_dict({k: v + 0.01 for k, v in p.state_dict().items()}),
    "weights copied": lambda p: p.copy_from(shapes_policy(noise=0.1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_shortcut_ends_with(change: str) -> None:
    policy = shapes_policy()
    batch = policy.collate(policy.act(TASKS, 3))
    CHANGES[change](policy)
    whole = policy.evaluate_actions(batch).log_probs
    policy.micro_batch_rows = 5
    now = policy.evaluate_actions(batch).log_probs
    torch.testing.assert_close(now, whole, rtol=1e-5, atol=1e-2)
    assert float((now - batch.log_probs["behaviour"]).abs().max()) > 0.1


def test_the_shortcut_is_not_for_rollouts_of_others_or_of_another_context() -> None:
    policy = shapes_policy(sample_rows=5, micro_batch_rows=5)
    fork, twin = policy.fork("fork"), policy.fork("twin")
    assert not twin._sampled_now(twin.collate(fork.act(TASKS, 1)))
    rollouts = policy.act(TASKS, 3)
    calls = Calls(policy.module)
    fork.evaluate_actions(policy.collate(rollouts))
    assert sum(calls.rows) == 6 * 3
    for rollout in rollouts:
        rollout.train_task = TASKS[1]
    now = policy.evaluate_actions(policy.collate(rollouts)).log_probs
    drift = (now - torch.stack([r.log_probs for r in rollouts])).abs().amax(1)  # type: ignore[misc]
    assert float(drift[:3].min()) > 1e-2 > float(drift[3:].max())
    stranger = [replace(r, train_task=None, version=".".join(["x", *r.version.split(".")[1:]])) for r in rollouts]
    assert policy._sampled_now(policy.collate([replace(r, train_task=None) for r in rollouts]))
    assert not policy._sampled_now(policy.collate(stranger)), "the rollouts of a former run have its name"


# --- decisions that are none ---------------------------------------------------------------------


def test_steps_without_noise_are_no_decisions() -> None:
    policy = shapes_policy(steps=4)
    policy.sampler = policy.sampler.windowed(1, 3)
    rollouts = scored(policy.act(TASKS, 2))
    assert all(r.mask.tolist() == [False, True, True, False] for r in rollouts)
    assert all(r.log_probs is not None and r.log_probs[[0, 3]].tolist() == [0, 0] for r in rollouts)
    batch = policy.collate(rollouts)
    calls = Calls(policy.module)
    torch.testing.assert_close(
        policy.evaluate_actions(batch).log_probs, batch.log_probs["behaviour"], rtol=0, atol=0.01
    )
    assert calls.rows == [8]


def test_a_deterministic_chain_has_pictures_and_nothing_to_learn_from() -> None:
    policy = shapes_policy()
    references = {"start": policy.fork("start")}
    rollouts = scored(policy.act(TASKS, 2, greedy=True))
    batch = policy.collate(rollouts)
    batch.advantages = torch.ones(batch.mask.shape)
    for rows in (1024, 1):
        policy.micro_batch_rows = rows
        backpropagate(policy, Reinforce() + KLPenalty("start", "exact"), batch, references)
        assert all(float(g.abs().max()) == 0 for g in gradients(policy))


def test_rollouts_that_cannot_be_one_batch_are_told() -> None:
    policy = shapes_policy(steps=4)
    rollouts = policy.act(TASKS, 1)
    encoded = policy.encode(TASKS, [r.output for r in rollouts])
    with pytest.raises(ValueError, match="red: an encoded picture has forward decisions only"):
        policy.collate([*rollouts, *encoded])
    with pytest.raises(ValueError, match="red was drawn in 6 denoising steps, the policy's chain has 4"):
        policy.collate(shapes_policy(steps=6).act(TASKS, 1))
    assert len(policy.collate([*rollouts, *encoded], "forward")) == 4


def test_a_policy_says_what_it_can_do_and_wants_room_to_do_it() -> None:
    policy = shapes_policy()
    assert isinstance(policy, Policy)
    with pytest.raises(ValueError, match="Entropy needs entropy, which asks for the capability entropy"):
        PolicyLearner(policy, Entropy(), Optimisation())
    with pytest.raises(UsageError, match="1 or more, not 1024, 0 and 2"):
        shapes_policy(micro_batch_rows=0)


# --- acting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shapes", "sd-guided", "sd3"])
def test_a_picture_depends_on_its_key_task_and_number_alone(name: str) -> None:
    policy = SETTINGS[name]()
    whole = policy.act(TASKS, 3, key=(7, 1))
    assert [r.task.id for r in whole] == ["red"] * 3 + ["blue"] * 3
    alone = policy.act(TASKS[1:], 2, key=(7, 1))
    policy.sample_rows = 2
    pieces = policy.act(TASKS, 3, key=(7, 1))
    other = policy.act(TASKS, 3, key=(7, 2))
    for one, many in zip([*whole, *whole[3:5]], [*pieces, *alone], strict=True):
        torch.testing.assert_close(one.output, many.output, rtol=0, atol=1e-5)
        assert torch.equal(one.payload["path"][0], many.payload["path"][0])
    pictures = torch.stack([r.output for r in [*whole, *other]]).flatten(1)
    assert float(torch.pdist(pictures).min()) > 1e-3


def test_acting_leaves_the_global_generator_alone() -> None:
    policy = shapes_policy()
    state = torch.get_rng_state()
    policy.act(TASKS, 1)
    policy.collate(policy.act(TASKS, 1), "forward")
    assert torch.equal(torch.get_rng_state(), state)


# --- forward decisions ---------------------------------------------------------------------------


def test_forward_decisions_are_scores_of_noised_pictures() -> None:
    policy = shapes_policy(steps=4, forward_draws=3)
    start = policy.fork("start")
    shake(policy, 0.01, seed=2)
    batch = policy.collate(policy.act(TASKS, 2), "forward")
    assert batch.mask.shape == (4, 3) and bool(batch.mask.all()) and batch.log_probs == {}
    now = policy.evaluate_actions(batch, {"forward", "kl:start"}, {"start": start})
    levels, row, draw = batch.payload["level"], 3, 2
    assert all(len(set(levels[b].tolist())) == 3 for b in range(4))
    sigma = policy.sampler.levels.sigma[levels[row, draw]].float()
    clean, noise = batch.payload["clean"][row], batch.payload["noise"][row, draw]
    assert torch.equal(clean, batch.payload["rollouts"][row].payload["path"][-1])
    x = (1 - sigma) * clean + sigma * noise
    condition = policy.adapter.encode([TASKS[1].prompt])
    with torch.no_grad():
        out = policy.adapter.predict(policy.module, x[None], 1000 * sigma.reshape(1), condition)[0]
        with start.worn():
            before = policy.adapter.predict(policy.module, x[None], 1000 * sigma.reshape(1), condition)[0]
    right = -0.5 * (noise - clean - out).square().sum()
    torch.testing.assert_close(now.log_probs[row, draw], right.double(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(
        now.kl["start"][row, draw], 0.5 * (out - before).double().square().sum(), rtol=1e-3, atol=1e-4
    )
    again = policy.collate(batch.payload["rollouts"], "forward")
    assert torch.equal(again.payload["noise"], batch.payload["noise"]), "drawn once, shared by all that are compared"


@pytest.mark.parametrize("family", ["sd", "sd-euler"])
def test_forward_decisions_of_other_noise_schedules(family: str) -> None:
    """The model is asked for the noise; Euler's picture is DDPM's over alpha, and scaled back for the model."""
    policy = policy_of(family, guidance=3.0)
    batch = policy.collate(policy.act(TASKS, 1), "forward")
    now = policy.evaluate_actions(batch).log_probs
    level, clean, noise = (batch.payload[name][1] for name in ("level", "clean", "noise"))
    time = policy.sampler.levels.timesteps[level[0]]
    product = policy.adapter.scheduler.alphas_cumprod[int(time)]
    x = product.sqrt() * clean + (1 - product).sqrt() * noise[0]
    told, nothing = policy.adapter.encode([TASKS[1].prompt]), policy.adapter.unconditional(1)
    with torch.no_grad():
        out = policy.adapter.predict_guided(policy.module, x[None], time.reshape(1), told, nothing, 3.0)[0]
    torch.testing.assert_close(now[1, 0], -0.5 * (noise[0] - out).double().square().sum(), rtol=1e-3, atol=1e-2)


def test_levels_repeat_only_when_there_are_too_few() -> None:
    policy = shapes_policy(steps=3, forward_draws=6)
    levels = policy.collate(policy.act(TASKS, 1), "forward").payload["level"]
    assert levels.sort(1).values.tolist() == [[0, 0, 1, 1, 2, 2]] * 2


def test_pictures_from_outside_are_imitated() -> None:
    """A white picture is encoded, and likelier after some updates; its rollouts have forward decisions only."""
    policy = shapes_policy(noise=0.0)
    white = torch.ones(3, 16, 16)
    rollouts = policy.encode(TASKS, [white, white])
    assert torch.equal(rollouts[0].payload["path"][0], white)  # 1 in 0..1 is 1 in -1..1
    assert rollouts[0].log_probs is None
    learner = PolicyLearner(policy, WeightedImitation(decisions="forward"), Optimisation(5e-3))
    before = torch.stack([r.output for r in policy.act(TASKS, 4)]).mean()
    for i in range(12):
        learner.update([r for j in range(4) for r in policy.encode(TASKS, [white, white], key=(i, j))])
    assert torch.stack([r.output for r in policy.act(TASKS, 4)]).mean() > before + 0.1
    latent = policy_of("sd")
    (encoded,) = latent.encode(TASKS[:1], [white])
    assert encoded.payload["path"].shape == (1, 4, 8, 8)
    assert latent.evaluate_actions(latent.collate([encoded])).log_probs.shape == (1, 2)


# --- forks ---------------------------------------------------------------------------------------


def pictures_of(policy: DenoisingPolicy) -> Tensor:
    return torch.stack([r.output for r in policy.act(TASKS, 2, key=(3,))])


@pytest.mark.parametrize("name", ["shapes", "sd-lora"])
def test_a_fork_is_frozen_shares_what_is_not_trained_and_acts_the_same(name: str) -> None:
    policy = SETTINGS[name]()
    fork = policy.fork("fork")
    assert fork.module is policy.module and fork.adapter is policy.adapter
    assert list(fork.parameters()) == []
    held = {k: v.data_ptr() for k, v in policy.state_dict().items()}
    assert set(fork.state_dict()) == set(held)
    assert all(v.data_ptr() != held[k] for k, v in fork.state_dict().items())
    if name == "sd-lora":
        total = sum(p.numel() for p in policy.module.parameters())
        assert all("lora" in k for k in held) and sum(v.numel() for v in fork.state_dict().values()) < total / 4
    before = pictures_of(policy)
    assert torch.equal(pictures_of(fork), before)
    after_a_step(policy)
    assert float((pictures_of(policy) - before).abs().max()) > 1e-3
    assert torch.equal(pictures_of(fork), before)
    with fork.worn():
        torch.testing.assert_close(pictures_of(policy), before, rtol=0, atol=1e-5)
    assert float((pictures_of(policy) - before).abs().max()) > 1e-3


def test_weights_come_back_after_being_worn_whatever_happens() -> None:
    policy = shapes_policy()
    fork = policy.fork("fork")
    after_a_step(policy)
    held = {k: v.clone() for k, v in policy.state_dict().items()}
    with pytest.raises(RuntimeError, match="midway"), fork.worn():
        raise RuntimeError("midway")
    assert all(torch.equal(v, held[k]) for k, v in policy.state_dict().items())


def test_copy_from_moves_a_share_of_the_way() -> None:
    policy = shapes_policy()
    fork = policy.fork("fork")
    old = {k: v.clone() for k, v in fork.state_dict().items()}
    after_a_step(policy)
    new = {k: v.clone() for k, v in policy.state_dict().items()}
    fork.copy_from(policy, mix=0.25)
    for k, v in fork.state_dict().items():
        torch.testing.assert_close(v, 0.75 * old[k] + 0.25 * new[k])
    fork.copy_from(policy)
    assert all(torch.equal(v, new[k]) for k, v in fork.state_dict().items())
    assert torch.equal(pictures_of(fork), pictures_of(policy))
    policy.load_state_dict(old)
    assert all(torch.equal(v, old[k]) for k, v in policy.state_dict().items())
    assert all(torch.equal(v, new[k]) for k, v in fork.state_dict().items())


def test_a_fork_of_a_fork_is_another() -> None:
    fork = shapes_policy().fork("fork")
    second = fork.fork("second")
    with torch.no_grad():
        for tensor in fork.state_dict().values():
            tensor.mul_(2.0)
    assert float((pictures_of(fork) - pictures_of(second)).abs().max()) > 1e-4


# --- precision -----------------------------------------------------------------------------------


def test_mixed_precision_samples_and_learns_alike() -> None:
    """In bfloat16 a step's mean differs from float32's; sampling and evaluation must differ from it alike."""
    exact = shapes_policy(noise=0.2)
    mixed = shapes_policy(noise=0.2, autocast=torch.bfloat16)
    rollouts = scored(mixed.act(TASKS, 3))
    batch = mixed.collate(rollouts)
    size = float(batch.dims[0, 0])
    assert rollouts[0].payload["path"].dtype == rollouts[0].output.dtype == torch.float32
    alike = (mixed.evaluate_actions(batch).log_probs - batch.log_probs["behaviour"]).abs().max() / size
    apart = (exact.evaluate_actions(batch).log_probs - batch.log_probs["behaviour"]).abs().max() / size
    assert float(alike) < 1e-3
    assert float(alike) < float(apart)
    batch.advantages = grpo()(batch)
    found = [torch.cat([g.flatten() for g in plain(exact, PPOClip(), batch)])]
    for rows in (1024, 5):
        mixed.micro_batch_rows = rows
        backpropagate(mixed, PPOClip(), batch)
        found.append(torch.cat([g.flatten() for g in gradients(mixed)]))
    similar = torch.nn.functional.cosine_similarity(torch.stack(found)[:, None], torch.stack(found), dim=-1)
    assert float(similar[0].min()) > 0.85, "far from the gradient in float32"
    assert float(similar[1, 2]) > 0.98, "in pieces it is another"


def test_prompts_are_encoded_in_full_precision() -> None:
    """Whether acting or learning asks first."""
    policy = policy_of("sd", autocast=torch.bfloat16)
    policy.act(TASKS, 1)
    right = policy.adapter.encode([TASKS[0].prompt])["encoder_hidden_states"]
    assert torch.equal(policy.conditions([TASKS[0].prompt])["encoder_hidden_states"], right)


def test_a_prompt_is_encoded_once() -> None:
    policy = policy_of("sd", guidance=3.0)
    asked: list[list[str]] = []
    encode = policy.adapter.encode
    policy.adapter.encode = lambda prompts: asked.append(list(prompts)) or encode(prompts)  # type: ignore[method-assign,func-returns-value]
    batch = policy.collate(policy.act([*TASKS, Task("again", TASKS[0].prompt)], 2))
    policy.evaluate_actions(batch)
    policy.fork("fork").evaluate_actions(batch)
    assert asked == [[TASKS[0].prompt], [TASKS[1].prompt]], "each by itself, so that its row depends on no other"


@pytest.mark.parametrize(
    "objective", [PPOClip(1e-3, 1e-3) + 0.1 * KLPenalty("start", "exact"), PairwiseRegression(1.0, "start")]
)
def test_the_graph_that_drawing_kept_gives_the_same_gradient_without_a_forward_pass(objective: Term) -> None:
    policy = shapes_policy()
    references = {"start": policy.fork("start")}
    shake(policy, 0.05)
    found, rows = [], []
    for keep in (False, True):
        batch = all_pairs(policy.collate(scored(policy.act(TASKS, 3, key=(1,), keep_graph=keep))))
        batch.advantages = grpo()(batch)
        batch.log_probs["start"] = torch.zeros_like(batch.log_probs["behaviour"])
        calls = Calls(policy.module)
        backpropagate(policy, objective, batch, references)
        found.append(gradients(policy))
        rows.append(sum(calls.rows))
    assert_same(found[1], found[0])
    decided = int(batch.mask.sum())
    assert rows[0] - rows[1] == decided, "one forward pass of every decision is saved"


def test_a_kept_graph_is_not_used_after_the_weights_changed() -> None:
    policy = shapes_policy()
    batch = policy.collate(scored(policy.act(TASKS, 2, keep_graph=True)))
    shake(policy, 0.05)
    kept = policy.evaluate_actions(batch).log_probs
    again = policy.evaluate_actions(batch).log_probs
    torch.testing.assert_close(kept, again)
    assert not torch.allclose(kept, batch.log_probs["behaviour"], atol=1e-3)
