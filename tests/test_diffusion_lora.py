"""Low-rank adapters of denoisers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autotelic.diffusion.lora import ATTENTION, attention, save_lora
from autotelic.diffusion.pipelines import PipelineAdapter, adapter_for
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
