"""Low-rank adapters of denoisers, and the memory that training them takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autotelic.diffusion import memory
from autotelic.diffusion.lora import ATTENTION, attention, save_lora
from autotelic.diffusion.memory import Plan, decoder_activations, denoiser_activations, memory_plan
from autotelic.diffusion.pipelines import PipelineAdapter, StableDiffusionAdapter, adapter_for
from autotelic.errors import UsageError
from autotelic.testing import pipelines as tiny
from autotelic.trainers.lora import WEIGHTS, add_lora, load_lora, lora_state

FAMILIES: dict[str, Callable[..., Any]] = {
    "sd": tiny.stable_diffusion,
    "sdxl": tiny.stable_diffusion_xl,
    "sd3": tiny.stable_diffusion_3,
    "flux": tiny.flux,
    "qwen": tiny.qwen_image,
    "sana": tiny.sana,
    "wan": tiny.wan,
}
LARGE: dict[str, Any] = {"height": 32, "width": 32}
SIZES: dict[str, dict[str, Any]] = {"qwen": LARGE, "sana": LARGE, "wan": LARGE | {"num_frames": 5}}


def prepared(family: str) -> PipelineAdapter:
    return adapter_for(FAMILIES[family](), **SIZES.get(family, {"height": 16, "width": 16}))


def answer(adapter: PipelineAdapter, grad: bool = False) -> Tensor:
    """The denoiser's output for fixed latents, times and prompts."""
    x = torch.randn(2, *adapter.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(grad):
        return adapter.predict(adapter.denoiser, x, torch.tensor([100.0, 700.0]), adapter.encode(["red", "blue"]))


def shake(parameters: list[nn.Parameter], seed: int = 1) -> None:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))


@pytest.mark.parametrize(
    ("family", "targets"), [*((family, None) for family in FAMILIES), ("sd", "all-linear"), ("flux", "all-linear")]
)
def test_a_saved_lora_draws_the_same_in_a_fresh_pipeline(family: str, targets: Any, tmp_path: Path) -> None:
    adapter = prepared(family)
    before = answer(adapter)
    trainable = add_lora(adapter.denoiser, 2, targets or attention(adapter.denoiser), alpha=6)
    assert torch.equal(answer(adapter), before), "B is zero at the start"
    shake(trainable)
    after = answer(adapter)
    assert (after - before).abs().max() > 0.05
    file = save_lora(adapter, tmp_path)
    assert file.name == "pytorch_lora_weights.safetensors" and file.is_file()
    fresh = FAMILIES[family]()
    fresh.load_lora_weights(tmp_path)
    again = answer(adapter_for(fresh, **SIZES.get(family, {"height": 16, "width": 16})))
    torch.testing.assert_close(again, after, rtol=0, atol=1e-6)


def test_a_low_rank_matrix_is_added_to_the_weights() -> None:
    """One layer by hand: W x + alpha / rank B (A x)."""
    denoiser = tiny.unet()
    layer = denoiser.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    weight = layer.weight.detach().clone()
    trainable = add_lora(denoiser, 3, ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"], alpha=12)
    assert [tuple(p.shape) for p in trainable] == [(3, 16), (16, 3)]
    shake(trainable)
    down, up = trainable
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    changed = denoiser.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    torch.testing.assert_close(changed(x), x @ (weight + 4.0 * up @ down).T)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapters_alone_are_trained_and_all_of_them_are_reached(family: str) -> None:
    adapter = prepared(family)
    trainable = add_lora(adapter.denoiser, 2, attention(adapter.denoiser))
    named = {name: p for name, p in adapter.denoiser.named_parameters() if p.requires_grad}
    assert {id(p) for p in named.values()} == {id(p) for p in trainable}
    assert all("lora_" in name for name in named)
    shake(trainable)
    answer(adapter, grad=True).square().sum().backward()
    silent = {name for name, p in named.items() if p.grad is None or p.grad.abs().sum() == 0}
    unread = {  # the text stream ends in the last block
        "sd3": ("transformer_blocks.1.attn.add_q_proj.",),
        "qwen": ("transformer_blocks.0.attn.add_q_proj.", "transformer_blocks.0.attn.to_add_out."),
    }
    assert silent == {name for name in named if name.startswith(unread.get(family, "none of them"))}
    joint = any("add_k_proj" in name for name in named)
    assert joint == (family in ("sd3", "flux", "qwen"))
    assert {name.partition(".lora_")[0].split("attn")[-1].partition(".")[2] for name in named} <= set(ATTENTION)


def test_bad_targets_are_told_in_one_line() -> None:
    denoiser = tiny.unet()
    with pytest.raises(UsageError, match=r'unknown LoRA target "to_qq": did you mean .*to_q'):
        add_lora(denoiser, 2, ["to_k", "to_qq"])
    assert all(p.requires_grad for p in denoiser.parameters()), "a refusal changes nothing"
    bare = nn.ModuleDict({"conv_in": nn.Conv2d(1, 1, 1)})
    with pytest.raises(UsageError, match='unknown LoRA target "to_q": there is conv_in'):
        add_lora(bare, 2, ["to_q"])
    with pytest.raises(UsageError, match="ModuleDict has no layer inside it for a LoRA to adapt"):
        add_lora(bare, 2, attention(bare))


def test_a_pipeline_that_knows_no_lora_gets_it_in_pefts_layout(tmp_path: Path) -> None:
    adapter, other = prepared("sd"), prepared("sd")
    add_lora(adapter.denoiser, 2, attention(adapter.denoiser))
    for name, tensor in lora_state(adapter.denoiser).items():
        tensor += len(name)
    adapter.pipeline = SimpleNamespace(unet=adapter.denoiser)
    assert save_lora(adapter, tmp_path) == tmp_path / WEIGHTS
    load_lora(other.denoiser, tmp_path)
    ours, theirs = lora_state(adapter.denoiser), lora_state(other.denoiser)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# memory


def truly_saved(adapter: PipelineAdapter, rows: int, decoded: bool) -> int:
    """Bytes of the distinct storages that autograd saves in a real call, weights left out."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    condition = adapter.encode([memory.TEXT] * rows)
    x = torch.randn(rows, *adapter.latent_shape, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = adapter.decode(x) if decoded else adapter.predict(adapter.denoiser, x, torch.zeros(rows), condition)
    parts = [part for part in adapter.pipeline.components.values() if isinstance(part, nn.Module)]
    own = {p.untyped_storage().data_ptr() for part in parts for p in (*part.parameters(), *part.buffers())}
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert out.requires_grad
    return sum(size for place, size in found.items() if place not in own)


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_counted_without_computing_them(family: str) -> None:
    adapter = prepared(family)
    add_lora(adapter.denoiser, 2, attention(adapter.denoiser))
    fixed, per_row = denoiser_activations(adapter)
    assert per_row > 50_000
    assert [fixed + rows * per_row for rows in (2, 5)] == [truly_saved(adapter, rows, False) for rows in (2, 5)]
    half_fixed, half_per_row = denoiser_activations(adapter, torch.bfloat16)
    assert half_per_row < 0.8 * per_row
    assert half_fixed > fixed, "autocast keeps copies of frozen float32 weights"


def test_what_the_decoder_keeps_is_counted_too() -> None:
    adapter = prepared("sd")
    fixed, per_picture = decoder_activations(adapter)
    assert [fixed + rows * per_picture for rows in (2, 5)] == [truly_saved(adapter, rows, True) for rows in (2, 5)]


def test_pixels_that_are_not_decoded_cost_their_clamp() -> None:
    class Pixels(StableDiffusionAdapter):
        def decode(self, latents: Tensor) -> Tensor:
            return (latents / 2 + 0.5).clamp(0, 1)

    adapter = Pixels(tiny.stable_diffusion())
    adapter.pipeline.vae = None
    assert decoder_activations(adapter) == (0, 4 * 8 * 8 * 4)


@pytest.mark.parametrize(
    ("settings", "activations"),
    [
        ({}, 100 + 4 * 10),
        ({"guided": True}, 100 + 8 * 10),
        ({"checkpointing": False}, 6 * (100 + 4 * 10)),
        ({"checkpointing": False, "grad_steps": 2}, 2 * (100 + 4 * 10)),
        ({"decoded": True}, 7 + 4 * 70),
        ({"decoded": True, "guided": True, "batch": 1}, 100 + 2 * 10),
        ({"decoded": True, "checkpointing": False}, 6 * (100 + 4 * 10) + 7 + 4 * 70),
    ],
)
def test_a_plan_adds_up(settings: dict[str, Any], activations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = prepared("sd")
    trainable = add_lora(adapter.denoiser, 2, attention(adapter.denoiser))
    monkeypatch.setattr(memory, "denoiser_activations", lambda adapter, dtype: (100, 10))
    monkeypatch.setattr(memory, "decoder_activations", lambda adapter, dtype: (7, 70))
    how: dict[str, Any] = {"batch": 4, "steps": 6, "forks": 3} | settings
    plan = memory_plan(adapter, **how)
    count = sum(p.numel() for p in trainable)
    assert (plan.trainable, plan.gradients, plan.optimiser) == (count, 4 * count, 8 * count)
    assert plan.parameters == sum(p.numel() for p in adapter.denoiser.parameters())
    assert plan.activations == activations
    assert plan.latents == how["batch"] * 7 * (4 * 8 * 8) * 4
    assert plan.copies == 3 * 4 * count
    assert plan.total == plan.weights + 24 * count + activations + plan.latents
    parts = [adapter.pipeline.vae, adapter.pipeline.text_encoder, adapter.denoiser]
    positions = adapter.pipeline.text_encoder.embeddings.position_ids.numel() * 8
    assert plan.weights == positions + sum(4 * p.numel() for part in parts for p in part.parameters())


def test_guidance_costs_no_second_row_where_it_is_an_input() -> None:
    adapter = prepared("flux")
    add_lora(adapter.denoiser, 2, attention(adapter.denoiser))
    plans = [memory_plan(adapter, batch=2, steps=3, guided=guided) for guided in (True, False)]
    assert adapter.distilled and plans[0] == plans[1]


def test_a_plan_is_one_line_for_people() -> None:
    assert str(Plan(2_000_000, 1_000, 3 * 2**30, 2**28, 2**29, 2**27, 2**30, 0)) == (
        "about 4.88 GiB: weights 3.00, gradients 0.25, optimiser 0.50, copies 0.12, activations 1.00, latents 0.00; "
        "1,000 of 2,000,000 parameters trained"
    )
    assert str(Plan(20, 10, 2**20, 0, 0, 0, 2**19, 2**20)).startswith("about 2.50 MiB: weights 1.00, gradients 0.00")


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"steps": 0}, {"grad_steps": 7}, {"grad_steps": 0}])
def test_a_plan_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="each at least 1, grad_steps at most steps"):
        memory_plan(prepared("sd"), **{"batch": 4, "steps": 6} | wrong)
