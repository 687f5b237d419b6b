"""Strange input of every kind, and what comes of it.

Each row is a case of tests/strangers: a report of the public trackers of comparable projects, or adversarial input,
with the outcome that it must have (a value, a refusal in one line, or going on) and the outcome that it has here.
Counted are wrong values without a word, wrong refusals, tracebacks, runs that a policy ended, and escapes from the
sandbox: all of them should be 0.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import ROOT, parser_of, save

sys.path.insert(0, str(ROOT))

from tests.strangers.cases import KINDS, Case, all_cases


def tried(case: Case) -> dict[str, Any]:
    """A row of the table."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        ended = case.run(Path(folder))
        said = " ".join(str(ended.value).replace(folder, "FOLDER").replace(str(ROOT), "ROOT").split())
    return {
        "case": case.name,
        "kind": case.kind,
        "modality": case.modality,
        "entry_point": case.entry_point,
        "entry": case.entry,
        "by": case.by,
        "required": type(case.required).__name__.lower() + "".join(f" {v!r}" for v in asdict(case.required).values()),
        "ended": ended.how,
        "said": said[:300],
        "verdict": case.verdict(ended),
        "seconds": round(time.perf_counter() - started, 2),
    }


def main() -> None:
    options = parser_of(__doc__, "without the cases that take seconds and more").parse_args()
    rows = []
    for case in all_cases():
        if case.slow and options.quick:
            continue
        rows.append(row := tried(case))
        if row["verdict"] not in ("right", "skipped"):
            print(f"{row['verdict']:15} {row['case']}: must be {row['required']}; {row['said']}", flush=True)
    verdicts = Counter(row["verdict"] for row in rows)
    wrong = [row for row in rows if row["verdict"] not in ("right", "skipped")]
    skipped = {row["case"]: row["said"] for row in rows if row["verdict"] == "skipped"}
    figures = {
        "cases": len(rows),
        "right": verdicts["right"],
        "wrong_silent": verdicts["wrong_silent"],
        "wrongly_refused": verdicts["wrongly_refused"],
        "tracebacks": verdicts["traceback"],
        "runs_ended_by_policy": sum(
            row["by"] == "policy" and row["ended"] in ("refused", "traceback") for row in wrong
        ),
        "sandbox_escapes": sum(row["kind"] == "sandbox" and row["verdict"] == "wrong_silent" for row in rows),
        "by_kind": {kind: dict(Counter(row["verdict"] for row in rows if row["kind"] == kind)) for kind in KINDS},
        "skipped": skipped,
    }
    print("\n".join(f"{name:22}{value}" for name, value in figures.items() if name != "by_kind"))
    save(options, figures | {"rows": rows})


if __name__ == "__main__":
    main()
