"""Robot data that people bring: LeRobotDatasets, statistics of actions, layouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.robot_worlds import EPISODES, altered, dataset, older, put, shown, told, without, world

from .cases import Gives, GoesOn, Refuses, Required, case

NEEDS = ("pyarrow",)


def data_case(
    name: str, required: Required, *, entry: str = "dataset", kind: str = "robot data"
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    return case(
        name,
        kind=kind,
        modality="vla",
        entry=entry,
        required=required,
        by="user",
        needs=NEEDS,
    )


def read(folder: Path, **how: Any) -> list[int]:
    """Actions of each episode that was read."""
    from autotelic.envs.lerobot_dataset import read_demonstrations

    return [len(episode.actions) for episode in read_demonstrations(folder, **how)]


def brought(folders: Sequence[Path], environments: Sequence[str] = ("plain",), **fields: Any) -> Any:
    """The demonstrations that a run takes from datasets, per environment."""
    from autotelic.envs.pool import Pool
    from autotelic.vla.environments import recorded
    from autotelic.vla.setting import RobotConfig

    names = [world(name) for name in environments]
    config = RobotConfig(tasks=tuple(names), demonstrations_from=tuple(map(str, folders)), **fields)
    with Pool(names, workers=0) as pool:
        return recorded(config, dict.fromkeys(names, 1), pool)


# numbers in rows

BROKEN: dict[str, tuple[str, Any, str]] = {
    "NaN in an action": ("action", [0.1, float("nan")], "episode 1.*row 2.*action"),
    "infinity in an action": ("action", [float("inf"), 0.1], "episode 1.*row 2.*action"),
    "null in an action": ("action", [None, 0.1], "episode 1.*row 2.*action"),
    "NaN in a state": ("observation.state", [0.0, 0.0, float("nan"), 0.0], "episode 1.*row 2.*observation.state"),
    "1e30 in a state": ("observation.state", [0.0, 0.0, 1e30, 0.0], "episode 1.*row 2.*observation.state"),
}
for _what, (_column, _value, _pattern) in BROKEN.items():

    @data_case(f"vla B10: {_what} of a dataset", Refuses(_pattern), kind="numbers")
    def in_a_row(folder: Path, column: str = _column, value: Any = _value) -> object:
        return read(altered(dataset(folder), column, put(8, value)))


@data_case("vla B10: infinity in an action, cut by a scale", Refuses("episode 1.*row 2.*action"), kind="numbers")
def behind_a_scale(folder: Path) -> object:
    from autotelic.envs.action_scale import ActionScale

    broken = altered(dataset(folder), "action", put(8, [float("inf"), 0.1]))
    return read(broken, scale=ActionScale.between([-2, -2], [2, 2]))


@data_case("NaN in rows that no run reads", Gives([5]), kind="numbers")
def in_another_episode(folder: Path) -> object:
    return read(altered(dataset(folder), "action", put(8, [float("nan"), 0.1])), episodes=[0])


# sizes and shapes


@data_case("vla B10: an episode of one row", Gives([5]))
def one_row(folder: Path) -> object:
    return read(dataset(folder, (6, 1)))


@data_case("vla B10: nothing but episodes of one row", Refuses("one row"))
def only_one_row(folder: Path) -> object:
    return read(dataset(folder, (1, 1)))


@data_case("vla B10: a state of 14 numbers for an environment of 4", Refuses("14.*4"))
def wider_state(folder: Path) -> object:
    return brought([dataset(folder, state=14)])


@data_case("vla B10: a state of one number for an environment of 4", Refuses("1 .*4"))
def broadcast_state(folder: Path) -> object:
    return brought([dataset(folder, state=1)])


@data_case("an action of 7 numbers for an environment of 2", Refuses("7.*2"))
def wider_action(folder: Path) -> object:
    return brought([dataset(folder, action=7)])


@data_case("vla B10: two tasks of different observation sizes", Refuses("observation.*7.*|observation.*4.*"))
def two_sizes(folder: Path) -> object:
    from autotelic.vla.environments import make_pool
    from autotelic.vla.setting import RobotConfig

    names = [world("plain"), world("wide")]
    make_pool(RobotConfig(tasks=tuple(names), workers=1), names).close()
    return "joined"


@data_case("vla B10: a normaliser is given another size", Refuses("1 .*4"), entry="policy")
def broadcast_normaliser(folder: Path) -> object:
    import torch

    from autotelic.vla.policy import ActionModel

    ActionModel(4, 2).normalise_by(torch.zeros(5, 1))
    return "broadcast"


SHAPES: dict[str, tuple[Any, Required]] = {
    "a shape as strings": (["4"], Gives([5, 5])),
    "a shape as one number": (4, Gives([5, 5])),
    "a shape in words": (["wide"], Refuses("observation.state.*shape")),
    "no shape": (None, Refuses("observation.state.*shape")),
    "another shape than the rows have": ([9], Refuses("observation.state.*4")),
}
for _what, (_shape, _required) in SHAPES.items():

    @data_case(f"vla B10: {_what} of a feature", _required)
    def of_shape(folder: Path, shape: Any = _shape) -> object:
        made = dataset(folder)
        features = json.loads((made / "meta/info.json").read_text())["features"]
        features["observation.state"]["shape"] = shape
        return read(told(made, features=features))


# what meta says


@data_case("vla B10: a task_index that the tasks lack", Refuses("task_index 7"))
def unknown_task(folder: Path) -> object:
    return read(altered(dataset(folder), "task_index", lambda values: [7] * len(values)))


@data_case("an empty task_index", Refuses("task_index"))
def no_task(folder: Path) -> object:
    return read(altered(dataset(folder), "task_index", lambda values: [None] * len(values)))


@data_case("vla B10: episodes.jsonl is cut off", Refuses("episodes.jsonl.*line 1"))
def cut_off(folder: Path) -> object:
    return read(older(folder, episodes='{"episode_index": 0, "len'))


@data_case("a line of tasks.jsonl that is a list", Refuses("tasks.jsonl.*line 2"))
def list_line(folder: Path) -> object:
    return read(older(folder, tasks='{"task_index": 0, "task": "go"}\n[1]\n'))


@data_case("a line of episodes.jsonl without a length", Refuses("episodes.jsonl.*length"))
def no_length(folder: Path) -> object:
    return read(older(folder, episodes='{"episode_index": 0}\n'))


for _name, _code in {"U+2028": 0x2028, "U+0085": 0x85, "form feed": 0x0C}.items():

    @data_case(f"vla B10: {_name} in a task's sentence", Gives(f"go{chr(_code)}on"))
    def in_a_sentence(folder: Path, sign: str = chr(_code)) -> object:
        from autotelic.envs.lerobot_dataset import read_demonstrations

        line = json.dumps({"task_index": 0, "task": f"go{sign}on"}, ensure_ascii=False) + "\n"
        (episode,) = read_demonstrations(older(folder, tasks=line))
        return episode.instruction


@data_case("a byte order mark before tasks.jsonl", Gives([5]))
def marked(folder: Path) -> object:
    return read(older(folder, tasks='\ufeff{"task_index": 0, "task": "go"}\n'))


INFO: dict[str, tuple[dict[str, Any], str]] = {
    "features that are a list": ({"features": ["action"]}, "features"),
    "a feature without a dtype": ({"features": {"observation.state": {"shape": [4]}}}, "observation.state.*dtype"),
    "no frames per second": ({"fps": 0}, "fps"),
    "frames per second in words": ({"fps": "many"}, "fps"),
    "a data path with a place that nobody fills": ({"data_path": "data/{robot}.parquet"}, "data_path.*robot"),
    "a data path out of the folder": ({"data_path": "../data.parquet"}, "data_path"),
}
for _what, (_changes, _pattern) in INFO.items():

    @data_case(f"meta/info.json has {_what}", Refuses(_pattern))
    def of_info(folder: Path, changes: dict[str, Any] = _changes) -> object:
        return read(told(dataset(folder), **changes))


@data_case("meta/info.json is a list", Refuses("info.json"))
def info_list(folder: Path) -> object:
    made = dataset(folder)
    (made / "meta/info.json").write_text("[]")
    return read(made)


for _column in ("action", "task_index", "episode_index"):

    @data_case(f"a table without the column {_column}", Refuses(_column))
    def lacking(folder: Path, column: str = _column) -> object:
        return read(without(dataset(folder), column))


@data_case("a table of episodes without their lengths", Refuses("length"))
def lengthless(folder: Path) -> object:
    return read(without(dataset(folder), "length", EPISODES))


# pictures


def frames_of(folders: Sequence[Path], **fields: Any) -> Any:
    (several,) = brought(folders, obs_type="pixels", **fields).values()
    return several[0].images["main"]


@data_case("vla B10: only the episodes that are used are decoded", Gives([6, 64, 64, 3]))
def unused(folder: Path) -> object:
    made = dataset(folder, (6, 6), side=64)
    broken = altered(made, "observation.images.main", put(8, {"bytes": b"no picture", "path": "a.png"}))
    return list(frames_of([broken]).shape)


@data_case("a picture that cannot be decoded", Refuses("episode 0.*row 2"))
def undecodable(folder: Path) -> object:
    made = dataset(folder, (6, 6), side=64)
    return len(frames_of([altered(made, "observation.images.main", put(2, {"bytes": b"no", "path": "a.png"}))]))


@data_case("a picture with neither bytes nor a path", Refuses("episode 0.*row 2"))
def nothing_there(folder: Path) -> object:
    made = dataset(folder, (6, 6), side=64)
    return len(frames_of([altered(made, "observation.images.main", put(2, {"bytes": None, "path": None}))]))


@data_case("a picture whose path leads out of the dataset", Refuses("episode 0.*row 2"))
def outside(folder: Path) -> object:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(folder / "mine.png")
    made = dataset(folder, (6, 6), side=64)
    row = {"bytes": None, "path": "../mine.png"}
    return len(frames_of([altered(made, "observation.images.main", put(2, row))]))


@data_case("vla M5: pictures of another size than frame_size", Gives([32, 32, 3]))
def other_size(folder: Path) -> object:
    return list(frames_of([dataset(folder, side=48)], frame_size=32).shape[1:])


# names and units


def renamed(folder: Path, names: dict[str, str], **sizes: int) -> Path:
    """A dataset whose features have other names."""
    import pyarrow.parquet as pq

    made = dataset(folder, **sizes)
    features = json.loads((made / "meta/info.json").read_text())["features"]
    told(made, features={names.get(name, name): feature for name, feature in features.items()})
    path = made / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), path)
    return made


@data_case("vla M5: features called state and actions", Gives([5, 4, 2]), entry="option")
def named_features(folder: Path) -> object:
    made = renamed(folder, {"observation.state": "state", "action": "actions"})
    (several,) = brought([made], state_keys=("state",), action_key="actions").values()
    return [len(several[0].actions), several[0].observations.shape[1], several[0].actions.shape[1]]


@data_case("vla M5: a camera that is called otherwise", Gives([6, 64, 64, 3]), entry="option")
def named_camera(folder: Path) -> object:
    made = renamed(folder, {"observation.images.main": "observation.image"}, side=64)
    return list(frames_of([made], camera_keys=("main=observation.image",)).shape)


@data_case("vla M5: actions in degrees", Gives(1.0), entry="option")
def in_degrees(folder: Path) -> object:
    made = altered(dataset(folder, (40, 40)), "action", lambda rows: [[90 * a for a in row] for row in rows])
    (several,) = brought([made], action_scale="range").values()
    return float(np.round(np.abs(several[0].actions).max(), 1))


@data_case("actions in degrees, and nobody said so", Refuses("--action-scale"), entry="option")
def in_silent_degrees(folder: Path) -> object:
    return brought([altered(dataset(folder), "action", lambda rows: [[90 * a for a in row] for row in rows])])


@data_case("vla B14: the scale of a joint that never moves", Gives([0.0, 30.0]), entry="action scale")
def constant_joint(folder: Path) -> object:
    from autotelic.envs.lerobot_dataset import action_scale

    made = altered(dataset(folder, (40, 40)), "action", lambda rows: [[row[0], 30.0] for row in rows])
    scale = action_scale(made)
    return [scale.normalised([0.0, 30.0])[1], scale.original([0.5, 0.7])[1]]


@data_case("vla B14: a gripper that closes in one row of 200", Gives([1.0, -1.0]), entry="action scale")
def rare_gripper(folder: Path) -> object:
    from autotelic.envs.lerobot_dataset import action_scale

    made = dataset(folder, (100, 100))
    altered(made, "action", lambda rows: [[row[0], float(place == 150)] for place, row in enumerate(rows)])
    scale = action_scale(made)
    return [scale.normalised([0.0, 1.0])[1], scale.normalised([0.0, 0.0])[1]]


STATISTICS: dict[str, tuple[dict[str, Any], Required]] = {
    "a dimension that never moved": ({"q01": [0.0, 2.0], "q99": [1.0, 2.0]}, Gives([1.0, 0.0])),
    "min and max alone": ({"min": [0.0, -2.0], "max": [1.0, 2.0]}, Gives([1.0, 0.0])),
    "a mean and a spread alone": ({"mean": [0.0, 0.0], "std": [1.0, 1.0]}, Refuses("q01")),
    "NaN bounds": ({"q01": [0.0, float("nan")], "q99": [1.0, 1.0]}, Refuses("dimension 1")),
    "bounds of different sizes": ({"q01": [0.0], "q99": [1.0, 1.0]}, Refuses("1 numbers.*2")),
    "upper bounds below the lower ones": ({"q01": [0.0, 1.0], "q99": [1.0, -1.0]}, Refuses("dimension 1")),
    "no bounds": ({}, Refuses("q01")),
}
for _what, (_bounds, _required) in STATISTICS.items():

    @data_case(
        f"vla B14: OpenVLA's statistics with {_what}",
        _required,
        entry="action scale",
    )
    def of_openvla(folder: Path, bounds: dict[str, Any] = _bounds) -> object:
        from autotelic.vla.openvla import statistics_of

        place = [1.0, 2.0] if "q01" in bounds else [1.0, 0.0]
        return statistics_of({"mine": {"action": bounds}}).normalised(place)


@data_case("statistics of a data set without actions", Refuses("mine"), entry="action scale")
def no_actions(folder: Path) -> object:
    from autotelic.vla.openvla import statistics_of

    return statistics_of({"mine": {"proprio": {}}})


# layouts


@data_case("vla B14: a hand of two numbers and a goal of one", Refuses("hand.*goal|goal.*hand"), entry="layout")
def uneven_layout(folder: Path) -> object:
    from autotelic.envs.simulator import spec_of
    from autotelic.vla.environments import hand_centred

    return hand_centred(spec_of(world("uneven")).layout)


@data_case("a relation of a hand of two numbers and a goal of one", Refuses("hand.*goal|goal.*hand"), entry="layout")
def uneven_relation(folder: Path) -> object:
    from autotelic.rewards.progress.features import RelationFeatures

    return RelationFeatures({"hand": slice(0, 2), "goal": slice(2, 3)}, ("hand-goal",)).names


@data_case("vla M7: a layout with hand and goal turns on the hand-centred view", Gives([0, 2, 2]))
def hand_view(folder: Path) -> object:
    from autotelic.envs.pool import Pool
    from autotelic.vla.environments import make_policy
    from autotelic.vla.setting import RobotConfig

    name = world("placed")
    with Pool([name], workers=0) as pool:
        network: Any = make_policy(RobotConfig(tasks=(name,)), name, pool).module
    return [network.origin, network.positions[0], network.axes]


@data_case("newcomer 10: --chunk changes what a run's simulators and policy take", Gives([3, 3]))
def chunk_option(folder: Path) -> object:
    from autotelic.vla.environments import make_policy, make_pool
    from autotelic.vla.setting import RobotConfig

    name = world("plain")
    config = RobotConfig(tasks=(name,), chunk=3, workers=1)
    pool = make_pool(config, [name])
    try:
        return [pool.chunk, make_policy(config, name, pool).chunk]
    finally:
        pool.close()


# critics


@data_case("vla B10: a state of NaN is not the critic's", Refuses("observation"), entry="critic")
def blamed_critic(folder: Path) -> object:
    from autotelic.rewards.progress.critics import CriticTraining, ProgressCritic
    from autotelic.rewards.progress.features import StateFeatures

    broken = shown()
    broken.observations[3, 2] = np.nan
    ProgressCritic("absolute", StateFeatures(), CriticTraining(members=1, steps=2)).fit([broken])
    return "learned"


@data_case("vla B12: end conditions of 768 numbers ask for no pairs", Gives(True), kind="bytes", entry="critic")
def single_numbers_first(folder: Path) -> object:
    return _relations_asked(np.linspace(0, 1, 9)[:, None] * np.ones(768)) < 4 * 768


@data_case("vla B12: end conditions of 768 numbers that never agree", Gives(True), kind="bytes", entry="critic")
def nothing_agrees(folder: Path) -> object:
    random = np.random.default_rng(0)
    return _relations_asked(*(random.normal(size=(9, 768)) for _ in range(2))) < 20 * 768


def _relations_asked(*tracks: Any) -> int:
    """Relations that end conditions look at, counted."""
    from autotelic.rewards.progress.end_conditions import EndConditions
    from autotelic.rewards.progress.features import StateFeatures

    asked = [0]

    class Counted(StateFeatures):
        def relation(self, name: str, now: Any, initial: Any) -> Any:
            asked[0] += 1
            if asked[0] > 40 * 768:
                raise RuntimeError("there are too many relations")
            return super().relation(name, now, initial)

    shown = [SimpleNamespace(observations=t.astype(np.float32), instruction="go", settle=0) for t in tracks]
    EndConditions(Counted()).fit(shown)
    return asked[0]


@data_case("constant demonstrations make a critic that answers", GoesOn(), entry="critic")
def constant_demonstrations(folder: Path) -> object:
    from autotelic.rewards.progress.critics import CriticTraining, ProgressCritic
    from autotelic.rewards.progress.estimates import ask
    from autotelic.rewards.progress.features import StateFeatures

    still = SimpleNamespace(observations=np.ones((5, 3), np.float32), instruction="go", settle=0)
    critic = ProgressCritic("absolute", StateFeatures(), CriticTraining(members=1, steps=2))
    critic.fit([still])
    return ask(critic, np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), ["go", "go"]).tolist()


# the audit


def audited(folder: Path, environment: str) -> object:
    """What an audit by the hand's travel finds on two episodes, of which the one that succeeded went farther."""
    from autotelic.auditing import Chosen, audit_model
    from autotelic.envs.lerobot_dataset import Recording, write_episodes

    name, episodes = world(environment), []
    for seed in range(8):
        path = np.zeros((5, 4), np.float32)
        path[:, 1] = np.arange(5) * (0.3 if seed % 2 else 0.01)
        path[:, 2] = np.arange(5) * (0.01 if seed % 2 else 0.5)  # not the hand's
        won = bool(seed % 2)
        episodes.append(Recording(name, "go", seed, path, np.zeros((4, 2), np.float32), 0, None, won))
    write_episodes(folder / "episodes", episodes, fps=20)
    (found,) = audit_model("travel", folder / "episodes", lambda run: None, Chosen())  # type: ignore[arg-type,return-value]
    return found.auc


@data_case("vla B14: the audit's travel is that of the environment's own hand", Gives(1.0), entry="audit")
def own_hand(folder: Path) -> object:
    return audited(folder, "placed")


@data_case("vla B14: the audit's travel where no hand is known", Refuses("layout"), entry="audit")
def no_hand(folder: Path) -> object:
    return audited(folder, "plain")


@data_case(
    "newcomer: an audit of a run whose policy cannot act again",
    Refuses("no evaluation of .* holds scores.*robots"),
    entry="audit",
)
def nothing_to_audit(folder: Path) -> object:
    from autotelic.auditing import audit_run
    from autotelic.trainers.runs.run_folder import RunFolder

    return audit_run(RunFolder.create(folder / "grpo", recipe="vlm/grpo", config={}, command=""))
