"""What processes tell each other: metrics that add up, summaries of rollouts, minibatches drawn over all."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autotelic.errors import UsageError
from autotelic.trainers import distributed, minibatches, summaries
from autotelic.trainers.contracts import Learner
from autotelic.trainers.metrics import Largest, Mean, Paired, Share, everywhere, joined, of_rows
from autotelic.trainers.minibatches import ROLLOUT, Minibatches, names
from autotelic.trainers.summaries import Summary, of_everybody
from autotelic.types import Rollout, Task

from .toy_run import build, honest
from .toys import TokenToy

# --- metrics -----------------------------------------------------------------------------------------------------


def test_each_kind_of_metric_is_that_of_all_numbers_together() -> None:
    """A process with many numbers, one with few and one with none, against all numbers in one place."""
    a, b = torch.randn(2, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cuts = [slice(0, 33), slice(33, 40), slice(40, 40)]

    def told(cut: slice) -> dict[str, float]:
        some, other = a[cut], b[cut] + 100
        most = {"largest": Largest(some.max())} if len(some) else {}
        moments = {kind: Paired.of(kind, other + some, some) for kind in ("correlation", "explained")}  # type: ignore[arg-type]
        return {"mean": Mean.of(some, some > 0), "share": Share(some.sum()), **most, **moments}

    parts = [pickle.loads(pickle.dumps(told(cut))) for cut in cuts]
    whole = told(slice(None))
    assert joined(parts) == pytest.approx({name: float(value) for name, value in whole.items()})
    assert joined(reversed(parts)) == pytest.approx(joined(parts))
    assert whole["mean"] == pytest.approx(float(a[a > 0].mean())) and whole["share"] == pytest.approx(float(a.sum()))
    assert whole["correlation"] == pytest.approx(float(torch.corrcoef(torch.stack([a + b, a]))[0, 1]))
    missed = float(b.var() / a.var())
    assert whole["explained"] == pytest.approx(1 - missed)


def test_plain_numbers_are_means_over_rollouts_or_over_who_tells_them() -> None:
    assert joined([of_rows({"x": 1.0, "y": Largest(3)}, 3), of_rows({"x": 5.0, "y": Largest(2)}, 1)]) == {
        "x": 2.0,
        "y": 3,
    }
    assert joined([{"x": 1.0}, {"x": 2.0, "only": 7.0}, {}]) == {"x": 1.5, "only": 7.0}
    assert everywhere({"x": Mean(3, 2)}, {}) == [{"x": 1.5}, {}]
    assert type(everywhere({"x": Mean(3, 2)})[0]["x"]) is float
    assert (
        Mean(0, 0) == 0.0
        and Mean.of_numbers([], empty=-1.0) == -1.0
        and Paired.of("explained", a := torch.ones(3), a) == 0
    )


# --- minibatches -------------------------------------------------------------------------------------------------


def several(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> Any:
    """Work of several processes one after the other: each gather is given what all of them asked it for."""

    def run(works: Sequence[Any]) -> list[Any]:
        asked: list[list[list[Any]]] = []  # of each meeting, every process's items
        while True:  # until nobody meets the others more often than is known
            found = []
            before = len(asked)
            for rank, work in enumerate(works):
                meeting = itertools.count()

                def gather(items: Sequence[Any], rank: int = rank, meeting: Any = meeting) -> list[Any]:
                    number = next(meeting)
                    if number == len(asked):
                        asked.append([[] for _ in works])
                    asked[number][rank] = copy.deepcopy(list(items))
                    return [item for each in asked[number] for item in each]

                for module in modules:
                    monkeypatch.setattr(module, "gather", gather)
                state = SimpleNamespace(num_processes=len(works), process_index=rank, is_main_process=not rank)
                monkeypatch.setattr(distributed, "_state", lambda state=state: state)
                found.append(work())
            if len(asked) == before:
                return found

    return run


@pytest.mark.parametrize("cut", ["groups", "segments"])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_minibatches_are_the_same_whoever_holds_the_rollouts(
    monkeypatch: pytest.MonkeyPatch, cut: Any, count: int
) -> None:
    """Of one process, of two and of three, of which the last has nothing: names of rows and decisions per step."""
    toy = TokenToy(5)
    rollouts = toy.act([Task(f"task {i}", i, horizon=3) for i in range(5)], 2)
    for rollout in rollouts:
        rollout.scores["total"] = 1.0
        rollout.segments = torch.tensor([0, 1, 1]) if rollout.task.prompt % 2 else torch.tensor([0, 1, 2])

    def parts(own: list[Rollout]) -> Any:
        def drawn() -> list[set[tuple[int, int]]]:
            batch = toy.collate(own) if own else None
            if batch is not None:
                batch.columns[ROLLOUT] = torch.tensor(names(own))
            cuts = Minibatches(batch, cut, count)
            steps = [part for epoch in range(2) for part in cuts.epoch(7, epoch)]
            rows = [[] if part is None else part.mask.nonzero().tolist() for part in steps]
            named = [
                {(int(part.columns[ROLLOUT][row]), place) for row, place in places} if part is not None else set()
                for part, places in zip(steps, rows, strict=True)
            ]
            assert sum(map(len, rows)) == sum(map(len, named))
            return named

        return drawn

    run = several(monkeypatch, minibatches)
    (alone,) = run([parts(rollouts)])
    for shares in ([rollouts[:4], rollouts[4:]], [rollouts[6:], rollouts[:6], []]):
        together = [set().union(*step) for step in zip(*run([parts(own) for own in shares]), strict=True)]
        assert together == alone
    assert len(alone) == 2 * count and sum(map(len, alone[:count])) == sum(int(r.mask.sum()) for r in rollouts)
    assert count == 1 or alone[:count] != alone[count:], "another epoch, another order"


def test_anchors_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes imitate together what one imitates alone, and neither all of it."""
    seen: list[list[list[int]]] = []
    for processes in (1, 2):
        seen.append([])
        for rank in range(processes):
            learner: Any = build(honest, gate=None).stages[0].learners["policy"]
            state = SimpleNamespace(num_processes=processes, process_index=rank)
            monkeypatch.setattr(distributed, "_state", lambda state=state: state)
            monkeypatch.setattr("autotelic.trainers.learner.reduce_counts", lambda counts: counts)
            policy, learner.anchors.size = learner.policy, 3
            collate = policy.collate

            def record(rollouts: Sequence[Rollout], collate: Any = collate) -> Any:
                seen[-1].append([r.payload["tokens"].tolist() for r in rollouts])
                return collate(rollouts)

            monkeypatch.setattr(policy, "collate", record)
            learner.anchors.backpropagate(policy, (0, 3))
    (alone,), shares = seen
    assert len(alone) == 3 and [len(share) for share in shares] == [2, 1]
    assert sorted(alone) == sorted(itertools.chain(*shares))


# --- summaries ---------------------------------------------------------------------------------------------------


def attempts(count: int, size: int = 1000) -> tuple[list[Task], list[Rollout]]:
    """Rollouts whose pictures and payloads are views of what is made for all of them, as a policy hands them out."""
    tasks = [
        Task(f"t{i}", "a question " * 50, (torch.zeros(3, 32, 32),), category="even" if i % 2 else "odd")
        for i in range(count)
    ]
    pictures, paths = torch.zeros(count, size), torch.zeros(count, size)
    one = torch.ones(5)
    made = [
        Rollout(task, pictures[i], {"path": paths[i]}, one, one.bool(), one.long() * 0) for i, task in enumerate(tasks)
    ]
    for rollout in made:
        rollout.scores |= {"total": torch.tensor([0.5, 0.25]), "clip": 0.1, "none": None}
        rollout.info |= {"abs_advantage": 0.5, "why": "short", "said": "x" * 1000, "seen": torch.zeros(100)}
    return tasks, made


def test_what_is_gathered_is_small_and_does_not_grow_with_the_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def gather(items: Sequence[Any]) -> list[Any]:
        sent.append(len(pickle.dumps(list(items))) // len(items))
        return list(items)

    monkeypatch.setattr(summaries, "gather", gather)
    for reads in ((), ("output",)):
        for count in (8, 64, 512):
            tasks, rollouts = attempts(count)
            of_everybody(rollouts, tasks, reads)
    assert max(sent[:3]) < 2000 and sent[2] <= sent[0]
    assert max(sent[3:]) < 2000 + 4 * 1000 + 500 and sent[5] <= sent[3], "a view goes without what it is a view of"


def test_summaries_are_in_the_order_of_the_tasks_and_refuse_what_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, rollouts = attempts(4)
    rollouts[1].task = replace(tasks[1], prompt="another")  # an actor's own
    rollouts[3].task = replace(tasks[3], id="derived", parent="t3")
    shares = [rollouts[1::2], rollouts[0::2]]
    run = several(monkeypatch, summaries)
    for found in run([lambda own=own: of_everybody(own, tasks) for own in shares]):
        assert [summary.task.id for summary in found] == ["t0", "t1", "t2", "derived"]
        assert found[0].scores == {"total": 0.75, "clip": pytest.approx(0.1), "none": None}
        assert found[0].info == {"abs_advantage": 0.5, "why": "short"} and found[0].group_key == "policy/t0"
        assert found[0].task is tasks[0] and found[3].task.category == "even"
        for name in ("output", "payload", "mask", "log_probs", "graph", "states"):
            with pytest.raises(UsageError, match=rf'^a learner looks at rollout.{name}, .* reads = \("{name}",\)$'):
                getattr(found[0], name)
        for name in ("prompt", "images", "extra"):
            with pytest.raises(UsageError, match=rf'rollout.task.{name}, .* reads = \("task",\)$'):
                getattr(found[1].task, name)
        assert not hasattr(found[0], "nonsense") and isinstance(pickle.loads(pickle.dumps(found[0])), Summary)
    for found in run([lambda own=own: of_everybody(own, tasks, ("task", "payload")) for own in shares]):
        assert found[1].task.prompt == "another" and found[2].payload["path"].shape == (1000,)


def test_a_learner_that_reads_what_no_rollout_has_is_refused() -> None:
    class Reads(Learner):
        reads = ("outputs",)

        def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
            return {}

    (stage,) = build(honest).stages
    with pytest.raises(UsageError, match=r"^the learner 'mine' reads 'outputs': a rollout has graph, group, info"):
        replace(stage, learners={**stage.learners, "mine": Reads()})


# --- gradients ---------------------------------------------------------------------------------------------------


def test_gradients_are_summed_in_place_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message is at most as large as a bucket, or one tensor; who has no gradient anywhere keeps none."""
    state = SimpleNamespace(num_processes=2, process_index=0)
    monkeypatch.setattr(distributed, "_state", lambda: state)
    monkeypatch.setattr(distributed, "BUCKET", 40)
    messages: list[int] = []

    def double(tensor: torch.Tensor, group: Any = None) -> None:
        messages.append(tensor.nbytes)
        tensor.mul_(2)

    monkeypatch.setattr(distributed, "_meet", lambda work: work(None))
    monkeypatch.setattr(torch.distributed, "all_reduce", double)
    weights = [torch.nn.Parameter(torch.zeros(n, dtype=d)) for n, d in [(3, torch.float32), (4, torch.float32)]]
    weights += [torch.nn.Parameter(torch.zeros(n, 2)) for n in (30, 1, 2)]
    weights += [torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)), torch.nn.Parameter(torch.zeros(3))]
    for weight in weights[:-1]:
        weight.grad = torch.ones_like(weight)
    weights[2].grad = torch.ones(2, 30).T  # not contiguous
    large = weights[3].grad
    distributed.reduce_gradients([*weights, torch.nn.Parameter(torch.zeros(1), requires_grad=False)])
    assert [None if w.grad is None else w.grad.unique().tolist() for w in weights] == [[2.0]] * 6 + [None]
    assert messages == [4 * 7, 28, 240, 24, 16] and weights[3].grad is large
