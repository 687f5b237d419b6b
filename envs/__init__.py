"""Where one acts: simulators in batches, any Gymnasium environment, tasks and demonstrations.

Every module NAME_tasks.py of this folder is a family of environments, which it registers when it is imported; suites of
others are in ``suites``.
"""

from importlib import import_module
from pkgutil import iter_modules

from .. import __version__ as __version__

for _module in iter_modules(__path__):
    if _module.name.endswith("_tasks"):
        import_module(f"{__name__}.{_module.name}")
import_module(f"{__name__}.suites")
