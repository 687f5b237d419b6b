"""Errors that a person caused and can mend: shown as one line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """Bad input, told in one line that says what, where and what to do instead."""


class OutputError(UsageError):
    """An output that cannot be read. Where a policy made it, it is the policy's fault unless all are so."""


class RewardError(UsageError):
    """A reward raised for every sample or returned something that is no score; the line names reward and sample."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UsageError:
    """The error for a name that does not exist; it offers up to three names that do.

    Args:
        kind: what the name should have named, such as "recipe".
        name: what was asked for.
        valid: the names that exist.
    """
    valid = sorted(valid)
    if not valid:
        return UsageError(f'unknown {kind} "{name}": there is none')
    if near := get_close_matches(name, valid, n=3, cutoff=0.5):
        return UsageError(f'unknown {kind} "{name}": did you mean {" or ".join(near)}?')
    shown = ", ".join(valid[:8]) + (f", … ({len(valid)} in all)" if len(valid) > 8 else "")
    return UsageError(f'unknown {kind} "{name}": there is {shown}')
