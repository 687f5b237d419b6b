"""Renderers: a family of models with quirks is joined by registering a class, and every hook is felt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from autotelic.cli import main
from autotelic.errors import UsageError
from autotelic.plugins import register
from autotelic.testing import vlms as tiny
from autotelic.types import Rollout, Task
from autotelic.vlm.conversation import Conversation, Reply, Turn
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.processing import IdeficsRenderer, ProcessorRenderer
from autotelic.vlm.renderer import Features, Prompt

from .test_vlm_families import PICTURES, TOKENS, gradient, inputs_of, off, own_log_probs, shared_gradient

EXAMPLE = Path(__file__).parent.parent / "examples" / "vlm_family.py"
GEMMA = f"{EXAMPLE}:Gemma3Renderer"
TASKS = [
    Task("short", "what is red ?", tuple(PICTURES[:1]), horizon=3),
    Task("long", "how many circle in the picture ?", tuple(PICTURES[1:])),
    Task("none", "how many ?"),
]
LAYERS = {"apart": "full_attention", "windows": "sliding_attention"}
"""Of Gemma 3: prompts are shared where every layer sees all; the published models have layers of both kinds."""


def gemma(layers: str = "windows", renderer: str = GEMMA, **options: Any) -> tuple[TokenPolicy, Any, Any]:
    model, processor = tiny.vlm("gemma3", layer_types=[LAYERS[layers]] * 2)
    return TokenPolicy.of(model, processor, horizon=TOKENS, renderer=renderer, **options), model, processor


def of(family: str, kind: type[ProcessorRenderer]) -> tuple[TokenPolicy, Any]:
    model, processor = tiny.vlm(family) if family in tiny.VLMS else tiny.text(family)
    return TokenPolicy.of(model, processor, horizon=TOKENS, renderer=kind), model


def agree(policy: TokenPolicy, rollouts: list[Rollout]) -> Tensor:
    """[B, T] log-probs when learning, which are those of sampling."""
    batch = policy.collate(rollouts)
    now = policy.evaluate_actions(batch).log_probs.detach()
    torch.testing.assert_close(now, batch.log_probs["behaviour"], rtol=0, atol=1e-5)
    return now


# --- a family that the package does not know ------------------------------------------------------


@pytest.mark.parametrize("layers", LAYERS)
def test_gemma_samples_and_learns_by_its_own_forward(layers: str) -> None:
    """Two images in a question, one, and none; prompts shared and not; log-probs and gradients."""
    policy, model, _ = gemma(layers)
    rollouts = policy.act(TASKS, 3, key=(2,))
    assert policy.backbone.shares == (layers == "apart")
    log_probs, weights, shared = shared_gradient(policy, model, rollouts)
    total = torch.zeros(())
    for row, rollout in enumerate(rollouts):
        own = own_log_probs(policy, model, rollout)
        assert rollout.log_probs is not None
        torch.testing.assert_close(rollout.log_probs, own.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(log_probs[row, : len(own)], own.detach(), rtol=0, atol=1e-5)
        total = total + (own * weights[row, : len(own)]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert off(shared, gradient(model)) < 1e-5


@pytest.mark.parametrize("layers", LAYERS)
def test_gemma_says_what_generate_says(layers: str) -> None:
    policy, model, _ = gemma(layers)
    for rollout in policy.act(TASKS, 1, greedy=True):
        inputs = inputs_of(policy, rollout.task)
        found = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=rollout.task.horizon or TOKENS,
            suppress_tokens=list(policy.backbone.banned),
            eos_token_id=list(policy.renderer.ends),
        )
        assert found[0, inputs["input_ids"].shape[1] :].tolist() == rollout.payload["tokens"].tolist()


def test_inputs_per_token_are_felt() -> None:
    """Without the marks an image's tokens would not see each other, and the numbers would be others."""
    policy, model, _ = gemma("apart")
    (rollout,) = policy.act(TASKS[1:2], 1, key=(2,))
    inputs = inputs_of(policy, rollout.task)
    tokens = rollout.payload["tokens"]
    with torch.no_grad():
        ids = torch.cat([inputs["input_ids"], tokens[None]], 1)
        blind = model(input_ids=ids, pixel_values=inputs["pixel_values"], use_cache=False).logits[0]
    blind = blind[-len(tokens) - 1 : -1].index_fill(-1, torch.tensor(policy.backbone.banned), -torch.inf)
    blind = blind.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert rollout.log_probs is not None and float((rollout.log_probs - blind).abs().max()) > 1e-3


def test_an_unknown_family_with_marks_is_refused_with_what_to_do() -> None:
    policy, _, _ = gemma(renderer="autotelic.vlm.processing:ProcessorRenderer")
    with pytest.raises(UsageError, match=r'short: Gemma3Processor .* register a renderer "gemma3"') as error:
        policy.act(TASKS[:1], 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layers", LAYERS)
def test_a_turn_ends_as_the_template_ends_it(layers: str) -> None:
    """What is read in a conversation is what the template writes of it, a picture in the reply included."""
    policy, _, processor = gemma(layers)
    policy.renderer.ends |= frozenset(range(3, processor.tokenizer.vocab_size))  # a turn is a word, or its end
    reply = Reply("what is blue ?", images=(PICTURES[2],))

    def environment(task: Task, turns: Any) -> Reply:
        return reply

    rollouts = Conversation(policy, environment, turns=2).act(TASKS[:1], 4, key=(2,))
    agree(policy, rollouts)
    end = processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert policy.renderer.tokens("red").tolist()[-1] == end in gemma()[0].renderer.ends
    said = "red"
    (rollout,) = Conversation(policy, environment).encode(TASKS[:1], [[Turn(said, reply), Turn("blue")]])
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is red ?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": said}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": reply.text}]},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [Image.fromarray(image) for image in (PICTURES[0], PICTURES[2])]
    wanted = processor(text=[text], images=images)["input_ids"][0]
    ids = [*policy.renderer.prompts(TASKS[:1])[0].ids.tolist(), *rollout.payload["tokens"].tolist()]
    assert ids[: len(wanted)] == list(wanted)


def test_grpo_trains_a_registered_family(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, processor = tiny.vlm("gemma3")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for number in range(12):
        Image.fromarray(PICTURES[0] // 13 + number).save(tmp_path / f"{number}.png")
    rows = [{"prompt": "what is red ?", "image": f"{number}.png", "answer": "red"} for number in range(12)]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    named = ["--use", str(EXAMPLE), "--model", str(tmp_path / "model"), "--data", str(tmp_path / "q.jsonl")]
    sizes = [
        "--max-new-tokens",
        "3",
        "--gate-labels",
        "2",
        "--lora-rank",
        "2",
        "--tasks-per-step",
        "4",
        "--minibatches",
        "1",
    ]
    reward = tmp_path / "spread.py"  # whatever an untrained model says
    reward.write_text(
        "def spread(completions, **columns):\n    return [sum(map(ord, text)) % 7 for text in completions]\n"
    )
    rewards = ["--rewards", f"{reward}:spread"]
    assert main(["run", "vlm/grpo", "--debug", *named, *sizes, *rewards, "--output-dir", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows and all(row["objective/grad_norm"] > 0 for row in rows)
    assert abs(rows[0]["objective/ratio_max"] - 1) < 1e-4, "what is learned from is what was sampled"


# --- which renderer -------------------------------------------------------------------------------


def test_the_models_type_chooses() -> None:
    kinds = {family: type(TokenPolicy.of(*tiny.vlm(family)).renderer) for family in tiny.VLMS}
    idefics = {family for family, kind in kinds.items() if kind is IdeficsRenderer}
    assert idefics == {"smolvlm", "idefics3"}
    assert set(kinds.values()) == {IdeficsRenderer, ProcessorRenderer}
    assert type(TokenPolicy.of(*tiny.text("llama")).renderer) is ProcessorRenderer
    register("renderer", "llama_of_the_tests", ProcessorRenderer)
    model, reader = tiny.text("llama")
    with pytest.raises(UsageError, match="did you mean llama_of_the_tests"):
        TokenPolicy.of(model, reader, renderer="llama_of_the_test")
    with pytest.raises(UsageError, match="the renderer Mute has no ends"):
        register("renderer", "mute", Mute)
        TokenPolicy.of(model, reader, renderer="mute")


class Mute:
    """Lacks everything."""


# --- hooks ----------------------------------------------------------------------------------------


def test_a_renderer_can_say_that_nothing_is_shared() -> None:
    class Whole(ProcessorRenderer):
        shares = False

    policy, _ = of("qwen2_vl", Whole)
    plain, _ = of("qwen2_vl", ProcessorRenderer)
    rollouts = plain.act(TASKS, 2, key=(1,))
    assert plain.backbone.shares and not policy.backbone.shares
    torch.testing.assert_close(agree(policy, policy.act(TASKS, 2, key=(1,))), agree(plain, rollouts))


def test_positions_are_felt() -> None:
    """Every second position, in sampling, in learning, and where nothing is shared."""

    class Sparse(ProcessorRenderer):
        def positions(self, prompt: Prompt, base: Any) -> Tensor:
            return 2 * torch.arange(len(prompt.ids))

    tasks = [replace(task, images=()) for task in TASKS]
    policy, model = of("llama", Sparse)
    rollouts = policy.act(tasks, 2, key=(1,))
    assert policy.backbone.shares
    now = agree(policy, rollouts)
    for row, rollout in enumerate(rollouts):
        prompt, tokens = policy.renderer.prompts([rollout.task])[0].ids, rollout.payload["tokens"]
        places = torch.cat([2 * torch.arange(len(prompt)), 2 * len(prompt) - 1 + torch.arange(len(tokens))])
        inputs = {"input_ids": torch.cat([prompt, tokens])[None], "position_ids": places[None]}
        with torch.no_grad():
            logits = model(**inputs, attention_mask=torch.ones_like(places)[None], use_cache=False).logits
        logits = logits[0, len(prompt) - 1 : -1].index_fill(-1, torch.tensor(policy.backbone.banned), -torch.inf)
        own = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        torch.testing.assert_close(now[row, : len(own)], own, rtol=0, atol=1e-5)
        assert not torch.allclose(own_log_probs(policy, model, rollout).detach(), own, atol=1e-3)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "internvl"])
def test_features_are_encoded_and_placed_by_the_renderer(family: str) -> None:
    """Half the features, made in one hook and undone in the other, are the features."""

    class Half(ProcessorRenderer):
        def encode(self, base: Any, inputs: Mapping[str, Tensor]) -> Features:
            features = super().encode(base, inputs)
            return replace(features, pooled=features.pooled / 2)

    class Doubled(Half):
        def place(self, features: Features) -> dict[str, Any]:
            return super().place(replace(features, pooled=features.pooled * 2))

    plain, _ = of(family, ProcessorRenderer)
    rollouts = plain.act(TASKS, 2, key=(1,))
    wanted = agree(plain, rollouts)
    both, _ = of(family, Doubled)
    torch.testing.assert_close(agree(both, both.act(TASKS, 2, key=(1,))), wanted, rtol=0, atol=1e-5)
    half, _ = of(family, Half)
    other = half.evaluate_actions(half.collate(rollouts)).log_probs
    assert float((other[:4] - wanted[:4]).abs().max()) > 1e-3
    torch.testing.assert_close(other[4:], wanted[4:], rtol=0, atol=1e-5)  # a question without images


def test_a_family_bans_and_scales_by_its_renderer() -> None:
    class Careful(ProcessorRenderer):
        def placeholder_ids(self) -> tuple[int, ...]:
            return (*super().placeholder_ids(), self.tokenizer.convert_tokens_to_ids("dog"))

        def scale_logits(self, logits: Tensor, config: Any) -> Tensor:
            return super().scale_logits(logits, config) * 0

    policy, model = of("llama", Careful)
    forward = model.forward

    def flat(*inputs: Any, **named: Any) -> Any:
        output = forward(*inputs, **named)
        output.logits = output.logits * 0
        return output

    model.forward = flat
    rollouts = policy.act([replace(task, images=()) for task in TASKS], 2, key=(1,))
    assert policy.backbone.shares, "the head is what the renderer says"
    left = model.config.vocab_size - len(policy.backbone.banned)
    assert left == len(policy.renderer.tokenizer) - 2  # type: ignore[attr-defined]  # padding and a dog
    for rollout in rollouts:
        assert rollout.log_probs is not None
        torch.testing.assert_close(rollout.log_probs.exp(), torch.full_like(rollout.log_probs, 1 / left))


@pytest.mark.parametrize("family", ["qwen2_vl", "smolvlm"])
def test_pictures_of_a_reply_are_joined_to_the_questions(family: str) -> None:
    """Of another size, where a family keeps sizes; log-probs are those of one forward pass over all of it."""
    policy, model = of(family, IdeficsRenderer if family == "smolvlm" else ProcessorRenderer)
    policy.renderer.ends |= frozenset(range(3, 30))  # a turn is a word
    reply = Reply("what is blue ?", images=(PICTURES[2][:16],))
    rollouts = Conversation(policy, lambda task, turns: reply, turns=2).act(TASKS[:1], 4, key=(2,))
    now = agree(policy, rollouts)
    for row, rollout in enumerate(rollouts):
        (*_, (prompt, start, end)) = policy.renderer.stretches(policy.renderer.prompts(TASKS[:1])[0], rollout.payload)
        assert start > 1, "the second turn follows a longer prompt"
        kinds = {"mm_token_type_ids": policy.renderer.image_places(prompt.ids).long()} if family == "qwen2_vl" else {}
        tokens = rollout.payload["tokens"][start:end]
        longer = {name: torch.cat([kind, torch.zeros_like(tokens)])[None] for name, kind in kinds.items()}
        ids = torch.cat([prompt.ids, tokens])[None]
        with torch.no_grad():
            logits = model(input_ids=ids, **prompt.inputs, **longer, use_cache=False).logits[0, -len(tokens) - 1 : -1]
        own = logits.index_fill(-1, torch.tensor(policy.backbone.banned), -torch.inf).log_softmax(-1)
        own = own.gather(-1, tokens[:, None])[:, 0]
        torch.testing.assert_close(now[row, start:end], own, rtol=0, atol=1e-5)
