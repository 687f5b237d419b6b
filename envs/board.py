"""Arrays that a pool and its worker processes share: what is to be done, and what was seen of it."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ALIGNED = 64
"""Bytes to which arrays are aligned."""


@dataclass(frozen=True)
class Layout:
    """Sizes of a board.

    Attributes:
        rows: B episodes.
        observation: D; chunk: C, action: A.
        cameras: camera -> pixels along a side.
    """

    rows: int
    observation: int
    chunk: int
    action: int
    cameras: Mapping[str, int] = field(default_factory=dict)

    def arrays(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Name -> shape and type."""
        rows = self.rows
        plain: dict[str, tuple[tuple[int, ...], type]] = {
            "actions": ((rows, self.chunk, self.action), np.float32),
            "observations": ((rows, self.observation), np.float32),
            "rewards": ((rows,), np.float32),
            "success": ((rows,), np.bool_),
            "over": ((rows,), np.bool_),
            "terminated": ((rows,), np.bool_),
        }
        return plain | {f"frames.{name}": ((rows, size, size, 3), np.uint8) for name, size in self.cameras.items()}


class Board:
    """One row per episode. The pool writes actions, workers the rest.

    Args:
        handle: of the memory that another process shares; None makes memory of its own.
        shared: it is to be shared: memory that ``handle`` gives to other processes.

    Attributes:
        layout: as given.
        actions: [B, C, A] float32, the chunk to execute.
        observations: [B, D] float32, the latest.
        rewards: [B] float32, of the latest chunk.
        success, over, terminated: [B] bool, of the latest state.
        frames: camera -> [B, size, size, 3] uint8, of the latest state.
        handle: a file descriptor, or None where nobody shares it.

    Raises:
        OSError: there is not so much memory.
    """

    def __init__(self, layout: Layout, *, handle: int | None = None, shared: bool = False) -> None:
        self.layout = layout
        places, size = {}, 0
        for name, (shape, kind) in layout.arrays().items():
            places[name] = size
            size += -(-int(np.prod(shape)) * np.dtype(kind).itemsize // ALIGNED) * ALIGNED
        self.handle: int | None = None
        memory: mmap.mmap | NDArray[np.uint8] = np.zeros(max(size, 1), np.uint8)
        if shared:
            self.handle = _anonymous_file(max(size, 1))
            memory = mmap.mmap(self.handle, 0)
        elif handle is not None:
            memory = mmap.mmap(handle, 0)
            os.close(handle)
        arrays = {
            name: np.ndarray(shape, kind, memory, places[name]) for name, (shape, kind) in layout.arrays().items()
        }
        self.actions: NDArray[np.float32] = arrays["actions"]
        self.observations: NDArray[np.float32] = arrays["observations"]
        self.rewards: NDArray[np.float32] = arrays["rewards"]
        self.success: NDArray[np.bool_] = arrays["success"]
        self.over: NDArray[np.bool_] = arrays["over"]
        self.terminated: NDArray[np.bool_] = arrays["terminated"]
        self.frames: dict[str, NDArray[np.uint8]] = {name: arrays[f"frames.{name}"] for name in layout.cameras}

    def close(self) -> None:
        """Give no more handles; the memory goes with the last array."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


def _anonymous_file(size: int) -> int:
    """A file without a name, in memory where the system has such files, with room for so many bytes."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("autotelic")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size)
    return handle
