"""States of Python objects, put back into the very same objects."""

from __future__ import annotations

import array
import functools
import itertools
import random
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import datetime
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from autotelic.envs.snapshots import Uncopyable, take


class Box:
    """Anything."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


class Slots:
    __slots__ = ("a", "b")


class Both(Slots):
    """Slots and attributes."""


def test_containers_keep_their_identity_and_get_their_content_back() -> None:
    parts: dict[str, Any] = {
        "list": [1, [2, 3]],
        "dict": {"a": {"b": 1}},
        "ordered": OrderedDict(x=1, y=2),
        "default": defaultdict(list, k=[1]),
        "counter": Counter("aab"),
        "set": {1, 2},
        "deque": deque([1, 2], maxlen=2),
        "bytes": bytearray(b"ab"),
        "array": array.array("d", [1.0, 2.0]),
        "numbers": np.arange(3.0),
        "scalar": np.array(5.0),
        "objects": np.array([[1], None], dtype=object),
        "when": datetime(2020, 1, 1),
        "path": Path("a/b"),
        "tuple": (1, [2]),
    }
    box = Box(**parts)
    before = {name: (id(value), repr(value)) for name, value in vars(box).items()}
    snapshot = take([box])
    box.list[1].append(4)
    box.list.append(5)
    box.dict["a"]["b"] = 2
    box.dict["new"] = 1
    del box.ordered["x"]
    box.ordered["x"] = 9
    box.default["other"].append(1)
    box.counter["a"] += 5
    box.set.add(3)
    box.deque.append(7)
    box.bytes += b"c"
    box.array[0] = 7
    box.array.append(1.0)
    box.numbers *= 2
    box.scalar[...] = 6
    box.objects[0].append(8)
    box.objects[1] = "x"
    box.tuple[1].clear()
    box.list = "another"
    box.late = True
    snapshot.put_back()
    assert {name: (id(value), repr(value)) for name, value in vars(box).items()} == before
    assert list(box.ordered) == ["x", "y"] and box.deque.maxlen == 2


def test_a_snapshot_can_be_put_back_twice_and_out_of_order() -> None:
    box = Box(numbers=np.zeros(2), inner=Box(count=0))
    snapshots = []
    for count in range(3):
        box.numbers += 1
        box.inner.count = count
        snapshots.append(take([box], snapshots[-1] if snapshots else None))
    for index in (0, 2, 1, 1):
        snapshots[index].put_back()
        assert box.numbers.tolist() == [index + 1] * 2 and box.inner.count == index
        box.numbers[:] = -1
        box.inner = None


def test_what_refers_to_an_object_goes_on_referring_to_it() -> None:
    class Owner:
        def __init__(self) -> None:
            self.count, self.child = 0, Box(owner=self)
            self.method, self.part = self.grow, functools.partial(Owner.grow, self)
            self.arena = np.zeros(4)
            self.window = self.arena[1:3]

        def grow(self) -> int:
            self.count += 1
            return self.count

    owner = Owner()
    snapshot = take([owner])
    assert owner.method() == owner.part() - 1 == 1
    owner.window += 3
    snapshot.put_back()
    assert owner.child.owner is owner and owner.window.base is owner.arena and not owner.arena.any()
    assert [owner.method(), owner.count, owner.part(), owner.count] == [1, 1, 2, 2]


def test_slots_closures_and_generators_of_numbers() -> None:
    slotted, both = Slots(), Both()
    slotted.a, both.a, both.c = [1], 2, 3  # type: ignore[attr-defined]
    count = 0

    def wind() -> int:
        nonlocal count
        count += 1
        return count

    draws = Box(new=np.random.default_rng(0), old=np.random.RandomState(1), python=random.Random(2))
    ticks = Box(ticks=itertools.count(5), cycle=itertools.cycle("abc"))
    weights = torch.zeros(2)

    def drawn() -> list[Any]:
        return [draws.new.random(), draws.old.rand(), draws.python.random(), next(ticks.ticks), next(ticks.cycle)]

    snapshot = take([slotted, both, wind, draws, ticks, Box(weights=weights)])
    first = [*drawn(), *drawn(), wind(), wind()]
    slotted.a.append(2)
    slotted.b = 1
    del both.a
    both.b = both.d = 4  # type: ignore[attr-defined]
    weights += 1
    for _ in range(2):
        snapshot.put_back()
        assert slotted.a == [1] and not hasattr(slotted, "b")
        assert both.a == 2 and vars(both) == {"c": 3} and not hasattr(both, "b")
        assert weights.tolist() == [0, 0]
        assert [*drawn(), *drawn(), wind(), wind()] == first


def test_random_graphs_of_objects_come_back_whole() -> None:
    for seed in range(30):
        draw = random.Random(seed)
        nodes: list[Any] = [Box() for _ in range(6)]
        nodes += [[] for _ in range(4)]
        nodes += [{} for _ in range(4)]
        nodes += [np.zeros(draw.randint(1, 400)) for _ in range(4)]
        _scramble(nodes, draw)
        before, snapshot = _described(nodes), take(nodes)
        for _ in range(3):
            _scramble(nodes, draw)
            assert _described(nodes) != before
            snapshot.put_back()
            assert _described(nodes) == before


def _scramble(nodes: list[Any], draw: random.Random) -> None:
    """Write into every node; nodes refer to each other as it comes."""
    for node in nodes:
        value = draw.choice([draw.random(), draw.choice(nodes), (draw.choice(nodes), draw.random())])
        if isinstance(node, np.ndarray):
            node[draw.randrange(len(node))] = draw.random()
        elif isinstance(node, list):
            node.insert(draw.randint(0, len(node)), value)
        elif isinstance(node, dict):
            node[draw.random()] = value
        else:
            setattr(node, draw.choice("abcdef"), value)


def _described(nodes: list[Any]) -> list[Any]:
    """Every node's content, with other nodes by their identity."""

    def value_of(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(value_of, value))
        return value if isinstance(value, (float, int)) else id(value)

    contents: list[Any] = []
    for node in nodes:
        if isinstance(node, np.ndarray):
            contents.append(node.tobytes())
        elif isinstance(node, list):
            contents.append([value_of(each) for each in node])
        else:
            held = node if isinstance(node, dict) else vars(node)
            contents.append([(name, value_of(each)) for name, each in held.items()])
    return contents


@pytest.mark.parametrize(
    ("value", "kind"), [((x for x in ()), "generator"), (sys._getframe(), "frame"), (memoryview(b"a"), "memoryview")]
)
def test_what_cannot_be_looked_into_or_copied_is_named_with_its_place(value: Any, kind: str) -> None:
    with pytest.raises(Uncopyable, match=rf"\.parts\.a\[1\]\.handle is a .*{kind}"):
        take([Box(parts={"a": [0, Box(handle=value)]})])


def test_renderers_functions_modules_and_classes_are_no_state() -> None:
    class SomeRenderer:
        pass

    renderer = SomeRenderer()
    box = Box(renderer=renderer, viewer=Box(), module=np, function=take, kind=Box, lock=threading.RLock())
    snapshot = take([box])
    renderer.window = (x for x in ())  # type: ignore[attr-defined]
    snapshot.put_back()
    assert hasattr(renderer, "window") and box.renderer is renderer
    take([box])


def test_large_arrays_that_did_not_change_are_kept_once() -> None:
    box = Box(map=np.zeros(100_000), place=np.zeros(2))
    first = take([box])
    box.place += 1
    second = take([box], first)
    assert first.nbytes > 800_000 > 1000 > second.nbytes
    box.map[7] = np.nan
    third = take([box], second)
    assert third.nbytes > 800_000
    second.put_back()
    assert box.map[7] == 0 and box.place.tolist() == [1, 1]
    third.put_back()
    assert np.isnan(box.map[7])


class Kept(gymnasium.Env[Any, Any]):
    counts: list[int] = []  # noqa: RUF012
    total = 0
    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(1000)})


def test_an_environments_class_and_spaces_are_part_of_its_state() -> None:
    env = Kept()
    env.action_space.seed(0)
    snapshot = take([env])
    drawn = [env.action_space.sample()["a"] for _ in range(3)]
    Kept.counts.append(1)
    Kept.total = 5
    Kept.late = 1  # type: ignore[attr-defined]
    snapshot.put_back()
    assert Kept.counts == [] and Kept.total == 0 and not hasattr(Kept, "late")
    assert [env.action_space.sample()["a"] for _ in range(3)] == drawn


XML = """<mujoco><option gravity="0 0 -9"/><worldbody><geom name="floor" type="plane" size="5 5 .1"/>
<body name="ball" pos="0 0 .3"><freejoint/><geom size=".1"/></body></worldbody></mujoco>"""


def test_mujocos_model_and_data_come_back_to_the_last_bit() -> None:
    from autotelic.envs.physics import mujoco

    model = mujoco.MjModel.from_xml_string(XML)
    box = Box(model=model, data=mujoco.MjData(model))
    for _ in range(150):
        mujoco.mj_step(model, box.data)
    window = box.data.qpos
    box.data.qvel[:] = 0.3
    model.geom_friction[0, 0] = 0.7
    model.opt.gravity[2] = -5
    mujoco.mj_step(model, box.data)
    assert box.data.ncon == 1
    snapshot = take([box])
    once = take([box], snapshot)
    assert once.nbytes < 20_000

    def onward() -> list[bytes]:
        found = [box.data.contact.geom.tobytes(), box.data.efc_force.tobytes(), box.data.xpos.tobytes()]
        for _ in range(40):
            mujoco.mj_step(model, box.data)
        return [*found, window.tobytes(), box.data.qacc_warmstart.tobytes(), box.data.time]

    first = onward()
    for each in (snapshot, once, snapshot):
        model.geom_friction[0, 0] = 0.1
        model.opt.gravity[2] = -1
        model.opt.timestep = 0.01
        box.data.qpos[2] = 3
        each.put_back()
        assert model.opt.timestep == 0.002 and model.opt.gravity[2] == -5 and model.geom_friction[0, 0] == 0.7
        assert onward() == first and box.data.qpos.tobytes() == window.tobytes()


def test_every_option_statistic_and_array_of_a_model_is_part_of_the_state() -> None:
    from autotelic.envs.physics import mujoco

    model = mujoco.MjModel.from_xml_string(XML)
    box = Box(model=model, data=mujoco.MjData(model))
    snapshot, tried = take([box]), 0
    for holder in (model.opt, model.stat, model):
        for name in dir(holder):
            value = getattr(holder, name)
            if name.startswith("_") or not isinstance(value, int | float | np.ndarray):
                continue
            before = value.copy() if isinstance(value, np.ndarray) else value
            try:
                if not isinstance(value, np.ndarray):
                    setattr(holder, name, value + 1)
                elif value.size and value.flags.writeable and value.dtype.kind in "fiu":
                    value[...] = value + 1
                else:
                    continue
            except (AttributeError, TypeError):  # sizes cannot be set
                continue
            changed = take([box], snapshot)
            snapshot.put_back()
            assert np.array_equal(getattr(holder, name), before), name
            changed.put_back()
            assert not np.array_equal(getattr(holder, name), before), name
            snapshot.put_back()
            tried += 1
    assert tried > 100


def test_a_models_large_arrays_are_looked_at_where_an_episode_begins() -> None:
    from autotelic.envs.physics import mujoco

    rough = XML.replace(
        "<worldbody>", '<asset><hfield name="hills" nrow="200" ncol="200" size="1 1 1 1"/></asset><worldbody>'
    )
    model = mujoco.MjModel.from_xml_string(rough)
    box = Box(model=model)
    flat = take([box])
    model.hfield_data[:] = 0.5
    hills = take([box], flat)
    assert hills.nbytes > model.hfield_data.nbytes > flat.nbytes
    assert take([box], hills).nbytes < 1000, "a second state shares what did not change"
    flat.put_back()
    assert not model.hfield_data.any()
    hills.put_back()
    assert (model.hfield_data == 0.5).all()
    model.hfield_data[:] = 0.25
    take([box], hills, thorough=False).put_back()
    assert (model.hfield_data == 0.25).all(), "between two beginnings they count as unchanged"
    flat.put_back()
    assert not model.hfield_data.any()


def test_an_environment_with_numbers_that_are_not_equal_to_themselves_takes_little() -> None:
    from autotelic.envs.physics import mujoco

    model = mujoco.MjModel.from_xml_string(XML)
    model.body_pos[:] = np.nan
    first = take([Box(model=model)])
    assert take([Box(model=model)], first).nbytes < 1000
