"""Where one acts: simulators in batches, any Gymnasium environment, tasks and demonstrations."""

from .. import __version__ as __version__
