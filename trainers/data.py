"""What a run was begun with stays what it goes on with: files of data are remembered by their content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UsageError
from ..tables import Table
from .distributed import is_main

if TYPE_CHECKING:
    from .runs.run_folder import RunFolder


def remember(folder: RunFolder | None, **tables: Table) -> bool:
    """Keep the digests of a run's data in its config.json when it is built first, and compare them when again.

    Args:
        folder: the run's; None remembers nothing.
        tables: by the fields of the config that name them.

    Returns:
        Whether any of it is seen for the first time.

    Raises:
        UsageError: rows, or pictures that they name, are not those that the run began with.
    """
    if folder is None:
        return True
    known = dict(folder.read_json("config").get("data") or {})
    new = not known.keys() >= tables.keys()
    for name, table in tables.items():
        if name in known and known[name]["sha256"] != table.digest:
            raise UsageError(
                f"{table.source} was changed since {folder.path} began: its {known[name]['rows']} rows and their "
                "pictures must be as they were to go on or to evaluate; put them back, or begin another run"
            )
        known.setdefault(name, {"source": table.source, "rows": len(table.rows), "sha256": table.digest})
    if new and is_main():
        folder.describe(data=known)
    return new
