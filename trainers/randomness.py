"""Random numbers keyed by what they are for, so that no order of events can change them."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*key: object) -> int:
    """A 63-bit seed from any key, the same on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded by a key such as (seed, iteration, task id, sample)."""
    return torch.Generator(device).manual_seed(seed_of(*key))
