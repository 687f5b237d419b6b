"""A tracker: RUN/metrics.csv, a row per iteration, for a spreadsheet.

autotelic run vlm/grpo --trackers examples/tracker.py:CsvTracker
"""

import csv

from autotelic import Callback


class CsvTracker(Callback):
    """The columns are the first iteration's metrics. A run that goes on drops the rows after its checkpoint."""

    def on_start(self, run):
        self.path = run.path / "metrics.csv"
        self.columns, rows = [], []
        if run.iteration and self.path.is_file():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["iteration"]) <= run.iteration]
        self.path.unlink(missing_ok=True)
        for row in rows:
            self.write(row)

    def on_iteration(self, iteration, metrics):
        self.write({"iteration": iteration, **metrics})

    def write(self, row):
        new = not self.columns
        self.columns = self.columns or list(row)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            if new:
                writer.writeheader()
            writer.writerow(row)
