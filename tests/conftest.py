"""One thread per process: the tests are small, and results do not depend on the machine's cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from autotelic import plugins

torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # as a run in fp32 has it; parts are tried outside of runs as well

FILE_MODULES = "autotelic.plugins."
STATE = ("_registered", "_by_module", "_used", "_files", "_copies")


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Lets plugins be imported and registered anew, as another process would; after the test all is as before."""
    tables = [*plugins._tables.values(), *(getattr(plugins, name) for name in STATE)]
    before = [dict(table) for table in tables]
    modules, path = dict(sys.modules), list(sys.path)
    monkeypatch.setenv(plugins.FILES, "{}")

    def restore(contents: list[dict[object, object]]) -> None:
        for table, content in zip(tables, contents, strict=True):
            table.clear()
            table.update(content)
        for name, module in list(sys.modules.items()):
            new_file = name not in modules and "pytest-of-" in (getattr(module, "__file__", None) or "")
            if name.startswith(FILE_MODULES) or new_file:  # a file of the same content has the same name
                del sys.modules[name]
        sys.path[:] = path

    yield lambda: restore([{} for _ in tables])
    restore(before)
    sys.modules.update({name: module for name, module in modules.items() if name.startswith(FILE_MODULES)})
