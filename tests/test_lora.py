"""One LoRA for every network: PEFT's own loader reads it, its steps are float32, and what is foreign is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autotelic.diffusion.lora import attention
from autotelic.errors import UsageError
from autotelic.testing import pipelines as tiny_pipelines
from autotelic.testing import vlms as tiny_vlms
from autotelic.trainers.lora import CONFIG, WEIGHTS, add_lora, has_lora, load_lora, lora_state, save_lora
from autotelic.vla.policy import ActionModel
from autotelic.vlm.policy import TokenPolicy

from . import test_vla_openvla as openvla
from .small_drawing import TASKS, policy_of
from .test_vlm_families import tasks_for

WORDS = torch.tensor([[1, 2, 3]])
STATES = torch.linspace(-1, 1, 20).view(5, 4)


def text() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    return tiny_vlms.text("llama")[0].eval(), lambda model: model(WORDS).logits


def robot() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    torch.manual_seed(0)
    model = ActionModel(4, 2, chunk=4, head="gaussian", hidden=32, layers=2)
    return model, lambda model: model(STATES, torch.ones(5, 2, dtype=torch.long))


def denoiser() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    told = torch.ones(1, 3, 16)
    torch.manual_seed(0)
    return tiny_pipelines.unet(), lambda model: model(x, torch.tensor([7]), told).sample


NETWORKS = {"text": text, "robot": robot, "denoiser": denoiser}


def shaken(module: nn.Module, size: float = 0.3) -> None:
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=random)


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_pefts_own_loader_reads_what_is_saved_and_we_read_what_it_saves(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    module, answer = NETWORKS[kind]()
    before = answer(module)
    add_lora(module, 2, alpha=6)
    assert torch.equal(answer(module), before), "B is zero at the start"
    shaken(module)
    after = answer(module)
    assert (after - before).abs().max() > 1e-3
    save_lora(module, tmp_path / "ours", base="the/base")
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {CONFIG, WEIGHTS}
    assert json.loads((tmp_path / "ours" / CONFIG).read_text())["base_model_name_or_path"] == "the/base"
    wrapped: Any = PeftModel.from_pretrained(NETWORKS[kind]()[0], str(tmp_path / "ours"))
    torch.testing.assert_close(answer(wrapped.base_model.model.eval()), after)
    wrapped.save_pretrained(str(tmp_path / "theirs"))
    again, _ = NETWORKS[kind]()
    trained = load_lora(again, tmp_path / "theirs")
    torch.testing.assert_close(answer(again), after)
    assert {id(p) for p in trained} == {id(p) for p in again.parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained) == sum(t.numel() for t in lora_state(module).values())


def test_the_head_over_a_vocabulary_is_left_alone_as_peft_does() -> None:
    module, _ = text()
    add_lora(module, 2, "all-linear")
    names = {name.partition(".lora_")[0].rpartition(".")[2] for name in lora_state(module)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("kind", ["vlm", "vla", "diffusion"])
def test_adapters_are_float32_on_a_bfloat16_model_that_acts_and_learns(kind: str, tmp_path: Path) -> None:
    rollouts: list[Any]
    if kind == "vlm":
        model, processor = tiny_vlms.vlm("qwen2_vl")
        policy: Any = TokenPolicy.of(model.to(torch.bfloat16), processor, horizon=4, lora_rank=2)
        rollouts = policy.act(tasks_for("qwen2_vl"), 2)
    elif kind == "vla":
        openvla.policy(chunk=1, action_size=2).save_pretrained(tmp_path)
        policy = openvla.OpenVLAPolicy.from_pretrained(str(tmp_path), dtype=torch.bfloat16, lora_rank=2)
        rollouts = openvla.brightness(policy, 0)
    else:
        policy = policy_of("sd")
        policy.adapter.pipeline.to(torch.bfloat16)
        add_lora(policy.module, 2, attention(policy.module))
        rollouts = policy.act(TASKS, 1)
    assert {p.dtype for name, p in policy.module.named_parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    batch = policy.collate(rollouts)
    now = policy.evaluate_actions(batch)
    policy.backward(batch, type(now)(torch.ones_like(now.log_probs) * batch.mask))
    found = [p.grad for p in policy.parameters() if p.grad is not None]
    assert found and {g.dtype for g in found} == {torch.float32}
    assert max(float(g.abs().max()) for g in found) > 0


@pytest.mark.parametrize("kind", ["vlm", "vla", "diffusion"])
def test_a_policy_without_its_adapters_is_the_one_it_began_as(kind: str) -> None:
    if kind == "vlm":
        policy: Any = TokenPolicy.of(*tiny_vlms.text("llama"), horizon=4)
        rollouts = policy.act(tasks_for("llama"), 2)
    elif kind == "vla":
        policy = openvla.policy(chunk=1, action_size=2)
        rollouts = openvla.brightness(policy, 0)
    else:
        policy = policy_of("sd")
        rollouts = policy.act(TASKS, 1)
    batch = policy.collate(rollouts)
    before = policy.evaluate_actions(batch).log_probs
    add_lora(policy.module, 2)
    shaken(policy.module)
    assert (policy.evaluate_actions(batch).log_probs - before).abs().max() > 1e-3
    base = policy.fork("base")
    with torch.no_grad():
        for name, weight in base.trained().items():
            weight.mul_(".lora_B." not in name)
    torch.testing.assert_close(base.evaluate_actions(batch).log_probs, before)


def test_the_start_is_fixed_by_the_seed_alone() -> None:
    states = []
    for seed, before in [(3, 0), (3, 1), (4, 0)]:
        module, _ = robot()
        torch.manual_seed(before)
        expected = torch.random.get_rng_state()
        add_lora(module, 2, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), expected)
        states.append(lora_state(module))
    first, second, other = states
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) == ("lora_B" in name) for name in first)


def test_bad_input_is_told_in_one_line(tmp_path: Path) -> None:
    module, _ = text()
    with pytest.raises(UsageError, match="a LoRA has a rank of at least 1, not 0"):
        add_lora(module, 0)
    with pytest.raises(UsageError, match='unknown LoRA target "q_prj": did you mean q_proj'):
        add_lora(module, 2, ["q_prj"])
    with pytest.raises(UsageError, match="LlamaForCausalLM has no LoRA: call add_lora first"):
        save_lora(module, tmp_path)
    with pytest.raises(UsageError, match="Identity has no layer inside it"):
        add_lora(nn.Identity(), 2)
    assert not has_lora(module) and all(p.requires_grad for p in module.parameters()), "a refusal changes nothing"
    add_lora(module, 2)
    with pytest.raises(UsageError, match="LlamaForCausalLM has a LoRA already"):
        add_lora(module, 2)


def test_foreign_adapters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no adapters: there are no adapter_config.json"):
        load_lora(robot()[0], tmp_path)
    module, _ = robot()
    add_lora(module, 2)
    save_lora(module, tmp_path)
    with pytest.raises(UsageError, match="do not fit LlamaForCausalLM: "):
        load_lora(text()[0], tmp_path)
    with pytest.raises(UsageError, match="has a LoRA already"):
        load_lora(module, tmp_path)
    wider = ActionModel(4, 2, chunk=4, head="gaussian", hidden=64, layers=2)
    with pytest.raises(UsageError, match="do not fit ActionModel: ") as told:
        load_lora(wider, tmp_path)
    assert "\n" not in str(told.value)
    state = load_file(tmp_path / WEIGHTS)
    one = next(iter(state))
    save_file({name: tensor for name, tensor in state.items() if name != one}, tmp_path / WEIGHTS)
    with pytest.raises(UsageError, match="do not fit ActionModel: they lack body"):
        load_lora(robot()[0], tmp_path)
    save_file(state | {"base_model.model.other.lora_A.weight": torch.zeros(1)}, tmp_path / WEIGHTS)
    with pytest.raises(UsageError, match="do not fit ActionModel: it has no other"):
        load_lora(robot()[0], tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(UsageError, match="adapters of PEFT's kind IA3: a LoRA is wanted"):
        load_lora(robot()[0], tmp_path)
