"""Checkpoints: a nested state in a folder of safetensors and JSON, complete or not there at all.

A checkpoint holds a few ``tensors-DIGEST.safetensors``, ``state.json``, which is everything else and where each tensor
belongs, and ``manifest.json``: the format, the version that wrote it and the size and SHA-256 of the others. No pickle
is ever written or read.

Equal tensors are written once. Files of which a checkpoint beside it needs every tensor are hard links to that one's,
so that what stays as it was (the start, what was last promoted) costs no further bytes; a checkpoint is whole without
the others all the same. What is linked was compared with what is to be saved, byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ... import __version__
from ...errors import UsageError

FORMAT = 2
STATE, MANIFEST = "state.json", "manifest.json"
TENSORS = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")
SUMS = "sums"
"""Of the metadata of a file of tensors: by name, what ``_sum`` says of each."""
PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"})


class CheckpointError(UsageError):
    """A checkpoint that cannot be written or must not be read; the message is one line."""


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a state under ``folder``, atomically: a crash at any moment leaves the old checkpoint or none.

    Tensors keep their bits, dtype and shape; those that are equal are written once. Integer keys stay integers. Tuples
    come back as lists, every mapping as a plain dict, and every tensor on the CPU without gradient.

    Args:
        folder: where the checkpoint will be; an older one there is replaced.
        state: nested mappings (keys str or int), lists and tuples of tensors, numbers, strings,
            bools and None.

    Raises:
        CheckpointError: something else is in the state; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "", tensors)
    contents = _contents(tensors)
    _recover(folder)
    shutil.rmtree(_previous(folder), ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    files = _linked(contents, folder, partial) | _written(contents, partial)
    places = {path: [content.file, content.name] for content in contents for path in content.paths}
    (partial / STATE).write_text(json.dumps({"state": tree, "tensors": places}, allow_nan=False))
    files[STATE] = _fingerprint(partial / STATE)
    manifest = {"format": FORMAT, "autotelic": __version__, "files": files}
    (partial / MANIFEST).write_bytes(_manifest_bytes(manifest))
    for name in (*files, MANIFEST):
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
    written = json.loads((folder / STATE).read_text())
    files = {path.name: load_file(path) for path in _files_of_tensors(folder)}
    tensors, given = dict[str, Tensor](), set[tuple[str, str]]()
    for path, (file, name) in written["tensors"].items():
        tensors[path] = files[file][name].clone() if (file, name) in given else files[file][name]
        given.add((file, name))
    state: dict[str, Any] = _decode(written["state"], tensors)
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
    known = isinstance(files, dict) and all(name == STATE or TENSORS.fullmatch(name) for name in files)
    if written != _manifest_bytes(manifest) or not known or STATE not in files:
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


@dataclass(eq=False)
class _Content:
    """A tensor, on the CPU and contiguous, the paths of the state that have it, and where it is stored."""

    tensor: Tensor
    paths: list[str]
    file: str = ""
    name: str = ""
    sum: int = field(init=False)

    def __post_init__(self) -> None:
        self.sum = _sum(self.tensor)

    @property
    def key(self) -> tuple[str, tuple[int, ...], int]:
        return str(self.tensor.dtype), tuple(self.tensor.shape), self.sum

    def equals(self, other: Tensor) -> bool:
        return torch.equal(_bytes(self.tensor), _bytes(other))


def _contents(tensors: Mapping[str, Tensor]) -> list[_Content]:
    """Each content once."""
    found: list[_Content] = []
    places: dict[tuple[object, ...], _Content] = {}  # several tensors of a state are often one and the same memory
    alike: dict[tuple[object, ...], list[_Content]] = {}
    for path, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        content = places.get(place) if tensor.numel() else None
        if content is None:
            new = _Content(tensor.detach().cpu().contiguous(), [])
            rivals = alike.setdefault(new.key, [])
            content = next((rival for rival in rivals if rival.equals(new.tensor)), None)
            if content is None:
                content = new
                rivals.append(new)
                found.append(new)
        places[place] = content
        content.paths.append(path)
    return found


def _linked(contents: Sequence[_Content], folder: Path, partial: Path) -> dict[str, dict[str, Any]]:
    """Link the files of checkpoints beside ``folder`` of which everything is needed; returns their fingerprints."""
    files: dict[str, dict[str, Any]] = {}
    wanted: dict[tuple[object, ...], list[_Content]] = {}
    for content in contents:
        wanted.setdefault(content.key, []).append(content)
    beside = [path for path in folder.parent.iterdir() if path.is_dir() and path.name[0] != "." and path != folder]
    for path in (file for other in sorted(beside, reverse=True) for file in _files_of_tensors(other)):
        if path.name in files or not (held := _held(path, wanted)):
            continue
        try:
            os.link(path, partial / path.name)
        except OSError:  # a file system without links
            shutil.copyfile(path, partial / path.name)
        files[path.name] = _fingerprint(partial / path.name)
        if files[path.name]["sha256"][:16] != path.name[8:24]:  # something beside the tensors was altered
            (partial / path.name).unlink()
            del files[path.name]
            continue
        for name, content in held.items():
            content.file, content.name = path.name, name
    return files


def _held(path: Path, wanted: Mapping[tuple[object, ...], Sequence[_Content]]) -> dict[str, _Content]:
    """By name what of the wanted a file holds, where that is all of the file and not stored yet; else nothing."""
    held: dict[str, _Content] = {}
    try:
        with safe_open(path, "pt") as file:
            sums = json.loads((file.metadata() or {}).get(SUMS, "{}"))
            for name in file.keys():  # noqa: SIM118  no mapping
                part = file.get_slice(name)
                rivals = [c for c in wanted.get((sums[name][0], tuple(part.get_shape()), sums[name][1]), ())]
                tensor = file.get_tensor(name) if rivals else None
                same = next((c for c in rivals if tensor is not None and not c.file and c.equals(tensor)), None)
                if same is None:
                    return {}
                held[name] = same
    except (SafetensorError, OSError, ValueError, KeyError):
        return {}
    return held


def _written(contents: Sequence[_Content], partial: Path) -> dict[str, dict[str, Any]]:
    """Write what has no place yet, a file for all that the same parts of the state need; returns fingerprints."""
    groups: dict[frozenset[str], list[_Content]] = {}
    for content in contents:
        if not content.file:
            parts = frozenset("/".join(path.split("/")[:2]) for path in content.paths)
            groups.setdefault(parts, []).append(content)
    files = {}
    for group in groups.values():
        named = {content.paths[0]: content for content in group}
        sums = {name: (str(content.tensor.dtype), content.sum) for name, content in named.items()}
        path = partial / "tensors"
        tensors = {name: content.tensor for name, content in named.items()}
        save_file(tensors, path, {SUMS: json.dumps(sums)})
        found = _fingerprint(path)
        name = f"tensors-{found['sha256'][:16]}.safetensors"
        path.rename(partial / name)
        files[name] = found
        for key, content in named.items():
            content.file, content.name = name, key
    return files


def _files_of_tensors(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if TENSORS.fullmatch(path.name))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _sum(tensor: Tensor) -> int:
    """The sum of a tensor's bytes, eight at a time; equal ones have equal sums."""
    raw = _bytes(tensor).numpy()
    whole = raw[: len(raw) // 8 * 8].view(np.int64).sum(dtype=np.int64)
    return int(whole) + int(raw[len(raw) // 8 * 8 :].sum(dtype=np.int64))


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
