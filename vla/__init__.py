"""Policies that move: action policies, their actors in simulators, and recipes."""

from .. import __version__ as __version__
