"""Models that speak: what drifts, what does not train, and questions that only a processor would refuse."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from autotelic.testing import vlms as tiny
from autotelic.types import Task
from autotelic.vlm.conversation import Conversation, Reply
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.server import ServerActor

from .cases import Gives, GoesOn, Refuses, autotelic, case

speaks = partial(case, modality="vlm")
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
SHORT, LONG = Task("short", "what is red ?"), Task("long", "what is red ? " * 8)


@contextmanager
def lines() -> Iterator[list[str]]:
    """What the library says in its log."""
    said: list[str] = []

    class Keeps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, logger = Keeps(), logging.getLogger("autotelic")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def reader() -> Any:
    made = tiny.tokenizer()
    made.chat_template = tiny.template()
    return made


# --- sampling and learning agree -------------------------------------------------------------------------------------


def turning(kind: str) -> TokenPolicy:
    """A model whose angles change behind 24 tokens."""
    words = reader()
    torch.manual_seed(0)
    if kind == "longrope":
        from transformers import Phi3Config, Phi3ForCausalLM

        rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
        rope |= {"original_max_position_embeddings": 24}
        sizes = tiny.text_sizes(words) | {"original_max_position_embeddings": 24}
        model: Any = Phi3ForCausalLM(Phi3Config(**sizes, rope_parameters=rope))
    else:
        from transformers import LlamaConfig, LlamaForCausalLM

        rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
        sizes = tiny.text_sizes(words) | {"max_position_embeddings": 24}
        model = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope))
    return TokenPolicy.of(model.eval(), words, horizon=16)


def drift(policy: TokenPolicy, tasks: list[Task]) -> bool:
    """Whether log-probabilities of sampling are those of learning, to 1e-4 nats."""
    rollouts = policy.act(tasks, 8, key=(1,))
    batch = policy.collate(rollouts)
    now = policy.evaluate_actions(batch).log_probs
    return float((now - batch.log_probs["behaviour"])[batch.mask].abs().max()) < 1e-4


for kind in ("longrope", "dynamic"):
    speaks(f"vlm A14: {kind} before its switch", kind="drift", entry="sampling", required=Gives(True), by="user")(
        lambda folder, kind=kind: drift(turning(kind), [SHORT])
    )
    speaks(
        f"vlm A14: {kind} past its switch",
        kind="drift",
        entry="sampling",
        required=Refuses(kind),
        by="user",
    )(lambda folder, kind=kind: drift(turning(kind), [SHORT, LONG]))

    @speaks(
        f"vlm A14: a conversation that grows past the switch of {kind}",
        kind="drift",
        entry="reply",
        required=Gives(True),
        by="policy",
    )
    def growing(folder: Path, kind: str = kind) -> object:
        policy = turning(kind)
        policy.renderer.ends |= set(range(3, 30))
        talk = Conversation(policy, lambda task, turns: Reply("how many ?"), turns=8)
        rollouts = talk.act([SHORT], 8, key=(1,))
        batch = policy.collate(rollouts)
        now = policy.evaluate_actions(batch).log_probs
        return float((now - batch.log_probs["behaviour"])[batch.mask].abs().max()) < 1e-4


@speaks(
    "vlm A14: longrope is told of in the check before a run",
    kind="drift",
    entry="data",
    required=Refuses("longrope"),
    by="user",
)
def told_before(folder: Path) -> object:
    policy = turning("longrope")
    return policy.check_tasks([SHORT, LONG])


def gpt2() -> TokenPolicy:
    from transformers import GPT2Config, GPT2LMHeadModel

    words = reader()
    sizes = {"n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": len(words)}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=words.eos_token_id))
    return TokenPolicy.of(model.eval(), words, horizon=8)


for door in ("act", "check_tasks"):
    speaks(
        f"vlm A23: GPT-2 has no position for so long a prompt, {door}",
        kind="drift",
        entry="data",
        required=Refuses("24"),
        by="user",
    )(lambda folder, door=door: getattr(gpt2(), door)([LONG], *([1] if door == "act" else [])))


@speaks(
    "vlm A23: a prompt longer than the model was made for is told",
    kind="drift",
    entry="data",
    required=Gives(True),
    by="user",
)
def longer_than_made_for(folder: Path) -> object:
    from transformers import LlamaConfig, LlamaForCausalLM

    words = reader()
    sizes = tiny.text_sizes(words) | {"max_position_embeddings": 24}
    policy = TokenPolicy.of(LlamaForCausalLM(LlamaConfig(**sizes)).eval(), words, horizon=4)
    with lines() as said:
        policy.check_tasks([SHORT, LONG])
    return any("24" in line and "long" in line for line in said)


@speaks(
    "vlm A23: ids beyond the tokenizer are never said",
    kind="drift",
    entry="sampling",
    required=Gives(0),
    by="policy",
)
def beyond(folder: Path) -> object:
    from transformers import LlamaConfig, LlamaForCausalLM

    words = reader()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**tiny.text_sizes(words) | {"vocab_size": 2 * len(words)})).eval()
    rollouts = TokenPolicy.of(model, words, horizon=8).act([SHORT], 32)
    return sum(int((rollout.payload["tokens"] >= len(words)).sum()) for rollout in rollouts)


NEUTRAL = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
}


@speaks(
    "vlm A15: the server is told every field of sampling",
    kind="drift",
    entry="server",
    required=Gives([]),
    by="user",
)
def every_field(folder: Path) -> object:
    actor = ServerActor(TokenPolicy.of(*tiny.text(), horizon=4), "http://localhost:1", "m")
    body = actor._body(SHORT, 2, (0,), False, 1.0)
    return sorted(name for name, value in NEUTRAL.items() if body.get(name) != value)


for name, value in {
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "min_tokens": 3,
    "logit_bias": {"5": 2.0},
    "bad_words": ["red"],
    "allowed_token_ids": [1, 2],
    "guided_choice": ["yes", "no"],
    "response_format": {"type": "json_object"},
    "temperature": 0.3,
}.items():
    speaks(
        f"vlm A15: a field that changes what the server draws, {name}",
        kind="drift",
        entry="server",
        required=Refuses(name),
        by="user",
    )(
        lambda folder, name=name, value=value: ServerActor(
            TokenPolicy.of(*tiny.text(), horizon=4), "http://localhost:1", "m", extra={name: value}
        )
    )


@speaks(
    "vlm A15: a field of one's own beside those of sampling",
    kind="drift",
    entry="server",
    required=Gives([1.0, 7]),
    by="user",
)
def own_field(folder: Path) -> object:
    actor = ServerActor(TokenPolicy.of(*tiny.text()), "http://localhost:1", "m", extra={"priority": 7})
    body = actor._body(SHORT, 2, (0,), False, 1.0)
    return [body.get("repetition_penalty"), body.get("priority")]


# --- what trains -----------------------------------------------------------------------------------------------------


def made(family: str, **options: Any) -> TokenPolicy:
    model, processor = tiny.text(family) if family in tiny.TEXTS else tiny.vlm(family)
    return TokenPolicy.of(model, processor, horizon=4, **options)


@speaks(
    "vlm A23: adapters in a tower that stays frozen",
    kind="cannot learn",
    entry="LoRA",
    required=Refuses("freeze_vision"),
    by="user",
)
def frozen_tower(folder: Path) -> object:
    return made("qwen2_vl", lora_rank=2, lora_targets=["qkv"], freeze_vision=True)


@speaks(
    "vlm A23: all linear layers, and a tower that stays frozen",
    kind="cannot learn",
    entry="LoRA",
    required=Gives(True),
    by="user",
)
def all_linear(folder: Path) -> object:
    policy = made("qwen2_vl", lora_rank=2, lora_targets="all-linear", freeze_vision=True)
    adapters = [(name, p) for name, p in policy.module.named_parameters() if "lora_" in name]
    return len(adapters) > 0 and all("visual" not in name and p.requires_grad for name, p in adapters)


@speaks(
    "vlm A23: nothing of the policy trains",
    kind="cannot learn",
    entry="stage",
    required=Refuses("0 of 4 adapters"),
    by="user",
)
def nothing_trains(folder: Path) -> object:
    from autotelic.vlm.questions import Questions
    from autotelic.vlm.recipes.grpo import Config
    from autotelic.vlm.setting import Setting

    policy = made("llama", lora_rank=2, lora_targets=["q_proj", "v_proj"])
    for parameter in policy.module.parameters():
        parameter.requires_grad_(False)
    config = Config(gate="none").resolved(small=False)
    setting = Setting(config, policy, policy, Questions({"a": [SHORT]}, [], []), [])
    return setting.stage(setting.learner(), lambda completions, **columns: [0.0 for _ in completions])


@speaks(
    "vlm A23: experts without adapters are told",
    kind="cannot learn",
    entry="LoRA",
    required=Gives(True),
    by="user",
)
def experts(folder: Path) -> object:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    words = reader()
    sizes = tiny.text_sizes(words) | {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    with lines() as said:
        TokenPolicy.of(Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes)).eval(), words, lora_rank=2)
    return any("expert" in line for line in said)


@speaks("vlm A23: LoRA on GPT-2", kind="cannot learn", entry="LoRA", required=Refuses("layer"), by="user")
def convolutions(folder: Path) -> object:
    policy = gpt2()
    return TokenPolicy.of(policy.module, policy.renderer.tokenizer, lora_rank=2)  # type: ignore[attr-defined]


@speaks(
    "vlm A23: the last message is the assistant's",
    kind="text to ids",
    entry="prompt",
    required=Gives("one dog"),
    by="user",
)
def begun_answer(folder: Path) -> object:
    renderer: Any = made("llama").renderer
    messages = [{"role": "user", "content": "how many ?"}, {"role": "assistant", "content": "one dog"}]
    ids = renderer.prompt(Task("q", messages)).ids
    return renderer.tokenizer.decode(ids[-2:])


@speaks(
    "vlm A23: a base model without a chat template",
    kind="data files",
    entry="model",
    required=Refuses("--no-chat"),
    by="user",
)
def no_template(folder: Path) -> object:
    model, words = tiny.text()
    words.chat_template = None
    return TokenPolicy.of(model, words).act([SHORT], 1)


@speaks(
    "vlm A23: adapters are loaded from another folder",
    kind="half finished",
    entry="LoRA",
    required=GoesOn(),
    by="user",
)
def from_elsewhere(folder: Path) -> object:
    made("llama").save_pretrained(folder / "m" / "llama")
    here = os.getcwd()
    try:
        os.chdir(folder)
        TokenPolicy.from_pretrained("m/llama", lora_rank=2).save_pretrained(folder / "adapters")
        (folder / "other").mkdir()
        os.chdir(folder / "other")
        return TokenPolicy.from_pretrained(str(folder / "adapters")).act([SHORT], 1)
    finally:
        os.chdir(here)


@speaks(
    "vlm A23: the model of the adapters is gone",
    kind="half finished",
    entry="LoRA",
    required=Refuses("base_model_name_or_path"),
    by="user",
)
def base_gone(folder: Path) -> object:
    made("llama").save_pretrained(folder / "llama")
    TokenPolicy.from_pretrained(folder / "llama", lora_rank=2).save_pretrained(folder / "adapters")
    (folder / "llama").rename(folder / "moved")
    return TokenPolicy.from_pretrained(str(folder / "adapters"))


# --- questions that only the processor would refuse ------------------------------------------------------------------

NARROW = np.zeros((4, 1200, 3), np.uint8)
QUESTIONS: dict[str, tuple[str, Task, str]] = {
    "a picture 300 times longer than wide": ("qwen2_vl", Task("q7", "what ?", (NARROW,)), "q7"),
    "a picture on disk 300 times longer than wide": ("qwen2_vl", Task("q7", "what ?", ("FOLDER/narrow.png",)), "q7"),
    "<image> in a text, smolvlm": ("smolvlm", Task("q7", "<image> what ?", (PICTURE,)), "q7"),
    "<image> in a text, llava": ("llava", Task("q7", "<image> what ?", (PICTURE,)), "q7"),
    "<image> in a text, qwen2_vl": ("qwen2_vl", Task("q7", "<image>what ?", (PICTURE,)), "q7.*<image>"),
    "the family's own placeholder": ("qwen2_vl", Task("q7", "<|image_pad|> what ?", (PICTURE,)), "q7"),
    "a placeholder without a picture": ("llava", Task("q7", "<image> what ?"), "q7"),
    "a lone surrogate": ("qwen2_vl", Task("q7", "what \ud83d ?", (PICTURE,)), "q7.*surrogate"),
    "a lone surrogate in a message": ("llama", Task("q7", [{"role": "user", "content": "\udc00"}]), "q7.*surrogate"),
    "a picture for a model of text": ("llama", Task("q7", "what ?", (PICTURE,)), "q7"),
    "no message": ("llama", Task("q7", []), "q7"),
    "an unknown block": ("llava", Task("q7", [{"role": "user", "content": [{"type": "video"}]}]), "q7"),
}
for name, (family, task, line) in QUESTIONS.items():

    @speaks(f"vlm A17: {name}", kind="data files", entry="data", required=Refuses(line), by="user")
    def question(folder: Path, family: str = family, task: Task = task) -> object:
        Image.fromarray(NARROW).save(folder / "narrow.png")
        images = tuple(i.replace("FOLDER", str(folder)) if isinstance(i, str) else i for i in task.images)
        return made(family).check_tasks([Task("q1", "what ?"), Task(task.id, task.prompt, images)])


FINE = {
    "tags in a question to a model of text": ("llama", Task("q", "what is <image> in SVG ?")),
    "tags without a picture": ("qwen2_vl", Task("q", "what is <image> in SVG ?")),
    "a control token in a question": ("qwen2_vl", Task("q", "what does <|vision_start|> do ?", (PICTURE,))),
    "an emoji": ("llama", Task("q", "what is \U0001f600 ?")),
}
for name, (family, task) in FINE.items():

    @speaks(f"vlm A17: {name}", kind="data files", entry="data", required=GoesOn(), by="user")
    def fine(folder: Path, family: str = family, task: Task = task) -> object:
        policy = made(family)
        policy.check_tasks([task])
        return policy.act([task], 1)


@speaks(
    "vlm A17: a run finds the odd question before its first step",
    kind="data files",
    entry="command line",
    required=Refuses("line 9|/9"),
    by="user",
    slow=True,
)
def before_a_run(folder: Path) -> object:
    made("llama").save_pretrained(folder / "model")
    rows = [{"prompt": "what is red ?", "answer": "one"} for _ in range(12)]
    rows[8]["prompt"] = "what \ud83d ?"
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    named = ["--model", "model", "--data", "q.jsonl", "--gate", "none", "--lora-rank", 2, "--max-new-tokens", 4]
    try:
        return autotelic("run", "vlm/grpo", "--debug", *named, "--output-dir", "run", folder=folder)
    finally:
        assert not (folder / "run" / "metrics.jsonl").exists(), "the run began"
