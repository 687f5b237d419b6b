"""Policies that move: policies of action chunks, their actors in simulators, and recipes."""

from .. import __version__ as __version__
