"""Suites of environments that others wrote, as specs: "SUITE/NAME", a module each, registered when imported.

No module here imports what it specifies before an environment is built; the extra of the suite's name installs that.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    if _module.name != "criteria":
        import_module(f"{__name__}.{_module.name}")
