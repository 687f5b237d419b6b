"""The token policy on the families of transformers: what sharing computes is what the model's own forward computes."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from autotelic.errors import UsageError
from autotelic.testing import vlms as tiny
from autotelic.types import Evaluation, Rollout, Task
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.processing import ProcessorRenderer

FAMILIES = (*tiny.TEXTS, *tiny.VLMS)
TOKENS = 5


def picture(seed: int, side: int = 32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


PICTURES = [picture(seed) for seed in range(3)]


def tasks_for(family: str) -> list[Task]:
    """Two questions of unequal length; the second has two images."""
    sees = family in tiny.VLMS
    first, second = (tuple(PICTURES[:1]), tuple(PICTURES[1:])) if sees else ((), ())
    return [Task("short", "what is red ?", first, horizon=3), Task("long", "how many circle in the picture ?", second)]


def made(family: str, **options: Any) -> tuple[TokenPolicy, Any, Any]:
    model, processor = tiny.vlm(family) if family in tiny.VLMS else tiny.text(family)
    return TokenPolicy.of(model, processor, horizon=TOKENS, **options), model, processor


def inputs_of(policy: TokenPolicy, task: Task) -> dict[str, Tensor]:
    """What the model's own forward wants of a question, made without the policy."""
    processor: Any = policy.renderer.processor  # type: ignore[attr-defined]
    content = [{"type": "image"}] * len(task.images) + [{"type": "text", "text": task.prompt}]
    message = {"role": "user", "content": content if task.images else task.prompt}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    images = {"images": [Image.fromarray(image) for image in task.images]} if task.images else {}
    return dict(processor(text=[text], return_tensors="pt", **images))


def own_log_probs(policy: TokenPolicy, model: Any, rollout: Rollout) -> Tensor:
    """[T] by one plain forward pass over question and answer."""
    tokens = rollout.payload["tokens"][None]
    inputs = inputs_of(policy, rollout.task)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], 1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.full_like(tokens, value)], 1)
    logits = model(**inputs, use_cache=False).logits[0, -tokens.shape[1] - 1 : -1]
    logits = logits.index_fill(-1, torch.tensor(policy.backbone.banned), -torch.inf)
    found: Tensor = logits.log_softmax(-1).gather(-1, tokens[0, :, None])[:, 0]
    return found


def gradient(model: Any) -> Tensor:
    """All gradients in one vector, taken away."""
    found = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


def shared_gradient(policy: TokenPolicy, model: Any, rollouts: list[Rollout]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities [B, T], the weights of their sum, and its gradient."""
    batch = policy.collate(rollouts)
    weights = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0)) * batch.mask
    now = policy.evaluate_actions(batch)
    policy.backward(batch, Evaluation(weights, graph=now.graph))
    return now.log_probs, weights, gradient(model)


def off(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_is_the_models_own_forward(family: str) -> None:
    """Log-probabilities and gradients, unequal prompts and lengths, two images in one prompt, three answers each."""
    policy, model, _ = made(family)
    rollouts = policy.act(tasks_for(family), 3, key=(2,))
    assert policy.backbone.shares, "or nothing is tested here"
    assert len({len(r.mask) for r in rollouts}) > 1, "unequal lengths"
    log_probs, weights, shared = shared_gradient(policy, model, rollouts)
    total = torch.zeros(())
    for row, rollout in enumerate(rollouts):
        own = own_log_probs(policy, model, rollout)
        sampled, length = rollout.log_probs, len(own)
        assert sampled is not None
        torch.testing.assert_close(sampled, own.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(log_probs[row, :length], own.detach(), rtol=0, atol=1e-5)
        total = total + (own * weights[row, :length]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert off(shared, gradient(model)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likeliest_tokens_are_those_of_generate(family: str) -> None:
    policy, model, _ = made(family)
    for rollout in policy.act(tasks_for(family), 1, greedy=True):
        inputs = inputs_of(policy, rollout.task)
        banned = list(policy.backbone.banned)
        found = model.generate(
            **inputs, do_sample=False, max_new_tokens=rollout.task.horizon or TOKENS, suppress_tokens=banned
        )
        assert found[0, inputs["input_ids"].shape[1] :].tolist() == rollout.payload["tokens"].tolist()


@pytest.mark.parametrize("family", tiny.VLMS)
def test_no_placeholder_can_be_said(family: str) -> None:
    policy, _, processor = made(family)
    kept = {"<end_of_utterance>"}  # ends an answer of Idefics
    wanted = {processor.tokenizer.convert_tokens_to_ids(token) for token in set(tiny.SPECIAL[family]) - kept}
    assert set(policy.backbone.banned) == wanted | {processor.tokenizer.pad_token_id}
    logits = policy.logits(torch.randn(7, 32))
    assert bool(logits[:, list(policy.backbone.banned)].isneginf().all())
    assert int(logits.isneginf().sum()) == 7 * len(policy.backbone.banned)


def test_rows_leave_the_batch_when_a_quarter_has_ended() -> None:
    policy, model, _ = made("llama")
    sizes: list[int] = []
    policy.backbone.shares  # noqa: B018  (its trial reads too)
    model.model.norm.register_forward_hook(lambda _, __, out: sizes.append(out.shape[0] * out.shape[1]))
    rollouts = policy.act(tasks_for("llama"), 8, key=(0,))
    lengths = torch.tensor([len(r.mask) for r in rollouts])
    wanted, held = [], 16
    for step in range(1, int(lengths.max())):
        going = int((lengths > step).sum())
        held = going if held - going >= held / 4 else held
        wanted.append(held)
    assert sizes[1:] == wanted and wanted[-1] < 16


def test_a_state_is_read_on_from_twice() -> None:
    """Both readers share the room behind what was read; the second must not write over the first."""
    policy, _, _ = made("llama")
    backbone: Any = policy.backbone
    with torch.no_grad():
        _, state = backbone.read(policy.renderer.prompts(tasks_for("llama")))
        state = backbone.rows(state, torch.tensor([0, 1, 1]))
        one, other = torch.tensor([[5], [6], [7]]), torch.tensor([[8], [9], [10]])
        yes = torch.ones(3, 1, dtype=torch.bool)
        _, first = backbone.read_on(state, one, yes)
        wanted, _ = backbone.read_on(first, one, yes)
        backbone.read_on(state, other, yes)
        again, _ = backbone.read_on(first, one, yes)
        fresh, _ = backbone.read_on(backbone.read_on(state, one, yes)[1], one, yes)
    assert torch.equal(again, wanted)
    torch.testing.assert_close(fresh, wanted, rtol=0, atol=1e-6)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_a_kept_prefix_gives_the_same_gradient_without_reading_again() -> None:
    policy, model, _ = made("qwen2_vl")
    reads: list[int] = []
    model.model.visual.register_forward_hook(lambda *_: reads.append(1))
    tasks = tasks_for("qwen2_vl")
    plain = shared_gradient(policy, model, policy.act(tasks, 3, key=(2,)))[2]
    reads.clear()
    kept = shared_gradient(policy, model, policy.act(tasks, 3, key=(2,), keep_prefix=True))[2]
    assert len(reads) == 1
    assert off(kept, plain) < 1e-6
    rollouts = policy.act(tasks, 3, key=(2,), keep_prefix=True)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
        model.model.visual.patch_embed.proj.weight.mul_(0.5)
    stale = shared_gradient(policy, model, rollouts)[2]
    fresh = shared_gradient(policy, model, rollouts)[2]
    assert torch.equal(stale, fresh), "other weights read again"


def test_features_of_a_frozen_tower_are_kept() -> None:
    policy, model, _ = made("qwen3_vl", freeze_vision=True)
    reads: list[int] = []
    model.model.visual.register_forward_hook(lambda *_: reads.append(1))
    tasks = tasks_for("qwen3_vl")
    first = policy.act(tasks, 2, key=(1,))
    seen = len(reads)
    again = policy.act(tasks, 2, key=(1,))
    policy.fork("start").act(tasks, 2, key=(1,))
    shared_gradient(policy, model, again)
    assert len(reads) == seen > 0
    assert [r.output for r in first] == [r.output for r in again]
    with torch.no_grad():
        model.model.visual.patch_embed.proj.weight.mul_(0.5)
    policy.act(tasks, 1)
    assert len(reads) > seen, "features of other weights are of no use"
    assert not any("visual" in name for name in policy.state_dict())


def test_forks_of_a_trained_tower_keep_features_of_their_own() -> None:
    policy, model, _ = made("qwen2_vl")
    rollouts = policy.act(tasks_for("qwen2_vl"), 2)

    def said(of: TokenPolicy) -> Tensor:
        with torch.no_grad():
            return of.evaluate_actions(of.collate(rollouts)).log_probs

    before = policy.fork("before")
    assert torch.equal(said(before), said(policy))
    with torch.no_grad():
        model.model.visual.patch_embed.proj.weight.mul_(0.5)
    after = policy.fork("after")
    assert torch.equal(said(after), said(policy)) and not torch.equal(said(after), said(before))
    before.copy_from(after)
    assert torch.equal(said(after), said(before))


def test_no_more_features_are_kept_than_asked() -> None:
    policy, _, _ = made("llava", freeze_vision=True, feature_bytes=3000)
    policy.act([Task(str(i), "what is red ?", (PICTURES[0],)) for i in range(4)], 1)
    cache: Any = policy.backbone.features  # type: ignore[attr-defined]
    assert 0 < cache.held <= 3000 and len(cache._known) == 1, "16 features of 32 floats are 2,048 bytes"


# --- models that cannot share, and heads that bend --------------------------------------------------------------------


def test_a_sliding_window_is_read_as_a_whole(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    reader = tiny.tokenizer()
    reader.chat_template = tiny.template()
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**tiny.text_sizes(reader), sliding_window=4)).eval()
    policy = TokenPolicy.of(model, reader, horizon=TOKENS)
    with caplog.at_level(logging.WARNING):
        rollouts = policy.act(tasks_for("llama"), 2, key=(2,))
    assert not policy.backbone.shares and "DynamicSlidingWindowLayer" in caplog.text
    log_probs, _, _ = shared_gradient(policy, model, rollouts)
    for row, rollout in enumerate(rollouts):
        own = own_log_probs(policy, model, rollout).detach()
        assert rollout.log_probs is not None
        torch.testing.assert_close(rollout.log_probs, own, rtol=0, atol=1e-5)
        torch.testing.assert_close(log_probs[row, : len(own)], own, rtol=0, atol=1e-5)


def test_bent_logits_are_the_models_own() -> None:
    """Granite divides its logits."""
    from transformers import GraniteConfig, GraniteForCausalLM

    reader = tiny.tokenizer()
    reader.chat_template = tiny.template()
    torch.manual_seed(0)
    model = GraniteForCausalLM(GraniteConfig(**tiny.text_sizes(reader), logits_scaling=3.0)).eval()
    policy = TokenPolicy.of(model, reader, horizon=TOKENS)
    for rollout in policy.act(tasks_for("llama"), 2, key=(2,)):
        assert policy.backbone.shares and rollout.log_probs is not None
        torch.testing.assert_close(rollout.log_probs, own_log_probs(policy, model, rollout).detach(), rtol=0, atol=1e-5)


def test_an_unknown_head_is_asked_for_its_logits() -> None:
    policy, model, _ = made("llama")
    head = model.lm_head
    head.register_forward_hook(lambda _, __, out: out)  # a hook is the layer's own: still plain
    assert policy.backbone.shares
    other, model, _ = made("llama")
    forward = model.forward

    def bent(*inputs: Any, **named: Any) -> Any:
        found = forward(*inputs, **named)
        found.logits = found.logits.clamp(max=0.5)
        return found

    model.forward = bent
    rollouts = other.act(tasks_for("llama"), 2, key=(2,))
    assert not other.backbone.shares
    for rollout in rollouts:
        assert rollout.log_probs is not None
        torch.testing.assert_close(rollout.log_probs, own_log_probs(other, model, rollout).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2_vl", "smolvlm"])
def test_recomputed_layers_give_the_same_gradient(family: str) -> None:
    policy, model, _ = made(family)
    rollouts = policy.act(tasks_for(family), 2, key=(2,))
    _, _, wanted = shared_gradient(policy, model, rollouts)
    other, model, _ = made(family, gradient_checkpointing=1.0)
    calls: list[int] = []
    rollouts = other.act(tasks_for(family), 2, key=(2,))
    assert other.backbone.shares
    other.backbone.decoder.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[attr-defined]
    _, _, found = shared_gradient(other, model, rollouts)
    assert len(calls) == 4, "prompts and answers once forward, once again in backward"
    assert off(found, wanted) < 1e-5
    assert not model.training


# --- folders, adapters, precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2_vl", "llava"])
def test_a_saved_policy_says_the_same(family: str, tmp_path: Path) -> None:
    policy, _, _ = made(family)
    policy.save_pretrained(tmp_path)
    again = TokenPolicy.from_pretrained(tmp_path, horizon=TOKENS)
    tasks = tasks_for(family)
    assert [r.output for r in again.act(tasks, 2)] == [r.output for r in policy.act(tasks, 2)]
    assert again.backbone.banned == policy.backbone.banned


@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_adapters_alone_are_trained_kept_and_saved(family: str, tmp_path: Path) -> None:
    made(family)[0].save_pretrained(tmp_path / "base")
    policy = TokenPolicy.from_pretrained(tmp_path / "base", horizon=TOKENS, lora_rank=2)
    model: Any = policy.module
    tasks = tasks_for(family)
    rollouts = policy.act(tasks, 2)
    assert [r.output for r in rollouts] == [r.output for r in made(family)[0].act(tasks, 2)], "they change nothing yet"
    assert all("lora_" in name and "visual" not in name for name in policy.state_dict())
    assert sum(p.numel() for p in policy.parameters()) == sum(t.numel() for t in policy.state_dict().values())
    start = policy.fork("start")
    frozen = dict(model.named_parameters())
    shares = {name: p is frozen[name] for name, p in start.module.named_parameters()}
    assert all(same != ("lora_" in name) for name, same in shares.items()), "a fork copies adapters alone"
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3)
    changed = policy.evaluate_actions(policy.collate(rollouts)).log_probs
    assert (start.evaluate_actions(start.collate(rollouts)).log_probs - changed).abs().max() > 1e-3
    policy.save_pretrained(tmp_path / "adapters")
    assert (tmp_path / "adapters" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    again = TokenPolicy.from_pretrained(tmp_path / "adapters", horizon=TOKENS)
    torch.testing.assert_close(again.evaluate_actions(again.collate(rollouts)).log_probs, changed, rtol=0, atol=1e-5)
    assert set(again.state_dict()) == set(policy.state_dict())
    policy.copy_from(start)
    again.load_state_dict(policy.state_dict())
    found = again.evaluate_actions(again.collate(rollouts)).log_probs
    torch.testing.assert_close(found, start.evaluate_actions(start.collate(rollouts)).log_probs, rtol=0, atol=1e-5)


def test_half_precision_shares_and_learns(tmp_path: Path) -> None:
    made("qwen2_vl")[0].save_pretrained(tmp_path)
    policy = TokenPolicy.from_pretrained(tmp_path, dtype=torch.bfloat16, horizon=TOKENS, lora_rank=2)
    assert next(policy.module.parameters()).dtype == torch.bfloat16
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    rollouts = policy.act(tasks_for("qwen2_vl"), 2)
    assert policy.backbone.shares
    log_probs, _, found = shared_gradient(policy, policy.module, rollouts)
    assert bool(found.isfinite().all()) and float(found.abs().max()) > 0
    sampled = policy.collate(rollouts).log_probs["behaviour"]
    torch.testing.assert_close(log_probs, sampled, rtol=0, atol=0.3)


def test_nothing_is_computed_when_a_policy_is_made() -> None:
    with torch.device("meta"):
        model, reader = tiny.text("llama")
    policy = TokenPolicy.of(model, reader, lora_rank=2)
    assert {p.device.type for p in policy.module.parameters()} == {"meta"}


# --- bad input --------------------------------------------------------------------------------------------------------


def blocks(images: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": "what is red ?"}]}]


@pytest.mark.parametrize(
    ("task", "line"),
    [
        (Task("t7", blocks(2), (PICTURES[0],)), "t7: 2 image blocks in the messages, 1 images in the task"),
        (Task("t7", "what ?", ("/no/such.png",)), "t7: image 1: there is no file"),
        (Task("t7", "what ?", (object(),)), "t7: image 1 is no image but object"),
        (Task("t7", "what ?", (np.zeros((4, 4)),)), r"t7: image 1 is no image but ndarray of shape \(4, 4\)"),
        (Task("t7", "what ?", (np.full((4, 4, 3), 7.0),)), "t7: image 1 has values in"),
        (Task("t7", "what ?", (PICTURES[0], picture(0, 80))), "t7: image 2 has 80 x 80 pixels, more than pixel_limit"),
        (Task("t7", ["what"]), "t7: a prompt is a text or a list of"),
        (Task("t7", [{"role": "user", "content": [{"type": "video"}]}]), "t7: a block is"),
    ],
)
def test_a_question_that_cannot_be_read_is_named(task: Task, line: str) -> None:
    policy, _, _ = made("llava", renderer=partial(ProcessorRenderer, pixel_limit=5000))
    with pytest.raises(UsageError, match=line) as error:
        policy.act([task], 1)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.fromarray(picture(0, 64)).save(path)
    path.write_bytes(path.read_bytes()[:300])
    policy, _, _ = made("llava")
    with pytest.raises(UsageError, match="t7: image 1 cannot be decoded"):
        policy.act([Task("t7", "what ?", (str(path),))], 1)


def test_images_come_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "whole.png"
    Image.fromarray(PICTURES[0]).save(path)
    floats = torch.from_numpy(PICTURES[0]).permute(2, 0, 1) / 255
    forms = (PICTURES[0], Image.fromarray(PICTURES[0]), path, torch.from_numpy(PICTURES[0]), floats)
    policy, _, _ = made("llava")
    prompts = policy.renderer.prompts([Task(str(i), "what ?", (image,)) for i, image in enumerate(forms)])
    for prompt in prompts[1:]:
        assert torch.equal(prompt.inputs["pixel_values"], prompts[0].inputs["pixel_values"])


def test_templates_and_models_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model, processor = tiny.vlm("llava")
    processor.chat_template = tiny.template()
    with pytest.raises(UsageError, match="the chat template of LlavaProcessor leaves images out"):
        TokenPolicy.of(model, processor).act([Task("t", "what ?", (PICTURES[0],))], 1)
    model, reader = tiny.text("llama")
    with pytest.raises(UsageError, match=r"t has 1 images, but .* reads text alone"):
        TokenPolicy.of(model, reader).act([Task("t", "what ?", (PICTURES[0],))], 1)
    reader.chat_template = None
    with pytest.raises(UsageError, match="has no chat template"):
        TokenPolicy.of(model, reader).act([Task("t", "what ?")], 1)
    plain = partial(ProcessorRenderer, chat=False)
    assert TokenPolicy.of(model, reader, horizon=2, renderer=plain).act([Task("t", "what ?")], 1)
    reader.eos_token = None
    model.generation_config.eos_token_id = None
    with pytest.raises(UsageError, match="name an end of text"):
        TokenPolicy.of(model, reader)
    with pytest.raises(UsageError, match='cannot load "/no/such/folder"'):
        TokenPolicy.from_pretrained("/no/such/folder")
    model.config.to_json_file(tmp_path / "config.json")
    with pytest.raises(UsageError, match="cannot load"):
        TokenPolicy.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match='unknown LoRA target "q_prj": did you mean q_proj'):
        made("llama", lora_rank=2, lora_targets=["q_prj"])
    with pytest.raises(UsageError, match="rank of at least 1"):
        made("llama", lora_rank=0)
    with pytest.raises(UsageError, match="give a lora_rank"):
        made("llama", lora_alpha=2.0)


def test_more_features_than_places_are_named() -> None:
    model, processor = tiny.vlm("llava")
    processor.num_additional_image_tokens = 3  # of another tower
    with pytest.raises(UsageError, match=r"t: 18 image placeholders in the prompt, 16 features"):
        TokenPolicy.of(model, processor).act([Task("t", "what ?", (PICTURES[0],))], 1)


def test_weights_of_another_policy_are_refused() -> None:
    policy, _, _ = made("llama", lora_rank=2)
    state = policy.state_dict()
    lacking = next(iter(state))
    with pytest.raises(ValueError, match="they lack"):
        policy.load_state_dict({name: t for name, t in state.items() if name != lacking})
    with pytest.raises(ValueError, match="has no counterpart"):
        policy.load_state_dict(state | {"other": torch.zeros(1)})


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "smolvlm", "internvl"])
def test_questions_with_and_without_images_stand_in_one_batch(family: str) -> None:
    """Images of two sizes, where a family does not make them one size."""
    policy, model, _ = made(family)
    tasks = [
        Task("wide", "what is red ?", (picture(5, 32)[:16],)),
        Task("none", "how many ?"),
        Task("square", "what is in the picture ?", (picture(6, 48), PICTURES[0])),
    ]
    rollouts = policy.act(tasks, 2, key=(1,))
    log_probs = policy.evaluate_actions(policy.collate(rollouts)).log_probs
    for row, rollout in enumerate(rollouts):
        own = own_log_probs(policy, model, rollout).detach()
        torch.testing.assert_close(log_probs[row, : len(own)], own, rtol=0, atol=1e-5)
