"""The order in which GL and torch are loaded: the one place that knows of it."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from .plugins import use


def before_gl() -> None:
    """Import torch's compiler before GL is loaded: a process dies where it comes after (Mesa's drivers hold an LLVM).

    It is called before the first GL context, and before a person's module is imported, which may load GL. A worker
    process without torch is left without it.
    """
    if "torch" in sys.modules or (multiprocessing.parent_process() is None and find_spec("torch") is not None):
        import_module("torch._dynamo")


def use_before_gl(places: Sequence[str], *, anew: bool = False) -> None:
    """Import a person's plugins (``plugins.use``) when torch's compiler is there."""
    if places:
        before_gl()
    use(places, anew=anew)
