"""OpenVLA-7B on one card: the config that ships is counted on the published architecture, without a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autotelic.config_files import as_words, read_config
from autotelic.envs.simulator import View
from autotelic.options import parse, run_options
from autotelic.testing.held import Held
from autotelic.testing.published import openvla_7b
from autotelic.testing.vlms import tokenizer, vlm
from autotelic.vla.chunk_policy import Seen
from autotelic.vla.environments import _foreign_policy
from autotelic.vla.memory import action_model_plan
from autotelic.vla.openvla import OpenVLAPolicy
from autotelic.vla.prismatic import PrismaticProcessor
from autotelic.vla.recipes import evolve_vla

CONFIG = Path(__file__).parents[1] / "configs" / "openvla-7b-metaworld-80gb.yaml"
GIB = 2**30


def shipped() -> evolve_vla.Config:
    plain = evolve_vla.Config()
    config: evolve_vla.Config = parse(
        run_options(plain), as_words(read_config(str(CONFIG)), plain), "run vla/evolve_vla"
    ).config
    return config


def plan(config: evolve_vla.Config, layers: int) -> dict[str, int]:
    model = openvla_7b(layers, config.lora_rank)
    options: dict[str, Any] = {"chunk": config.chunk, "action_size": 4, "decoding": config.decoding}
    options |= {"sample_rows": config.sample_rows, "micro_batch_rows": config.micro_batch_rows}
    options |= {"gradient_checkpointing": config.gradient_checkpointing}
    policy = OpenVLAPolicy(model, PrismaticProcessor.for_model(model, tokenizer()), **options)
    ids = torch.full((1, 256 + 32), 5)
    ids[:, 1:257] = model.config.image_token_id
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.zeros(1, 6, 224, 224)}
    return action_model_plan(policy, inputs, dtype=torch.bfloat16)


def test_the_config_that_ships_fits_eighty_gigabytes() -> None:
    """Counted with one layer and with two, in which all is linear; a tenth of the card is left."""
    config = shipped()
    assert (config.model, config.dtype, config.decoding) == ("openvla/openvla-7b", "bf16", "parallel")
    one, two = plan(config, 1), plan(config, 2)
    whole = {name: one[name] + 31 * (two[name] - one[name]) for name in one}
    assert 14 * GIB < whole["weights"] < 15 * GIB and 25 * GIB < whole["total"] < 70 * GIB, whole


def test_seven_billion_weights_are_counted() -> None:
    model = openvla_7b()
    count = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)
    assert count == 7_541_237_184  # what the published checkpoint holds


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_share_of_the_layers_is_recomputed(share: float) -> None:
    model, processor = vlm("openvla", num_hidden_layers=4)
    OpenVLAPolicy(model, processor, chunk=1, action_size=2, bins=8, view=View(32), gradient_checkpointing=share)
    layers = [part.gradient_checkpointing for part in model.modules() if hasattr(part, "gradient_checkpointing")]
    on = sum(bool(each) for each in layers)
    assert on == int(share * len(layers)) and len(layers) >= 5  # those of Llama, and the towers


def test_less_is_held_and_the_gradient_is_the_same() -> None:
    found = {}
    for share in (0, 1):
        model, processor = vlm("openvla", num_hidden_layers=4)
        made = OpenVLAPolicy(
            model, processor, chunk=1, action_size=2, bins=8, view=View(32), gradient_checkpointing=share
        )
        pictures = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        seen = Seen(["left"] * 4, torch.zeros(4, 0), {"main": pictures})
        with Held(model) as held:
            loss = made.logits(seen, torch.ones(4, 2, dtype=torch.long)).log_softmax(-1)[..., 0].sum()
            before = held.now
            loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found[share] = (torch.cat([grad.flatten() for grad in grads]), before)
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-4, rtol=1e-4)
    assert found[1][1] < 0.3 * found[0][1]


def test_flags_reach_a_model_that_says_actions(tmp_path: Path) -> None:
    model, processor = vlm("openvla")
    model.config.norm_stats = {
        name: {"action": {"q01": [-2.0] * 3, "q99": [2.0] * 3}} for name in ("bridge", "fractal")
    }
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")

    def made(**flags: Any) -> OpenVLAPolicy:
        config = evolve_vla.Config(model=str(tmp_path / "model"), obs_type="pixels", **flags)
        policy = _foreign_policy(config, 3, 2)
        assert isinstance(policy, OpenVLAPolicy)
        return policy

    bins = pytest.MonkeyPatch()
    bins.setattr("autotelic.vla.openvla._action_ids", lambda *_: list(range(9, 1, -1)))
    plain = made()
    assert plain.pretrained and all("lora_" in name for name in plain.trained()) and plain.scale is None
    assert (plain.sample_rows, plain.decoding) == (64, "autoregressive")
    told = made(lora_rank=0, statistics="fractal", decoding="parallel", sample_rows=5, gradient_checkpointing=1)
    bins.undo()
    assert not any("lora_" in name for name in told.trained()) and len(told.trained()) > len(plain.trained()) / 4
    assert (told.sample_rows, told.decoding) == (5, "parallel") and told.scale is not None
    assert any(getattr(part, "gradient_checkpointing", False) for part in told.module.modules())
