"""Sentence embeddings of a package: pooled as by hand, kept by text, and told in a line where they are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from autotelic.errors import UsageError
from autotelic.rewards.text.consensus import MajorityNovelty
from autotelic.rewards.text.embeddings import PACKAGE, MiniLM

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "sat", "=", "1", "2"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name whose model is a tiny BERT."""
    folder = tmp_path / PACKAGE / "model"
    folder.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise ImportError('it is not imported')")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        BertModel(BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(folder)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_an_embedding_is_the_mean_over_a_texts_own_tokens(package: Path) -> None:
    embed, texts = MiniLM(), ["a cat sat", "dog", "a cat sat", ""]
    found = embed(texts)
    model, tokenizer = AutoModel.from_pretrained(package).eval(), AutoTokenizer.from_pretrained(package)
    for row, text in zip(found, texts, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, (alone / alone.norm()).numpy(), atol=1e-6)
    assert embed([]).shape[0] == 0


def test_a_text_is_embedded_once(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed, asked = MiniLM(), list[str]()
    plain = MiniLM._embedded
    monkeypatch.setattr(MiniLM, "_embedded", lambda self, texts: (asked.extend(texts), plain(self, texts))[1])
    first = embed(["dog", "cat", "dog"])
    again = embed(["cat", "sat", "dog"])
    assert asked == ["dog", "cat", "sat"]
    assert (first[1] == again[0]).all() and (first[0] == again[2]).all()


def test_novelty_by_sentences_is_not_novelty_by_letters(package: Path) -> None:
    said, groups = ["a cat = 1", "a dog = 1", "cat cat = 1", "sat = 2", "dog sat = 2"], ["q"] * 5
    letters, sentences = MajorityNovelty(), MajorityNovelty(MiniLM())
    assert letters(said, groups=groups) != sentences(said, groups=groups)


def test_a_missing_package_is_told_in_a_line() -> None:
    with pytest.raises(UsageError, match=r"^all-MiniLM-L6-v2 is read from a Python package that is not installed: pip"):
        MiniLM()
