"""Trackers: a run's metrics in TensorBoard, wandb, trackio, mlflow or any other that accelerate knows.

``metrics.jsonl`` in the run's folder is always there; trackers are optional sinks beside it. Each is a ``Callback``.
It is told ``tracked(metrics)``: our names, and beside them those that the field has for the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ...errors import UsageError, unknown
from .callbacks import Callback, RunInfo

STANDARD: Mapping[str, str] = {
    "objective/kl": "train/approx_kl",
    "objective/clip_fraction": "train/clip_fraction",
    "objective/entropy": "train/entropy",
    "objective/loss": "train/loss",
    "objective/grad_norm": "train/grad_norm",
    "reward": "train/reward",
}
"""Our name -> the field's."""


def tracked(metrics: Mapping[str, float]) -> dict[str, float]:
    """Finite metrics, standard names beside ours, and ``train/steps_per_second``: rollouts per second of a round."""
    values = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    values |= {standard: values[name] for name, standard in STANDARD.items() if name in values}
    seconds = values.get("time/act", 0.0) + values.get("time/learn", 0.0)
    if seconds > 0 and "rollouts" in values:
        values["train/steps_per_second"] = values["rollouts"] / seconds
    return values


class TensorBoard(Callback):
    """RUN/events, for ``tensorboard --logdir RUN``; a resumed run overwrites what came after its checkpoint."""

    writer: Any = None

    def on_start(self, run: RunInfo) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        purge = run.iteration + 1 if run.iteration else None
        self.writer = SummaryWriter(str(run.path / "events"), purge_step=purge)

    def on_iteration(self, iteration: int, metrics: Mapping[str, float]) -> None:
        for name, value in tracked(metrics).items():
            self.writer.add_scalar(name, value, iteration)
        self.writer.flush()

    def on_end(self, error: BaseException | None = None) -> None:
        if self.writer is not None:
            self.writer.close()


class AccelerateTracker(Callback):
    """One of accelerate's trackers: wandb, trackio, mlflow, comet_ml, aim, clearml, dvclive, swanlab.

    The project is "autotelic", the run is called like its folder. Accounts and addresses are the tracker's business.

    Raises:
        UsageError: no such tracker, or its package is not installed.
    """

    def __init__(self, name: str) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        known = [str(kind) for kind in LOGGER_TYPE_TO_CLASS]
        if name not in known:
            raise unknown("tracker", name, known)
        if name not in {str(kind) for kind in get_available_trackers()}:
            raise UsageError(f"the tracker {name} is not installed: pip install {name.partition('_')[0]}")
        self.kind: Any = LOGGER_TYPE_TO_CLASS[name]
        self.tracker: Any = None

    def on_start(self, run: RunInfo) -> None:
        where = {"logging_dir": str(run.path)} if self.kind.requires_logging_directory else {}
        self.tracker = self.kind("autotelic", **where)
        self.tracker.start()
        self.tracker.store_init_configuration({"run": run.path.name, "recipe": run.recipe, **_flat(run.config)})

    def on_iteration(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.tracker.log(tracked(metrics), step=iteration)

    def on_evaluation(self, iteration: int, name: str, evaluation: Mapping[str, Any]) -> None:
        outcomes = evaluation.get("outcomes", {})
        means = {category: _mean(outcome["success"]) for category, outcome in outcomes.items() if outcome["success"]}
        if means:
            figures = {f"eval/{category}": value for category, value in means.items()}
            self.tracker.log(figures | {"eval/mean": _mean(list(means.values()))}, step=iteration)

    def on_end(self, error: BaseException | None = None) -> None:
        if self.tracker is not None:
            self.tracker.finish()


aim, clearml, comet_ml, dvclive, mlflow, swanlab, trackio, wandb = (
    partial(AccelerateTracker, name)
    for name in ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")
)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in the types that every tracker takes."""
    plain = (str, bool, int, float)
    return {name: value if isinstance(value, plain) else str(value) for name, value in config.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(float(value) for value in values) / len(values)
