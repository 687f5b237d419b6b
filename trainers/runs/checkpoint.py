"""Checkpoints: a nested state in a folder of safetensors and JSON, complete or not there at all.

A checkpoint is three files. ``tensors.safetensors`` holds every tensor, ``state.json`` everything
else and where each tensor belongs, and ``manifest.json`` the format, the version that wrote it and
the size and SHA-256 of the other two. No pickle is ever written or read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ... import __version__
from ...errors import UsageError

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"})


class CheckpointError(UsageError):
    """A checkpoint that cannot be written or must not be read; the message is one line."""


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a state under ``folder``, atomically: a crash at any moment leaves the old checkpoint or none.

    Tensors keep their bits, dtype and shape; those that share storage are written once each. Integer
    keys stay integers. Tuples come back as lists, every mapping as a plain dict, and every tensor on
    the CPU without gradient.

    Args:
        folder: where the checkpoint will be; an older one there is replaced.
        state: nested mappings (keys str or int), lists and tuples of tensors, numbers, strings,
            bools and None.

    Raises:
        CheckpointError: something else is in the state; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "", tensors)
    _recover(folder)
    shutil.rmtree(_previous(folder), ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    save_file(_unshared(tensors), partial / TENSORS)
    (partial / STATE).write_text(json.dumps(tree, allow_nan=False))
    files = {name: _fingerprint(partial / name) for name in (TENSORS, STATE)}
    manifest = {"format": FORMAT, "autotelic": __version__, "files": files}
    (partial / MANIFEST).write_bytes(_manifest_bytes(manifest))
    for name in (TENSORS, STATE, MANIFEST):
        _sync(partial / name)
    _sync(partial)

    if folder.exists():
        os.rename(folder, _previous(folder))
    os.rename(partial, folder)
    _sync(folder.parent)
    shutil.rmtree(_previous(folder), ignore_errors=True)


def load(folder: Path) -> dict[str, Any]:
    """Read a state back after every byte of it was verified.

    Raises:
        CheckpointError: the checkpoint is missing, truncated, altered, of another format, or a
            pickle. The message names the last good checkpoint beside it, if there is one.
    """
    folder = Path(folder)
    _recover(folder)
    fault = _fault(folder)
    if fault:
        good = last_good(folder)
        raise CheckpointError(
            f"checkpoint {folder} {fault}; " + (f"use {good.name}" if good else "none beside it is whole")
        )
    tensors = load_file(folder / TENSORS)
    state: dict[str, Any] = _decode(json.loads((folder / STATE).read_text()), tensors)
    return state


def with_tensors(value: Any) -> Any:
    """A value whose arrays, at any depth of mappings and lists, are tensors that share their memory."""
    if isinstance(value, Mapping):
        return {name: with_tensors(part) for name, part in value.items()}
    if isinstance(value, list):
        return [with_tensors(part) for part in value]
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def with_arrays(value: Any) -> Any:
    """The way back from ``with_tensors``."""
    if isinstance(value, Mapping):
        return {name: with_arrays(part) for name, part in value.items()}
    if isinstance(value, list):
        return [with_arrays(part) for part in value]
    return value.numpy() if isinstance(value, Tensor) else value


def last_good(folder: Path) -> Path | None:
    """The last whole checkpoint beside ``folder`` by name, other than ``folder`` itself; None if there is none."""
    if not folder.parent.is_dir():
        return None
    others = (path for path in folder.parent.iterdir() if path.name != folder.name and path.name[0] != ".")
    return next((path for path in sorted(others, reverse=True) if _fault(path) is None), None)


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as the end of a sentence, or None when every byte is as written."""
    if folder.suffix in PICKLE_SUFFIXES and folder.is_file():
        return "is a pickle, which can run code when it is read, and is refused"
    if not folder.is_dir():
        return "is a file, not a checkpoint folder" if folder.exists() else "does not exist"
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        return f"holds the pickle {pickles[0]}, which can run code when it is read, and is refused"
    if not (folder / MANIFEST).is_file():
        return f"has no {MANIFEST}"
    written = (folder / MANIFEST).read_bytes()
    try:
        manifest = json.loads(written)
        found, writer, files = manifest["format"], manifest["autotelic"], manifest["files"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"has an unreadable {MANIFEST}"
    if found != FORMAT:
        return f"has format {found}, written by autotelic {writer}; autotelic {__version__} reads format {FORMAT}"
    if written != _manifest_bytes(manifest) or set(files) != {TENSORS, STATE}:
        return f"was altered ({MANIFEST})"
    for name, expected in files.items():
        if not (folder / name).is_file():
            return f"has lost {name}"
        size = (folder / name).stat().st_size
        if size < expected["size"]:
            return f"is truncated ({name} has {size} of {expected['size']} bytes)"
        if _fingerprint(folder / name) != expected:
            return f"was altered ({name})"
    return None


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON form of a value; tensors move to ``tensors`` under their path and leave a reference behind."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
            raise CheckpointError(
                f"cannot save {path}: only dense real tensors with data, got {value.layout} {value.dtype}"
            )
        name = path
        while name in tensors:  # {"a/b": x} and {"a": {"b": x}} have one path
            name += "'"
        tensors[name] = value
        return {"$tensor": name}
    kind = type(value)
    if value is None or kind in (str, bool, int):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, Mapping):
        odd = [key for key in value if type(key) not in (str, int)]
        if odd:
            raise CheckpointError(f"cannot save {path or '/'}: key {odd[0]!r} is neither str nor int")
        entries = [(key, _encode(item, f"{path}/{key}", tensors)) for key, item in value.items()]
        plain = all(type(key) is str and not key.startswith("$") for key in value)
        return dict(entries) if plain else {"$items": entries}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    hint = ""
    if kind.__module__ == "numpy":
        hint = ", use torch.from_numpy(x)" if kind.__name__ == "ndarray" else ", use x.item()"
    name = f"{kind.__module__}.{kind.__name__}"
    raise CheckpointError(f"cannot save {path}: {name} is not a tensor, number, str, bool or None{hint}")


def _decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$float" in tree:
        return float(tree["$float"])
    entries = tree["$items"] if "$items" in tree else tree.items()
    return {key: _decode(item, tensors) for key, item in entries}


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, copied only where two share storage (safetensors refuses those)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return result


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The one way to write a manifest, with a checksum of itself, so that no byte of it can change unseen."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps(content | {"sha256": checksum}, indent=2, sort_keys=True) + "\n").encode()


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _recover(folder: Path) -> None:
    """A crash between the two renames of ``save`` left the old checkpoint under another name: bring it back."""
    if not folder.exists() and _previous(folder).exists():
        os.rename(_previous(folder), folder)


def _sync(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
