"""Does adapting pay where a model is unsure, and only there? TT-SI on a mixture of rotated tasks in the plane.

    python benchmarks/tt_si.py [--quick] [--json FILE] [--seeds 100 101 102 103 104]

Two moons, turned by one of eight angles; a tiny network sees the point and the angle, and learned from 640 points of
which a fifth have the wrong label. An example similar to a point is that point in another task of the mixture, labelled
by the network itself. Adapted and direct answers are compared on 400 points per seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import parser_of, save
from torch import Tensor, nn

from autotelic.fitting import cosine, fit
from autotelic.statistics import mean_interval
from autotelic.trainers.policy import TorchPolicy
from autotelic.trainers.randomness import generator
from autotelic.types import Batch, Evaluation, Mode, Rollout, Task
from autotelic.vlm.adaptation import AdaptAndReset, Adaptation, AmongCandidates

TASKS, HIDDEN, LEARNED, WRONG, ASKED = 8, 4, 640, 0.2, 400
ADAPTATION = Adaptation(steps=3, lr=1e-2)
SHARES = (0.125, 0.25, 0.5, 1.0)
ALWAYS = 2.0
"""A threshold above every margin."""


class PlanePolicy(TorchPolicy):
    """A network of 4 hidden units per layer: point and angle [4] -> one of two labels."""

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = nn.Linear(4, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2)
        super().__init__(nn.Sequential(*layers))

    def log_probs(self, points: Tensor) -> Tensor:
        """[N, 2]"""
        scores: Tensor = self.module(points)
        return scores.log_softmax(-1)

    @torch.no_grad()
    def act(
        self, tasks: Sequence[Task], n: int, *, key: tuple[int, ...] = (0,), mode: Mode = "train", greedy: bool = False
    ) -> list[Rollout]:
        """The likelier label."""
        labels = self.log_probs(torch.stack([task.prompt for task in tasks])).argmax(-1).tolist()
        return self.encode([task for task in tasks for _ in range(n)], [label for label in labels for _ in range(n)])

    def encode(self, tasks: Sequence[Task], outputs: Sequence[Any]) -> list[Rollout]:
        decided, segment = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
        payloads = [{"point": t.prompt, "label": torch.tensor([o])} for t, o in zip(tasks, outputs, strict=True)]
        both = zip(tasks, outputs, payloads, strict=True)
        return [Rollout(task, output, payload, None, decided, segment) for task, output, payload in both]

    def forward_decisions(self, batch: Batch, needs: frozenset[str], references: Any) -> Evaluation:
        return Evaluation(self.log_probs(batch.payload["point"]).gather(-1, batch.payload["label"]))


def turned(vectors: Tensor, angles: Tensor) -> Tensor:
    """[N, 2] turned by [N] radians."""
    c, s, (x, y) = angles.cos(), angles.sin(), vectors.T
    return torch.stack([c * x - s * y, s * x + c * y], -1)


def drawn(count: int, name: str, seed: int) -> list[Task]:
    """Points of all tasks with their labels."""
    random = generator("plane", name, seed)
    labels = torch.randint(2, (count,), generator=random)
    place = math.pi * torch.rand(count, generator=random)
    upper, lower = torch.stack([place.cos(), place.sin()], -1), torch.stack([1 - place.cos(), 0.5 - place.sin()], -1)
    moons = torch.where(labels[:, None] == 1, lower, upper) - torch.tensor([0.5, 0.25])
    moons = moons + 0.15 * torch.randn(count, 2, generator=random)
    angles = 2 * math.pi * torch.randint(TASKS, (count,), generator=random) / TASKS
    inputs = torch.cat([turned(moons, angles), angles.cos()[:, None], angles.sin()[:, None]], -1)
    return [Task(f"{name}/{i}", inputs[i], reference=label) for i, label in enumerate(labels.tolist())]


def trained(seed: int) -> PlanePolicy:
    """The policy that is evaluated."""
    policy, tasks = PlanePolicy(seed), drawn(LEARNED, "learned", seed)
    wrong = torch.rand(LEARNED, generator=generator("wrong", seed)) < WRONG
    labels = torch.tensor([task.reference for task in tasks]) ^ wrong.long()
    inputs = torch.stack([task.prompt for task in tasks])
    fit(policy.module, lambda step: nn.functional.nll_loss(policy.log_probs(inputs), labels), cosine(1e-2, 150))
    return policy


def elsewhere(point: Tensor, random: torch.Generator) -> Tensor:
    """The same point in another task of the mixture."""
    angle = 2 * math.pi * torch.randint(1, TASKS, (1,), generator=random) / TASKS
    return torch.cat([turned(point[None, :2], angle)[0], turned(point[None, 2:], angle)[0]])


def nearby(point: Tensor, random: torch.Generator) -> Tensor:
    """A point near by, in the same task."""
    return point + torch.cat([0.3 * torch.randn(2, generator=random), torch.zeros(2)])


def similar(where: Callable[[Tensor, torch.Generator], Tensor], answers: dict[str, int] | None = None) -> Any:
    """Pairs labelled by the policy itself, or by a teacher who knows the answers (TT-D)."""

    def write(policy: Any, task: Task, k: int, key: tuple[int, ...]) -> list[Rollout]:
        random = generator("similar", *key, task.id)
        new = [Task(f"{task.id}/{i}", where(task.prompt, random)) for i in range(k)]
        if answers is not None:
            return list(policy.encode(new, [answers[task.id]] * k))
        return list(policy.encode(new, [rollout.output for rollout in policy.act(new, 1, greedy=True)]))

    return write


def of_seed(seed: int, asked: int) -> dict[str, Any]:
    """Per arm: accuracy less that of direct answers, share adapted, and CPU milliseconds per question."""
    policy, tasks, among = trained(seed), drawn(asked, "asked", seed), AmongCandidates(lambda task: (0, 1))
    margins = torch.tensor(among(policy, tasks))
    order = margins.argsort()

    def right(actor: Any) -> tuple[Tensor, float, float]:
        start = time.process_time()
        rollouts = actor.act(tasks, 1, mode="evaluate", greedy=True)
        spent = (time.process_time() - start) / asked * 1000
        share = sum(rollout.info.get("adapted", False) for rollout in rollouts) / asked
        return torch.tensor([float(r.output == r.task.reference) for r in rollouts]), share, spent

    direct, _, direct_ms = right(policy)
    quartiles = order.chunk(4)
    figures: dict[str, Any] = {"direct": float(direct.mean()), "direct_ms": direct_ms, "arms": {}}
    figures["direct_by_quartile"] = [float(direct[part].mean()) for part in quartiles]

    def arm(name: str, threshold: float = ALWAYS, write: Any = None, **options: Any) -> None:
        system = AdaptAndReset(
            policy, among, write or similar(elsewhere), ADAPTATION, threshold=threshold, **{"examples": 1, **options}
        )
        gains, share, spent = right(system)
        gains = gains - direct
        by_quartile = [float(gains[part].mean()) for part in quartiles]
        figures["arms"][name] = {"gain": float(gains.mean()), "by_quartile": by_quartile, "adapted": share, "ms": spent}

    for share in SHARES:
        last = round(share * asked)
        threshold = ALWAYS if share == 1 else float(margins[order[last]])
        arm(f"margin {share:g}", threshold)
        if share < 1:
            arm(f"random {share:g}", threshold, gate_by="random")
    arm("0.95, as in the paper", 0.95)
    arm("K = 4", examples=4)
    arm("neighbours in the same task", write=similar(nearby))
    arm("labels of a teacher (TT-D)", write=similar(elsewhere, {task.id: task.reference for task in tasks}))
    return figures


def main() -> None:
    parser = parser_of(__doc__, "one seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    seeds = options.seeds[:1] if options.quick else options.seeds
    runs = [of_seed(seed, ASKED) for seed in seeds]
    print(f"direct: {100 * sum(run['direct'] for run in runs) / len(runs):.1f} %")
    summary: dict[str, Any] = {}
    for name in runs[0]["arms"]:
        rows = [run["arms"][name] for run in runs]
        low, high = mean_interval([row["gain"] for row in rows])
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in ("gain", "adapted", "ms")}
        spread = [sum(row["by_quartile"][i] for row in rows) / len(rows) for i in range(4)]
        bounds = [mean_interval([row["by_quartile"][i] for row in rows]) for i in range(4)]
        summary[name] = mean | {"interval": [low, high], "by_quartile": spread, "by_quartile_intervals": bounds}
        told = " ".join(f"{100 * value:+.1f}" for value in spread)
        print(
            f"{name:30} adapted {100 * mean['adapted']:5.1f} %  gain {100 * mean['gain']:+.1f} "
            f"({100 * low:+.1f} to {100 * high:+.1f})  by quartile {told}  {mean['ms']:.1f} ms"
        )
    differences = {}
    for share in SHARES[:-1]:
        over = [run["arms"][f"margin {share:g}"]["gain"] - run["arms"][f"random {share:g}"]["gain"] for run in runs]
        differences[f"{share:g}"] = {"mean": sum(over) / len(over), "interval": list(mean_interval(over))}
        low, high = differences[f"{share:g}"]["interval"]
        told = f"{100 * sum(over) / len(over):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        print(f"margin over random at {share:g}: {told}")
    figures = {"seeds": seeds, "summary": summary, "margin_over_random": differences, "runs": runs}
    save(options, figures | {"cpu_seconds": time.process_time() - start})


if __name__ == "__main__":
    main()
