"""The plan of memory: published models fit where the shipped configs say so, counted on fake tensors."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from autotelic.cli import main
from autotelic.config_files import as_words, read_config
from autotelic.errors import UsageError
from autotelic.options import parse, run_options
from autotelic.testing import vlms as tiny
from autotelic.trainers.learner import backpropagate
from autotelic.trainers.objectives import WeightedImitation
from autotelic.trainers.peak import GIB, Peak, PeakWatch
from autotelic.types import Task
from autotelic.vlm.conversation import Conversation, Script
from autotelic.vlm.plan import Planner, Shape
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.recipes import grpo
from autotelic.vlm.setting import load_policy, plan_of

CONFIGS = Path(__file__).parent.parent / "configs"
SIZES: dict[str, dict[str, Any]] = {
    "3b": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2}
    | {"intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True},
    "7b": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False},
}
"""Of Qwen2.5-VL's language models, as published."""


def published(size: str, folder: Path) -> str:
    """A folder with the config of Qwen2.5-VL, without weights."""
    from transformers import Qwen2_5_VLConfig

    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    text = {**SIZES[size], "rope_parameters": rope, "max_position_embeddings": 128000}
    vision = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420}
    vision["out_hidden_size"] = text["hidden_size"]
    tied = text["tie_word_embeddings"]
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, dtype="bfloat16", tie_word_embeddings=tied)
    config.save_pretrained(folder)
    return str(folder)


def shipped(name: str, folder: Path) -> grpo.Config:
    """A shipped config, its model without weights."""
    file = read_config(str(CONFIGS / name))
    config = parse(run_options(grpo.Config()), as_words(file, grpo.Config()), "run vlm/grpo").config
    return replace(config, model=published(config.model.split("-")[-2].lower(), folder))


@pytest.mark.parametrize(
    "name", ["qwen2.5-vl-3b-24gb", "qwen2.5-vl-7b-24gb", "qwen2.5-vl-3b-80gb", "qwen2.5-vl-7b-80gb"]
)
def test_a_shipped_config_fits_its_card(name: str, tmp_path: Path) -> None:
    config = shipped(f"{name}.yaml", tmp_path)
    room = 1e9 * int(name.rpartition("-")[2].removesuffix("gb"))
    plan = plan_of(config, always=True)
    assert plan is not None and plan.total < 0.93 * room
    if name == "qwen2.5-vl-7b-80gb":
        assert plan.whole == Shape(24, 1200, 16, 256)
        assert plan.sampled.rows >= 384 and plan.learned.tokens >= 16_000 and plan.total <= 70 * GIB


def small(tmp_path: Path, family: str = "qwen2_5_vl", **fields: Any) -> grpo.Config:
    model, processor = tiny.vlm(family)
    TokenPolicy.of(model, processor).save_pretrained(tmp_path)
    config = grpo.Config(model=str(tmp_path), lora_rank=2, tasks_per_step=3, group_size=4, max_new_tokens=8, **fields)
    return replace(config, entropy_coef=0.0)


def test_what_is_counted_for_learning_is_what_learning_takes(tmp_path: Path) -> None:
    """On real tensors, by the policy itself: within a tenth, and recomputed layers take less."""
    found = {}
    for share in (0.0, 1.0):
        config = small(tmp_path, gradient_checkpointing=share, dtype="fp32").resolved(False)
        planner = Planner(config, config.model, torch.float32)
        policy = load_policy(config)
        tasks = [Task(str(i), "what is red ? " * 40, horizon=24) for i in range(3)]
        rollouts = policy.act(tasks, 4, key=(2,))
        length = len(policy.renderer.prompts(tasks)[0].ids)
        batch = policy.collate(rollouts)
        batch.advantages = torch.ones(batch.mask.shape)
        with Peak(policy.module.parameters()) as peak:
            backpropagate(policy, WeightedImitation(), batch)
        counted = planner.learning(Shape(3, length, 4, batch.mask.shape[1]))
        found[share] = counted
        assert counted == pytest.approx(peak.most, rel=0.15), share
    assert found[1.0] < 0.7 * found[0.0]


def test_the_plan_counts_a_copy_of_the_adapted_weights(tmp_path: Path) -> None:
    config = small(tmp_path, dtype="bf16").resolved(False)
    plain, merged = (Planner(replace(config, decoder=way), config.model, torch.bfloat16) for way in ("auto", "merged"))
    policy = load_policy(config)
    adapted = sum(part.base_layer.weight.numel() for part in policy.module.modules() if hasattr(part, "lora_A"))
    assert adapted > 0 and merged.training - plain.training == 2 * adapted


def test_what_is_left_open_is_the_most_that_the_budget_holds(tmp_path: Path) -> None:
    plans = [plan_of(small(tmp_path, memory_gb=gb)) for gb in (0.024, 0.3)]
    little, much = (plan for plan in plans if plan is not None)
    assert little.total <= 0.024e9 and much.total <= 0.3e9
    assert little.learned.rows < much.learned.rows == much.whole.rows
    assert plan_of(small(tmp_path)) is None, "nobody says how much a CPU has"
    told = plan_of(small(tmp_path, memory_gb=0.3, micro_batch_tokens=1300))
    assert told is not None and told.learned.rows == 4, "one question of 1,200 tokens"


def test_a_budget_too_small_for_one_row_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"of one answer takes .* MiB with this model, of which .* are there: give"):
        plan_of(small(tmp_path, memory_gb=0.001))


def test_the_command_line_prints_the_plan_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small(tmp_path / "model")
    words = ["run", "vlm/grpo", "--plan", "--model", str(tmp_path / "model"), "--output-dir", str(tmp_path / "run")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "plan: " in told and "(micro_batch_tokens " in told and not (tmp_path / "run").exists()
    assert main([*words[:3], "--debug"]) == 0 and "small default" in capsys.readouterr().out
    assert main(["run", "vla/raft", "--plan"]) == 2 and "--dry-run measures" in capsys.readouterr().err


# --- what a plan did not foresee ------------------------------------------------------------------------------------


class Slot:
    """Some bytes of a card, until it is dropped."""

    def __init__(self, card: Card, size: int) -> None:
        self.card, self.size = card, size
        card.held += size

    def __del__(self) -> None:
        self.card.held -= self.size


class Card:
    """A card that holds so many saved bytes: autograd's hooks raise above it, as an allocator does."""

    def __init__(self, policy: TokenPolicy, limit: int) -> None:
        self.limit, self.held, self.raised = limit, 0, 0
        self.weights = {weight.data_ptr() for weight in policy.module.parameters()}

    def pack(self, tensor: Tensor) -> tuple[Tensor, Any]:
        if tensor.data_ptr() in self.weights:
            return tensor, None
        if self.held + tensor.nbytes > self.limit:
            self.raised += 1
            raise torch.OutOfMemoryError("out of memory")
        return tensor.detach(), Slot(self, tensor.nbytes)  # the tensor itself would be a cycle where it is an output

    def hooks(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda packed: packed[0])


def test_out_of_memory_in_learning_halves_what_is_held_and_the_gradient_is_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, processor = tiny.text("qwen2")
    policy = TokenPolicy.of(model, processor, horizon=9)
    tasks = [Task("a", "what is red ?"), Task("b", "how many circle in the picture ?")]
    batch = policy.collate(policy.act(tasks, 8, key=(1,)))
    batch.advantages = torch.ones(batch.mask.shape)
    whole = Card(policy, 2**40)
    with whole.hooks():
        now = policy.evaluate_actions(batch)
        most = whole.held
    del now
    gradients = []
    for limit in (2**40, most // 3):
        for weight in policy.parameters():
            weight.grad = None
        card = Card(policy, limit)
        with card.hooks(), caplog.at_level(logging.WARNING):
            backpropagate(policy, WeightedImitation(), batch)
        gradients.append([p.grad.clone() for p in policy.parameters() if p.grad is not None])
        assert (card.raised > 0) == (limit < most)
    assert policy.micro_batch_tokens < 2**16 and "tokens at once from now on" in caplog.text
    scale = max(float(g.abs().max()) for g in gradients[0])
    assert max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True)) < 1e-5 * scale
    with Card(policy, most // 3).hooks():
        backpropagate(policy, WeightedImitation(), batch)  # it stays so


def test_what_sampling_left_is_freed_before_less_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In learning and in sampling: the decoder's keys go first, and only then fewer tokens are held."""
    model, processor = tiny.text("qwen2")
    policy = TokenPolicy.of(model, processor, horizon=9, decoder="static")
    static = policy.static
    assert static is not None
    tasks = [Task("a", "what is red ?"), Task("b", "how many circle in the picture ?")]
    whole = policy.act(tasks, 4, key=(1,))
    batch = policy.collate(whole)
    forward, complete = policy.forward_decisions, policy._complete

    def crowded(work: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            if static.holds:
                raise torch.OutOfMemoryError("out of memory")
            return work(*given, **named)

        return run

    assert static.holds
    monkeypatch.setattr(policy, "forward_decisions", crowded(forward))
    now = policy.evaluate_actions(batch)
    assert not static.holds and policy.micro_batch_tokens == 2**16 and now.log_probs.isfinite().all()
    monkeypatch.undo()
    policy.act(tasks[:1], 1, key=(2,))
    assert static.holds
    monkeypatch.setattr(policy, "_complete", crowded(complete))
    again = policy.act(tasks, 4, key=(1,))
    assert policy.sample_tokens == 2**16
    assert [r.output for r in again] == [r.output for r in whole]


def test_one_row_that_is_too_much_is_told_as_it_is() -> None:
    model, processor = tiny.text("qwen2")
    policy = TokenPolicy.of(model, processor, horizon=9)
    batch = policy.collate(policy.act([Task("a", "what is red ?")], 4, key=(1,)))
    batch.advantages = torch.ones(batch.mask.shape)
    with Card(policy, 10).hooks(), pytest.raises(torch.OutOfMemoryError):
        backpropagate(policy, WeightedImitation(), batch)


def test_out_of_memory_in_sampling_draws_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny.text("qwen2")
    policy = TokenPolicy.of(model, processor, horizon=9)
    tasks = [Task("a", "what is red ?"), Task("b", "how many circle in the picture ?")]
    whole = policy.act(tasks, 4, key=(1,))
    sample = policy.sample

    def sampled(prompts: Any, n: int, *rest: Any) -> Any:
        if len(prompts) * n > 3:
            raise torch.OutOfMemoryError("out of memory")
        return sample(prompts, n, *rest)

    monkeypatch.setattr(policy, "sample", sampled)
    parts = policy.act(tasks, 4, key=(1,))
    assert policy.sample_tokens < 2**16
    for one, other in zip(whole, parts, strict=True):
        assert one.task.id == other.task.id and torch.equal(one.payload["tokens"], other.payload["tokens"])


def test_out_of_memory_in_a_conversation_holds_the_same_one_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its beginning: what is said hangs on the task, the sample and the turn alone."""
    model, processor = tiny.text("qwen2")
    policy = TokenPolicy.of(model, processor, horizon=5)
    actor = Conversation(policy, Script(("again",)), turns=2)
    tasks = [Task("a", "what is red ?"), Task("b", "how many circle in the picture ?")]
    whole = actor.act(tasks, 4, key=(1,))
    rows = policy.backbone.rows

    def copied(state: Any, index: Tensor) -> Any:
        if len(index) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return rows(state, index)

    monkeypatch.setattr(policy.backbone, "rows", copied)
    parts = actor.act(tasks, 4, key=(1,))
    assert policy.sample_tokens < 2**16
    assert [r.payload["tokens"].tolist() for r in parts] == [r.payload["tokens"].tolist() for r in whole]


def test_the_peak_of_a_round_is_told_beside_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    card = torch.device("cuda", 0)
    assert PeakWatch(card, 4 * GIB).update([]) == {"memory/peak_gib": 3.0, "memory/of_plan": 0.75}
    assert PeakWatch(card, None).update([]) == {"memory/peak_gib": 3.0}


def test_three_quarters_of_the_layers_recomputed_cost_less_than_two_fifths_more_arithmetic(tmp_path: Path) -> None:
    """Of the published 7B in eight of its 28 layers, and as much smaller a vocabulary."""
    from transformers import AutoConfig

    described = AutoConfig.from_pretrained(published("7b", tmp_path))
    described.text_config.num_hidden_layers, described.text_config.vocab_size = 8, 152064 * 8 // 28
    described.text_config.layer_types = described.text_config.layer_types[:8]
    described.save_pretrained(tmp_path)
    counts = []
    for share in (0.0, 0.75, 1.0):
        config = grpo.Config(model=str(tmp_path), gradient_checkpointing=share).resolved(False)
        counts.append(Planner(config, config.model, torch.bfloat16).operations(Shape(4, 1200, 16, 256)))
    plain, most, every = counts
    assert 1.3 < most / plain <= 1.4 < every / plain < 1.55


# --- flags ----------------------------------------------------------------------------------------------------------


def test_flags_of_loading_reach_the_model(tmp_path: Path) -> None:
    def made(**fields: Any) -> Any:
        return load_policy(small(tmp_path, **fields).resolved(False))

    plain, told = made(), made(attn_implementation="eager", gradient_checkpointing=0.5, device_map="cpu")
    text = [policy.module.config.get_text_config()._attn_implementation for policy in (plain, told)]
    assert text == ["sdpa", "eager"]
    assert plain.backbone._recomputed == [] and len(told.backbone._recomputed) >= 1
    assert told.device.type == "cpu"


def test_an_unknown_key_of_a_config_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"micro_batch_token": 5}))
    with pytest.raises(UsageError, match=r'unknown field in .*run.yaml "micro_batch_token"'):
        as_words(read_config(str(tmp_path / "run.yaml")), grpo.Config())
