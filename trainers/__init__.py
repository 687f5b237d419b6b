"""How one learns: the loop, advantages, objectives, curricula, gates, checkpoints and reports."""

from .. import __version__ as __version__
