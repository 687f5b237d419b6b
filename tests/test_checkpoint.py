"""A checkpoint comes back to the bit, or is refused in one line that offers the last good one."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from autotelic.trainers.runs import checkpoint
from autotelic.trainers.runs.checkpoint import CheckpointError, last_good, load, save


def same(a: object, b: object) -> bool:
    """Equal structure, types and bits (a NaN equals itself)."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))
        )
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and a == b


def test_every_kind_of_value_round_trips(tmp_path: Path) -> None:
    state = {
        "weights": {"a.b": torch.randn(3, 4), "bf16": torch.randn(5).bfloat16(), "scalar": torch.tensor(2.5)},
        "empty": torch.zeros(0, 3),
        "random": torch.get_rng_state(),
        "flags": torch.tensor([True, False]),
        "large": 2**70,
        "numbers": [1, -0.1, True, None, "text \ud83d \n", 1e-300, math.inf, -math.inf, math.nan],
        "keys": {0: "int", "0": "str", -3: {"deep": [torch.arange(3)]}},
        "$tensor": {"$items": 1, "$float": torch.ones(2)},
        "none": {},
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }
    save(tmp_path / "one", state)
    assert same(load(tmp_path / "one"), state)


def test_tuples_become_lists_and_views_lose_their_sharing(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    state = {"pair": (1, 2), "row": base[1], "transposed": base.T, "base": base, "again": base}
    save(tmp_path / "one", state)
    loaded = load(tmp_path / "one")
    assert loaded["pair"] == [1, 2]
    assert torch.equal(loaded["row"], base[1]) and torch.equal(loaded["transposed"], base.T)
    loaded["again"].zero_()
    assert torch.equal(loaded["base"], base)


def test_training_continues_to_the_bit_with_a_loaded_optimizer(tmp_path: Path) -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 3)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    model, optimizer = build()
    step(model, optimizer, 0)
    save(tmp_path / "one", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    step(model, optimizer, 1)

    resumed, resumed_optimizer = build()
    state = load(tmp_path / "one")
    resumed.load_state_dict(state["model"])
    resumed_optimizer.load_state_dict(state["optimizer"])
    step(resumed, resumed_optimizer, 1)
    assert same(dict(resumed.state_dict()), dict(model.state_dict()))
    assert same(resumed_optimizer.state_dict()["state"], optimizer.state_dict()["state"])


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.float64(1.0), "/deep/0: numpy.float64"),
        (np.zeros(2), "use torch.from_numpy"),
        ({1.5: 0}, "/deep/0: key 1.5"),
        (print, "builtins.builtin_function_or_method"),
        (torch.eye(2).to_sparse(), "/deep/0: only dense"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
    ],
)
def test_what_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path, value: object, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        save(tmp_path / "one", {"deep": [value]})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for i in (2, 4, 6):
        save(tmp_path / f"iteration-{i:06d}", {"w": torch.full((100,), float(i)), "i": i})
    return tmp_path / "iteration-000006"


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_truncated_checkpoint_names_the_last_good_one(three: Path) -> None:
    path = tensors(three)
    os.truncate(path, path.stat().st_size - 1)
    assert "truncated" in refusal(three) and refusal(three).endswith("use iteration-000004")


def tensors(folder: Path) -> Path:
    """The one file of tensors of a checkpoint."""
    (path,) = folder.glob("*.safetensors")
    return path


@pytest.mark.parametrize("name", ["tensors", checkpoint.STATE, checkpoint.MANIFEST])
def test_no_flipped_byte_passes(three: Path, name: str) -> None:
    name = tensors(three).name if name == "tensors" else name
    original = (three / name).read_bytes()
    for position in range(0, len(original), 7):
        flipped = bytearray(original)
        flipped[position] ^= 1
        (three / name).write_bytes(flipped)
        assert "iteration-000006" in refusal(three)
    (three / name).write_bytes(original)
    assert load(three)["i"] == 6


def test_the_last_good_one_is_itself_verified(three: Path) -> None:
    (three / checkpoint.STATE).unlink()
    (three.with_name("iteration-000004") / checkpoint.STATE).write_text("{}")
    assert last_good(three) == three.with_name("iteration-000002")
    assert "lost state.json" in refusal(three) and refusal(three).endswith("use iteration-000002")


def test_another_format_is_refused_by_version(three: Path) -> None:
    manifest = json.loads((three / checkpoint.MANIFEST).read_text())
    (three / checkpoint.MANIFEST).write_bytes(checkpoint._manifest_bytes(manifest | {"format": 9, "autotelic": "7.0"}))
    assert "format 9, written by autotelic 7.0" in refusal(three)


def test_missing_and_foreign_paths_are_refused(three: Path) -> None:
    assert "does not exist" in refusal(three.with_name("iteration-000099"))
    assert "not a checkpoint folder" in refusal(three / checkpoint.STATE)
    assert "manifest" in refusal(three.parent)
    assert load(three.with_name("iteration-000004"))["i"] == 4


def test_pickles_are_refused_unread(three: Path) -> None:
    torch.save({"w": 1}, three.with_name("model.pt"))
    assert "model.pt is a pickle" in refusal(three.with_name("model.pt"))
    shutil.copy(three.with_name("model.pt"), three / "optimizer.bin")
    assert "optimizer.bin" in refusal(three)


@pytest.mark.parametrize("function", ["save_file", "_fingerprint", "_sync"])
def test_a_kill_between_files_leaves_the_old_checkpoint(
    three: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, function, killed)
        save(three, {"i": 7, "w": torch.zeros(3)})
    assert load(three)["i"] == 6
    save(three, {"i": 8})
    assert load(three) == {"i": 8}
    assert sorted(path.name for path in three.parent.iterdir()) == [f"iteration-{i:06d}" for i in (2, 4, 6)]


def test_a_kill_between_the_two_renames_leaves_the_old_checkpoint(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def killed_at_the_second(source: Path, target: Path) -> None:
        if target == three:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", killed_at_the_second)
        save(three, {"i": 7})
    assert load(three)["i"] == 6


def test_kills_at_random_moments_leave_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "one"
    save(path, {"i": 0, "w": torch.zeros(20_000)})
    moments = random.Random(0)
    for _ in range(30):
        first = load(path)["i"] + 1
        saved, report = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for i in range(first, first + 1000):
                    save(path, {"i": i, "w": torch.full((20_000,), float(i))})
                    os.write(report, b".")
            finally:
                os._exit(1)
        os.close(report)
        assert os.read(saved, 1) == b".", "after a kill the next save works"
        time.sleep(moments.uniform(0.0, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(saved)
        state = load(path)
        assert state["i"] >= first and bool((state["w"] == state["i"]).all())


def test_a_kill_while_the_old_one_is_removed_does_not_block_the_next_save(three: Path) -> None:
    shutil.copytree(three, checkpoint._previous(three))
    save(three, {"i": 7})
    assert load(three) == {"i": 7} and not checkpoint._previous(three).exists()


# --- what is written once ----------------------------------------------------------------------------


def files(folder: Path) -> dict[str, int]:
    """Inode by name of a checkpoint's files of tensors."""
    return {path.name: path.stat().st_ino for path in folder.glob("*.safetensors")}


def learned(seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=random) for name, size in (("a", 3000), ("b", 2000))}


def test_what_stayed_as_it_was_is_linked_and_every_checkpoint_is_whole_alone(tmp_path: Path) -> None:
    start, moments = learned(0), [{"m": learned(10 + seed), "steps": torch.tensor(float(seed))} for seed in range(6)]
    states = [
        {"now": {"w": start}, "promoted": {"w": start}, "base": start},
        {"now": {"w": learned(1), "o": moments[1]}, "promoted": {"w": start}, "base": start},
        {"now": {"w": learned(2), "o": moments[2]}, "promoted": {"w": learned(2), "o": moments[2]}, "base": start},
        {"now": {"w": learned(3), "o": moments[3]}, "promoted": {"w": learned(2), "o": moments[2]}, "base": start},
    ]
    written = []
    for number, state in enumerate(states):
        before = {inode for path in tmp_path.iterdir() for inode in files(path).values()}
        save(tmp_path / f"iteration-{number}", state)
        new = [
            path
            for path in (tmp_path / f"iteration-{number}").glob("*.safetensors")
            if path.stat().st_ino not in before
        ]
        written.append(sum(path.stat().st_size for path in new) / (4 * 5000))
    assert [round(size, 1) for size in written] == [1.0, 2.0, 2.0, 2.0], "in units of the weights: never what is there"
    shutil.rmtree(tmp_path / "iteration-0")
    shutil.rmtree(tmp_path / "iteration-2")
    assert same(load(tmp_path / "iteration-3"), states[3]) and same(load(tmp_path / "iteration-1"), states[1])
    loaded = load(tmp_path / "iteration-1")
    loaded["base"]["a"].zero_()
    assert torch.equal(loaded["promoted"]["w"]["a"], start["a"])


def test_a_damaged_neighbour_is_not_linked(tmp_path: Path) -> None:
    """Neither where a weight was altered, nor where something beside the weights was."""
    state = {"w": torch.arange(100.0)}
    save(tmp_path / "one", state)
    path = tensors(tmp_path / "one")
    original = path.read_bytes()
    for position in (20, len(original) - 5):
        flipped = bytearray(original)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        save(tmp_path / "two", state)
        assert same(load(tmp_path / "two"), state)
        assert files(tmp_path / "two").values() != files(tmp_path / "one").values()
    path.write_bytes(original)
    save(tmp_path / "two", state)
    assert list(files(tmp_path / "two").values()) == list(files(tmp_path / "one").values())


def test_where_files_cannot_be_linked_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    for name in ("one", "two"):
        save(tmp_path / name, {"w": torch.arange(100.0)})
    assert files(tmp_path / "one").keys() == files(tmp_path / "two").keys()
    assert same(load(tmp_path / "two"), {"w": torch.arange(100.0)})


def test_equal_sums_are_not_taken_for_equal_tensors(tmp_path: Path) -> None:
    one, other = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([3.0, 4.0, 1.0, 2.0])
    assert checkpoint._sum(one) == checkpoint._sum(other)
    save(tmp_path / "one", {"a": one, "b": other, "c": one.clone()})
    save(tmp_path / "two", {"a": other})
    assert same(load(tmp_path / "one"), {"a": one, "b": other, "c": one}) and same(load(tmp_path / "two"), {"a": other})
