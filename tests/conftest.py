"""One thread per process: the tests are small, and results do not depend on the machine's cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from autotelic import plugins

torch.set_num_threads(1)

STATE = ("_registered", "_by_module", "_used", "_files", "_copies")


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Lets plugins be imported and registered anew, as another process would; after the test all is as before."""
    tables = [*plugins._tables.values(), *(getattr(plugins, name) for name in STATE)]
    before = [dict(table) for table in tables]
    modules, path = set(sys.modules), list(sys.path)
    monkeypatch.setenv(plugins.FILES, "{}")

    def restore(contents: list[dict[object, object]]) -> None:
        for table, content in zip(tables, contents, strict=True):
            table.clear()
            table.update(content)
        for name in sys.modules.keys() - modules:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if name.startswith("autotelic.plugins.") or "pytest-of-" in file:
                del sys.modules[name]
        sys.path[:] = path

    yield lambda: restore([{} for _ in tables])
    restore(before)
