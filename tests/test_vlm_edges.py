"""Where the token policy meets what it was not made for: models that cannot share, half precision, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from autotelic.cli import main
from autotelic.errors import UsageError
from autotelic.images import as_pil
from autotelic.testing import vlms as tiny
from autotelic.types import Rollout, Task
from autotelic.vlm.conversation import Conversation, Script
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.questions import read_rows

TASKS = [Task("short", "what is red ?"), Task("long", "how many circle in the picture ?")]


def windows(reader: Any) -> Any:
    """Every token sees four."""
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**tiny.text_sizes(reader), sliding_window=4))


def convolutions(reader: Any) -> Any:
    """A layer that remembers a few places, and one that remembers all."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    kinds = ["conv", "full_attention"]
    return Lfm2ForCausalLM(Lfm2Config(**tiny.text_sizes(reader), layer_types=kinds))


def running_sums(reader: Any) -> Any:
    """No attention at all."""
    from transformers import MambaConfig, MambaForCausalLM

    sizes = tiny.text_sizes(reader)
    named = ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id", "bos_token_id", "eos_token_id")
    return MambaForCausalLM(MambaConfig(**{name: sizes[name] for name in named}, state_size=4, initializer_range=0.3))


def of(make: Callable[[Any], Any]) -> TokenPolicy:
    reader = tiny.tokenizer()
    reader.chat_template = tiny.template()
    torch.manual_seed(0)
    return TokenPolicy.of(make(reader).eval(), reader, horizon=5)


def own_log_probs(policy: TokenPolicy, rollout: Rollout) -> Tensor:
    """[T] by the model's own forward over question and answer, alone."""
    prompt, tokens = policy.renderer.prompts([rollout.task])[0].ids, rollout.payload["tokens"]
    with torch.no_grad():
        logits = policy.module(input_ids=torch.cat([prompt, tokens])[None], use_cache=False).logits
    logits = logits[0, len(prompt) - 1 : -1].index_fill(-1, torch.tensor(policy.backbone.banned), -torch.inf)
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


@pytest.mark.parametrize("make", [windows, convolutions, running_sums])
def test_what_cannot_share_says_what_generate_says(make: Callable[[Any], Any]) -> None:
    policy = of(make)
    model: Any = policy.module
    assert not policy.backbone.shares
    for rollout in policy.act(TASKS, 1, greedy=True):
        ids = policy.renderer.prompts([rollout.task])[0].ids[None]
        wanted = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=5,
            suppress_tokens=list(policy.backbone.banned),
        )
        assert wanted[0, ids.shape[1] :].tolist() == rollout.payload["tokens"].tolist()


@pytest.mark.parametrize("make", [windows, convolutions, running_sums])
def test_what_cannot_share_converses(make: Callable[[Any], Any]) -> None:
    """Turns of unequal length: a window that counted padding between them would see other tokens."""
    policy = of(make)
    policy.renderer.ends |= frozenset(range(3, 25))
    rollouts = Conversation(policy, Script(("what is red ?", "how many dog ?")), turns=3).act(TASKS, 8, key=(2,))
    first_turns = {int((r.segments[r.mask] == 0).sum()) for r in rollouts if r.info["turns"] > 1}
    assert len(first_turns) > 1, "or nothing is tested here"
    evaluated = policy.evaluate_actions(policy.collate(rollouts)).log_probs
    for row, rollout in enumerate(rollouts):
        own = own_log_probs(policy, rollout).masked_fill(~rollout.mask, 0.0)
        assert rollout.log_probs is not None
        torch.testing.assert_close(rollout.log_probs, own, rtol=0, atol=2e-5)
        torch.testing.assert_close(evaluated[row, : len(own)], own, rtol=0, atol=2e-5)


def test_whether_a_model_shares_is_tried_in_its_own_precision() -> None:
    """Mixed precision rounds more than the trial allows for weights in full precision."""
    model, processor = tiny.vlm("qwen2_vl")
    policy = TokenPolicy.of(model, processor, horizon=4, autocast=torch.bfloat16)
    said: list[torch.dtype] = []
    model.lm_head.register_forward_hook(lambda _, __, out: said.append(out.dtype))
    rollouts = policy.act(TASKS, 2, key=(1,))
    assert said[0] == torch.float32 and said[-1] == torch.bfloat16
    batch = policy.collate(rollouts)
    now = policy.evaluate_actions(batch).log_probs
    assert now.dtype == torch.float32
    torch.testing.assert_close(now, batch.log_probs["behaviour"], rtol=0, atol=0.3)


# --- a file of one's own ----------------------------------------------------------------------------------------------


def rows_with(folder: Path, **changes: Any) -> Path:
    """Twelve questions about one picture in JSON lines; the eighth is changed."""
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "black.png")
    Image.new("1", (9000, 6000)).save(folder / "large.png")
    (folder / "text.png").write_text("no picture")
    rows = [{"prompt": "what is red ?", "image": "black.png", "answer": "one"} for _ in range(12)]
    rows[7] |= changes
    path = folder / "asked.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"image": "text.png"}, "line 8: image 1 cannot be decoded"),
        ({"image": "large.png"}, "line 8: image 1 has 9000 x 6000 pixels, more than pixel_limit"),
        ({"image": "none.png"}, "line 8 names an image that is not there"),
        ({"prompt": 7}, "line 8: a prompt is a text or a list of"),
        ({"prompt": {"role": "user", "content": "what ?"}}, "line 8: a prompt is a text or a list of"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]},
            "line 8: 2 image blocks in the messages, 1 images beside them",
        ),
        ({"prompt": [{"role": "user", "content": [{"type": "video"}]}]}, "line 8: a block is"),
    ],
)
def test_a_bad_question_is_found_before_a_run_begins(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=line) as error:
        read_rows(str(rows_with(tmp_path, **changes)))
    assert "\n" not in str(error.value)


def test_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_bytes('{"prompt": "café", "answer": "one"}'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"asked\.jsonl is no text in UTF-8"):
        read_rows(str(path))


def test_an_image_of_absurd_size_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rows_with(tmp_path).parent / "black.png"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UsageError, match="t: image 1 has too many pixels"):
        as_pil(path, "t: image 1", 10**9)


def test_a_picture_that_is_broken_inside_is_told_before_a_run_begins(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only decoding shows it: one line, and no run is begun. Answers at the limit are counted."""
    model, processor = tiny.vlm("qwen2_vl")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = []
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append({"prompt": "what is red ?", "image": f"{number}.png", "answer": "one"})
    asked = tmp_path / "asked.jsonl"
    asked.write_text("\n".join(json.dumps(row) for row in rows))
    whole = (tmp_path / "7.png").read_bytes()
    (tmp_path / "7.png").write_bytes(whole[:300])
    sizes = ["--max-new-tokens", "4", "--gate-labels", "2", "--lora-rank", "2", "--tasks-per-step", "6"]
    rewards = ["--rewards", "exact", "truncated:0.5", "--mask-truncated"]
    named = ["--model", str(tmp_path / "model"), "--data", str(asked), "--output-dir", str(tmp_path / "run")]
    assert main(["run", "vlm/grpo", "--debug", *named, *sizes, *rewards]) == 2
    assert "asked/8: image 1 cannot be decoded" in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
    (tmp_path / "7.png").write_bytes(whole)
    assert main(["run", "vlm/grpo", "--debug", *named, *sizes, *rewards]) == 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in metrics] == [1, 2]
    for row in metrics:
        assert 0 < row["answers/truncated"] == -row["reward/truncated"]
    assert metrics[-1]["answers/truncated_count"] >= metrics[0]["answers/truncated_count"] > 0
    (tmp_path / "7.png").write_bytes((tmp_path / "6.png").read_bytes())
    assert main(["resume", str(tmp_path / "run"), "--max-steps", "+1"]) == 2
    assert f"{asked} was changed since" in capfd.readouterr().err.splitlines()[-1]
