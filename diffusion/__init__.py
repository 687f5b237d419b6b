"""Policies that draw. Empty for now: the core they will stand on is in ``autotelic.trainers``."""

from .. import __version__ as __version__
