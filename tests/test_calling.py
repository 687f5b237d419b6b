"""How rewards are called: which columns a function gets, what waits for what, and what it may return."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from autotelic.calling import RESERVED, Shown, call, check_columns, picked, require_columns, settled
from autotelic.errors import RewardError, UsageError
from autotelic.returned import scores_of
from autotelic.rewards.reward import Reward
from autotelic.trainers.scoring import columns, score, tell_state, total_of
from autotelic.types import Rollout, Task, TrainerState
from autotelic.vlm.conversation import Reply, Transcript, Turn

ONE = torch.zeros(1)


def attempts(*outputs: Any, **fields: Any) -> list[Rollout]:
    tasks = [Task(**{"id": f"task-{i}", "prompt": "say"} | fields) for i in range(len(outputs))]
    return [Rollout(t, o, {}, ONE, ONE.bool(), ONE.long()) for t, o in zip(tasks, outputs, strict=True)]


# --- in ---------------------------------------------------------------------------------------------------------------


def test_the_columns_are_the_reserved_names_and_those_of_the_data() -> None:
    table = columns(attempts("a", extra={"answer": "7"}))
    assert table.keys() == RESERVED | {"answer"}
    rows = [table[name] for name in table if name not in ("trainer_state", "log_metric", "log_extra")]
    assert all(len(row) == 1 for row in rows)


def test_a_function_gets_what_it_names_and_more_only_if_it_takes_more() -> None:
    class Module(nn.Module):
        def forward(self, outputs: Sequence[str]) -> Tensor:
            return torch.tensor([float(len(text)) for text in outputs])

    def limited(outputs: Sequence[str], *, limit: int = 3) -> list[float]:
        return [float(len(text) <= limit) for text in outputs]

    def all_of_it(**table: Any) -> list[float]:
        return [float(len(table))] * len(table["outputs"])

    for function, wanted in (
        (Module(), [2.0, 4.0]),
        (limited, [1.0, 0.0]),
        (partial(limited, limit=1), [0.0, 0.0]),
        (all_of_it, [float(len(RESERVED))] * 2),
    ):
        rollouts = attempts("ab", "abcd")
        score(rollouts, function)
        assert [total_of(r) for r in rollouts] == wanted


def test_a_column_that_nobody_has_is_named_when_it_is_called_and_before() -> None:
    def wants(outputs: Any, solution: Any, metadata: Any) -> list[float]:
        return [0.0]

    with pytest.raises(RewardError, match=r'^reward wants: it needs the column "solution", and there is'):
        score(attempts("a"), wants)
    tasks = [Task("a", "b", extra={"answer": "7"})]
    with pytest.raises(UsageError, match=r'wants needs the column "solution", and none of the 1 tasks .* answer'):
        require_columns(wants, tasks)
    with pytest.raises(UsageError, match=r'"solution"'):
        require_columns(0.5 * Reward(wants) + Reward(len), tasks)
    require_columns(wants, [Task("a", "b", extra={"solution": "7"})])

    def counts(completion_ids: Any) -> list[float]:
        return [0.0]

    require_columns(counts, tasks, tokens=True)
    with pytest.raises(UsageError, match='counts needs the column "completion_ids", which policies of tokens have'):
        require_columns(counts, tasks)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_column_of_ones_own_has_a_name_of_its_own(name: str) -> None:
    tasks = [Task("fine", "a"), Task("mine", "a", extra={name: 1})]
    with pytest.raises(UsageError, match=f'column "{name}" of mine has the name of one that every reward is handed'):
        check_columns(tasks)
    with pytest.raises(UsageError, match="rename it"):
        require_columns(Reward(len), tasks)


def test_images_are_opened_when_they_are_looked_at_and_once_per_task(tmp_path: Any) -> None:
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "a.png")
    task, broken = Task("a", "?", images=(tmp_path / "a.png",)), Task("b", "?", images=(tmp_path / "no.png",))
    shown = Shown([task, task, Task("c", "?"), broken])
    assert len(shown) == 4 and shown.any and shown[2] is None
    assert shown[0] is shown[1] and shown[0][0].getpixel((2, 1)) == (1, 2, 3)
    assert not Shown([Task("c", "?")]).any and list(shown[1:3]) == [shown[0], None]
    with pytest.raises(UsageError, match="b: image 1: there is no file"):
        shown[3]


def test_a_function_of_one_image_gets_the_first() -> None:
    def wide(completions: Any, image: Any) -> list[float]:
        return [math.nan if one is None else float(one.width) for one in image]

    rollouts = [*attempts("a", images=(Image.new("RGB", (5, 2)), Image.new("RGB", (6, 2)))), *attempts("b")]
    require_columns(wide, [r.task for r in rollouts])
    score(rollouts, wide)
    assert [total_of(r) for r in rollouts] == [5.0, None]
    with pytest.raises(UsageError, match='needs the column "image"'):
        require_columns(wide, [rollouts[1].task])


def test_completions_of_a_conversation_are_its_messages() -> None:
    said = Transcript([Turn("look", Reply("a cat")), Turn("so a cat", Reply(done=True))])
    chat = [{"role": "user", "content": "what is it?"}]
    (messages,) = columns(attempts(said, prompt=chat))["completions"]
    assert [(m["role"], m["content"]) for m in messages] == [
        ("assistant", "look"),
        ("user", "a cat"),
        ("assistant", "so a cat"),
    ]
    assert columns(attempts(said))["completions"] == [said]


def test_what_the_run_says_of_itself_reaches_a_reward() -> None:
    def progress(outputs: Any, trainer_state: Any) -> list[float]:
        return [trainer_state.epoch + trainer_state.global_step] * len(outputs)

    rollouts = attempts("a")
    try:
        tell_state(TrainerState(global_step=3, max_steps=12))
        score(rollouts, progress)
    finally:
        tell_state(TrainerState())
    assert total_of(rollouts[0]) == 3.25


def test_pictures_of_several_sizes_have_no_tensor() -> None:
    def mean(outputs: Tensor, **_: Any) -> Tensor:
        return outputs.mean((1, 2, 3))

    rollouts = attempts(torch.zeros(3, 4, 4), torch.zeros(3, 4, 5))
    with pytest.raises(RewardError, match=r"their shapes are \(3, 4, 4\) and \(3, 4, 5\)"):
        score(rollouts, Reward(mean, differentiable=True))
    score(rollouts, lambda outputs: [float(picture.mean()) for picture in outputs])


def test_a_declared_reward_of_texts_is_handed_texts() -> None:
    """Without pictures there is nothing to put into a tensor."""

    def differentiable(outputs: Any, **_: Any) -> Any:
        return torch.tensor([float(len(text)) for text in outputs])

    rollouts = attempts("ab", "c")
    score(rollouts, Reward(differentiable, differentiable=True))
    assert [total_of(r) for r in rollouts] == [2.0, 1.0]


def test_some_rows_of_the_columns_are_those_rows_and_what_they_log_stands_in_its_place() -> None:
    logged: dict[str, list[Any]] = {}
    table = columns(attempts("a", "b", "c")) | {"log_extra": logged.__setitem__}
    some = picked(table, [2, 0])
    assert some["outputs"] == ["c", "a"] and [task.id for task in some["tasks"]] == ["task-2", "task-0"]
    assert some["trainer_state"] is table["trainer_state"]
    some["log_extra"]("seen", [1, 2])
    assert logged == {"seen": [2, None, 1]}


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_who_waits_for_nothing_is_called_first_and_errors_come_out() -> None:
    order: list[str] = []

    async def slow(name: str) -> str:
        await asyncio.sleep(0.01)
        order.append(name)
        return name

    def now() -> str:
        order.append("now")
        return "now"

    assert settled([lambda: slow("a"), now, lambda: slow("b")]) == ["a", "now", "b"]
    assert order[0] == "now" and set(order) == {"now", "a", "b"}

    async def fails() -> None:
        raise KeyError("no")

    done: list[str] = []

    async def goes_on() -> None:
        await asyncio.sleep(0.02)
        done.append("done")

    with pytest.raises(KeyError):
        settled([fails, goes_on])
    assert done == ["done"], "nobody is left running behind an error"


def test_a_client_stays_in_its_loop() -> None:
    """What an asynchronous function made in one call, such as a connection, is of use in the next."""
    loops = []

    async def remembers(outputs: Any, **_: Any) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(outputs)

    for _ in range(2):
        score(attempts("a"), remembers)
    assert loops[0] is loops[1]


# --- out --------------------------------------------------------------------------------------------------------------

NAMED: dict[str, Any] = {"tasks": [Task("a", ""), Task("b", "")]}


@pytest.mark.parametrize(
    ("result", "scores"),
    [
        ((1, 0.5), [1.0, 0.5]),
        (range(2), [0.0, 1.0]),
        ({"a": [1, 2], "total": np.array([3, 4])}, [3.0, 4.0]),
        ({"a": [1, 2], "b": [5, 6]}, [1.0, 2.0]),
        (({"total": [1, 2]}, {"seen": 2}), [1.0, 2.0]),
        (([1, 2], None), [1.0, 2.0]),
        ([[1.0, 2.0], [math.nan, math.nan]], [[1.0, 2.0], None]),
        ([np.array([1.0, 2.0]), torch.tensor([3])], [[1.0, 2.0], 3.0]),
        ([True, np.int64(3)], [1.0, 3.0]),
        (np.array([None, 1.0], dtype=object), [None, 1.0]),
    ],
    ids=str,
)
def test_scores_are_read_from_whatever_holds_numbers(result: Any, scores: list[Any]) -> None:
    found = scores_of("it", result, NAMED)["total"]
    assert found == scores and all(type(score) in (float, list, type(None)) for score in found)


@pytest.mark.parametrize(
    "result",
    [
        None,
        3,
        "ab",
        b"ab",
        {1.0, 2.0},
        torch.tensor(1.0),
        np.eye(2),
        torch.zeros(2, 3),
        [1.0],
        [1, "2"],
        [1, 1j],
        [1, []],
        *([1.0, math.inf], {"total": 3.0}, [[1.0, math.nan], 1.0], [{"a": 1}, 2], [object(), 1.0]),
        np.array(["1", "2"]),
    ],
    ids=lambda value: str(value).partition(" at 0x")[0],
)
def test_anything_else_is_refused_with_the_name_of_the_reward(result: Any) -> None:
    with pytest.raises(RewardError, match=r"^reward it returned ") as told:
        scores_of("it", result, NAMED)
    assert "\n" not in str(told.value)


def test_random_results_are_scores_or_one_line() -> None:
    """Nests of numbers, arrays and nonsense: a list of two scores comes out, or one line."""
    random = np.random.default_rng(0)
    leaves = [0.5, -1, True, None, math.nan, math.inf, "x", 1j, np.float32(2), np.int8(1), torch.tensor(1.0), object()]

    def grown(depth: int) -> Any:
        kind = random.integers(8 if depth else 2)
        if kind < 2:
            return leaves[random.integers(len(leaves))]
        parts = [grown(depth - 1) for _ in range(random.integers(4))]
        numbers = random.random((random.integers(1, 4),) * int(random.integers(3)))
        return [parts, tuple(parts), {"total": parts}, {"a": parts}, numbers, torch.from_numpy(np.asarray(numbers))][
            kind - 2
        ]

    accepted = 0
    for _ in range(3000):
        try:
            found = scores_of("it", grown(3), NAMED)
        except RewardError as error:
            assert "\n" not in str(error)
            continue
        accepted += 1
        for scores in found.values():
            assert len(scores) == 2
            for value in scores:
                assert value is None or np.isfinite(value).all()
    assert accepted > 50


def test_a_gradient_stays_on_the_scores_that_have_one() -> None:
    pictures = torch.ones(2, 3, 2, 2, requires_grad=True)
    found = scores_of("it", pictures.mean((1, 2, 3)), NAMED)["total"]
    sum(found).backward()  # type: ignore[arg-type, union-attr]
    assert pictures.grad is not None and bool((pictures.grad == 1 / 12).all())
    assert call(lambda outputs: outputs, {"outputs": ["a"]}) == ["a"]
