"""From a config to a policy: what is trained, what is told of prompts and kept of them, and videos."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from autotelic.diffusion.conditions import Conditions
from autotelic.diffusion.lora import load_lora, save_lora, targets_of
from autotelic.diffusion.pipelines import adapter_for
from autotelic.diffusion.policy import DenoisingPolicy
from autotelic.diffusion.sampler import sampler_for
from autotelic.diffusion.schedulers import GAUSSIAN, SUITABLE, kind_for, replaced
from autotelic.diffusion.videos import FRAMES, per_frame
from autotelic.errors import UsageError
from autotelic.rewards.image.normalised import NormalisedSum
from autotelic.rewards.reward import Reward
from autotelic.testing import pipelines as tiny
from autotelic.trainers.lora import add_lora, lora_config, lora_state
from autotelic.trainers.objectives import PPOClip
from autotelic.trainers.scoring import columns
from autotelic.types import Rollout, Task

from .small_drawing import TASKS, policy_of
from .strangers.drawing import scheduler_of, started


class Encoder:
    """Stands for an adapter: a prompt's row is as many floats as it has letters, padded with zeros when stacked."""

    device = torch.device("cpu")
    encoding = staticmethod(nullcontext)

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        self.asked += prompts
        assert len(prompts) == 1, "the row of a prompt hangs on no other"
        return {"told": torch.full((1, len(prompts[0])), float(len(prompts[0])))}

    def unconditional(self, count: int) -> dict[str, Tensor]:
        self.asked.append("negative")
        return {"told": torch.zeros(count, 2)}

    def stacked(self, rows: Any) -> dict[str, Tensor]:
        padded = [row["told"] for row in rows]
        return {"told": torch.nn.utils.rnn.pad_sequence(padded, batch_first=True)}


def test_prompts_are_kept_up_to_a_limit_and_the_longest_unasked_goes_first() -> None:
    encoder: Any = Encoder()
    conditions = Conditions(encoder, limit=5 * 4)
    assert conditions(["ab", "c", "ab"])["told"].tolist() == [[2, 2], [1, 0], [2, 2]]
    assert (encoder.asked, conditions.held) == (["ab", "c"], 12)
    conditions(["ab"])
    conditions(["de"])
    assert conditions.held == 20, "2 + 1 + 2 floats"
    conditions(["f"])  # too many: c goes, which was not asked for the longest
    assert conditions.held == 20
    encoder.asked.clear()
    conditions(["ab", "de", "f"])
    assert encoder.asked == []
    conditions(["c"])
    assert encoder.asked == ["c"]
    many = conditions(["a long prompt", "another long prompt"])["told"]
    assert many.shape == (2, 19) and conditions.held <= conditions.limit, "one call may ask for more than is kept"


def test_the_negative_prompt_is_encoded_once_and_costs_nobody_a_place() -> None:
    encoder: Any = Encoder()
    conditions = Conditions(encoder, limit=0)
    for _ in range(3):
        assert conditions([None, None])["told"].tolist() == [[0, 0], [0, 0]]
    assert encoder.asked == ["negative"] and conditions.held == 0


# --- guidance ----------------------------------------------------------------------------------------


def test_a_rollout_is_evaluated_with_the_guidance_that_it_was_drawn_with() -> None:
    policy = policy_of("sd", guidance=2.0, evaluation_guidance=5.0)
    drawn = {mode: policy.act(TASKS, 1, mode=mode) for mode in ("train", "evaluate")}  # type: ignore[arg-type]
    assert [float(drawn[mode][0].payload["guidance"]) for mode in drawn] == [2.0, 5.0]
    for parameter in policy.parameters():
        parameter.data = parameter.data.clone()
    policy._number += 1  # other weights, as far as the policy knows
    for rollouts in drawn.values():
        batch = policy.collate(rollouts)
        now = policy.evaluate_actions(batch).log_probs
        torch.testing.assert_close(now, batch.log_probs["behaviour"], rtol=0, atol=1e-2)
    both = policy.collate([drawn["train"][0], drawn["evaluate"][0]])
    with pytest.raises(ValueError, match="drawn with guidance 2 and 5 are evaluated apart"):
        policy.evaluate_actions(both)


# --- what is trained ---------------------------------------------------------------------------------


def lora_of(folder: Path, build: Any = tiny.stable_diffusion) -> Path:
    adapter = adapter_for(build())
    with torch.no_grad():
        for number, weight in enumerate(add_lora(adapter.denoiser, 3, targets_of(adapter.denoiser, ["attention"]))):
            weight.fill_(0.01 * (number % 5))
    return save_lora(adapter, folder)


@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.wan, tiny.pixart_sigma], ids=["sd", "wan", "pixart"])
def test_a_lora_is_taken_up_as_it_was_saved(build: Any, tmp_path: Path) -> None:
    file = lora_of(tmp_path, build)
    first, second = adapter_for(build()), adapter_for(build())
    for adapter, place in ((first, file.parent), (second, file if build is tiny.stable_diffusion else file.parent)):
        trained = load_lora(adapter, place)
        assert {p.dtype for p in trained} == {torch.float32} and len(trained) > 0
        assert {id(p) for p in trained} == {id(p) for p in adapter.denoiser.parameters() if p.requires_grad}
        assert lora_config(adapter.denoiser).r == 3
        values = {float(p.flatten()[0]) for p in trained}
        assert len(values) > 2, "the file's own values"
    again = save_lora(first, tmp_path / "again")
    from safetensors.torch import load_file

    one, two = load_file(file), load_file(again)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_lora_of_the_text_encoder_is_refused(tmp_path: Path) -> None:
    made: Any = tiny.stable_diffusion()
    add_lora(made.unet, 2, ["to_q"])
    add_lora(made.text_encoder, 2, ["q_proj"])
    parts = {"unet": made.unet, "text_encoder": made.text_encoder}
    layers = {f"{name}_lora_layers": lora_state(part) for name, part in parts.items()}
    made.save_lora_weights(str(tmp_path), **layers)
    with pytest.raises(UsageError, match="adapts the text_encoder as well"):
        load_lora(adapter_for(tiny.stable_diffusion()), tmp_path)


def test_names_of_targets() -> None:
    denoiser = tiny.unet()
    assert targets_of(denoiser, ["all-linear"]) == "all-linear"
    assert targets_of(denoiser, ["to_q", "to_v"]) == ["to_q", "to_v"]
    assert set(targets_of(denoiser, ["attention"])) == {"to_q", "to_k", "to_v", "to_out.0"}
    with pytest.raises(UsageError, match="names nothing to train"):
        targets_of(denoiser, [])
    with pytest.raises(UsageError, match="has no attention layers of known names"):
        targets_of(torch.nn.Sequential(torch.nn.Linear(2, 2)), ["attention"])


def test_a_lora_to_start_from_and_all_weights_exclude_each_other(tmp_path: Path) -> None:
    lora_of(tmp_path / "lora")
    with pytest.raises(UsageError, match="--lora-path starts from adapters, and --lora-rank 0 trains all weights"):
        started(tmp_path, lora_path=str(tmp_path / "lora"), lora_rank=0)


def test_a_negative_prompt_without_guidance_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    started(tmp_path, negative_prompt="ugly")
    assert any("--negative-prompt changes nothing" in line for line in caplog.messages)


# --- schedulers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUITABLE)
def test_a_line_says_what_stands_in_for_a_schedulers_own_steps(name: str) -> None:
    scheduler = scheduler_of(name)
    line = replaced(scheduler, kind_for(scheduler))
    own = "generator" in getattr(diffusers, name).step.__code__.co_varnames and name.startswith(GAUSSIAN)
    assert own == (line == "")
    assert own or (name in line and kind_for(scheduler) in line)


def test_without_noise_a_chain_is_the_schedulers_own_of_the_first_order() -> None:
    """Euler's, and DPM-Solver's on the sigmas of a flow."""
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0, "solver_order": 1}
    for scheduler in (scheduler_of("EulerDiscreteScheduler"), scheduler_of("DPMSolverMultistepScheduler", **flow)):
        chain = sampler_for(scheduler, 6, eta=0.0)
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * chain.levels.start
        for i, t in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(x, t)
            told = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
            theirs = scheduler.step(told, t, x).prev_sample
            mine = chain.mean(torch.full((2,), i), x, told)
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(x.abs().max()))
            x = theirs
        assert not chain.decides.any()


def test_the_noise_of_consistency_models_by_hand() -> None:
    """LCM adds sigma' whole; TCD goes down to level (1 - gamma) t' and up again."""
    lcm, tcd = scheduler_of("LCMScheduler"), scheduler_of("TCDScheduler")
    assert sampler_for(lcm, 4).std.tolist() == pytest.approx(sampler_for(lcm, 4).levels.sigma[1:].tolist())
    assert sampler_for(lcm, 4, eta=0.0).std.tolist() == [0.0] * 4
    chain, products = sampler_for(tcd, 4, eta=0.3), tcd.alphas_cumprod.double()
    onto = tcd.timesteps[1:]
    lower = torch.tensor([int(0.7 * int(t)) for t in onto])
    wanted = (1 - products[onto] / products[lower]).sqrt()
    assert chain.std.tolist() == pytest.approx([*wanted.tolist(), 0.0], rel=1e-4)


# --- videos ------------------------------------------------------------------------------------------


def videos(*brightness: float, frames: int = 20) -> list[Rollout]:
    """Videos that brighten from 0 to a value."""
    nothing, found = torch.zeros(1, dtype=torch.bool), []
    for number, high in enumerate(brightness):
        output = torch.linspace(0, high, frames).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        found.append(Rollout(Task(f"v{number}", "fade"), output, {}, None, nothing, nothing.long(), group="one"))
    return found


def light(images: Any, prompts: Any, **_: Any) -> list[float]:
    assert {tuple(image.shape) for image in images} == {(3, 4, 4)} and len(prompts) == len(images)
    return [float(image.mean()) for image in images]


def test_a_reward_of_pictures_sees_the_frames_of_a_video() -> None:
    rollouts = videos(1.0, 0.5)
    table = columns(rollouts)
    assert per_frame(Reward(light))(**table)["total"] == pytest.approx([0.5, 0.25], abs=0.02)
    seen: list[int] = []
    per_frame(Reward(lambda images, **_: seen.append(len(images)) or [0.0] * len(images), "count"))(**table)
    assert seen == [2 * FRAMES]
    weighted = per_frame(2.0 * Reward(light))
    assert weighted(**table)["total"] == pytest.approx([1.0, 0.5], abs=0.04)
    both = NormalisedSum([(1.0, Reward(light)), (1.0, Reward(lambda images, **_: [1.0] * len(images), "same"))])
    assert per_frame(both)(**table)["total"] == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-3)


def test_a_reward_of_videos_sees_all_of_them_and_none_stays_none() -> None:
    class Whole:
        videos = True

        def __call__(self, outputs: Any, **_: Any) -> list[float]:
            return [float(len(video)) for video in outputs]

    table = columns(videos(1.0, 0.5))
    assert per_frame(Reward(Whole(), "whole"))(**table)["total"] == [20.0, 20.0]
    some = per_frame(Reward(lambda images, **_: [None if float(i.mean()) < 0.6 else 1.0 for i in images], "some"))
    assert some(**table)["total"] == [1.0, None]


def test_a_gradient_reaches_the_frames_that_are_looked_at() -> None:
    def bright(outputs: Any, **_: Any) -> Tensor:
        return torch.stack(list(outputs)).mean((1, 2, 3))

    rollouts = videos(1.0, 0.5)
    outputs = torch.stack([rollout.output for rollout in rollouts]).clone().requires_grad_()
    table = columns(rollouts) | dict.fromkeys(("images", "outputs", "completions", "episodes"), outputs)
    total: Any = per_frame(Reward(bright, differentiable=True))(**table)["total"]
    torch.stack(list(total)).sum().backward()
    assert outputs.grad is not None
    reached = outputs.grad.abs().sum((2, 3, 4)) > 0
    assert reached.sum(1).tolist() == [FRAMES, FRAMES] and bool(reached[:, [0, -1]].all())


def test_a_policy_of_videos_finds_its_decisions_again_in_any_number_of_pieces() -> None:
    adapter = adapter_for(tiny.wan(), height=32, width=32, num_frames=5)
    add_lora(adapter.denoiser, 2)
    policy = DenoisingPolicy(adapter, sampler_for(adapter.scheduler, 3), guidance=3.0)
    rollouts = policy.act(TASKS, 2)
    assert rollouts[0].output.shape == (5, 3, 32, 32) and rollouts[0].payload["path"].shape == (4, 4, 2, 4, 4)
    batch = policy.collate(rollouts)
    policy._number += 1
    for rows in (1024, 2):
        policy.micro_batch_rows = rows
        now = policy.evaluate_actions(batch, PPOClip().needs).log_probs
        torch.testing.assert_close(now, batch.log_probs["behaviour"], rtol=0, atol=1e-3)
    encoded = policy.encode(TASKS, [rollouts[0].output, rollouts[1].output])
    assert policy.collate(encoded, "forward").payload["noise"].shape == (2, 2, 4, 2, 4, 4)


def test_the_small_default_reads_as_much_of_a_long_prompt_as_it_can() -> None:
    from .small_drawing import shapes_policy

    policy = shapes_policy()
    caption, longer = TASKS[0].prompt, " ".join(["red"] * 40)
    told = policy.adapter.encode([caption, longer])["told"]
    assert bool(told.isfinite().all())
    torch.testing.assert_close(told[:1], policy.adapter.encode([caption])["told"])


def test_what_a_skeleton_lacks_is_not_asked_for(tmp_path: Path) -> None:
    """A pipeline whose classes are one's own is loaded as ever."""
    from autotelic.diffusion.pipelines import loading

    assert loading._left_out(SimpleNamespace(__init__=lambda self, text_encoder, vae: None), {"vae": ["a", "b"]}) == [
        "text_encoder"
    ]
