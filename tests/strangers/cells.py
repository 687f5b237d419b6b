"""What the matrix of kinds, modalities and entry points asked for and nobody had stated: one case per door."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autotelic.testing import vlms as tiny
from autotelic.types import Task

from .cases import Gives, GoesOn, Refuses, case
from .data import asked, lines

# --- files of settings, which people mend by hand and which downloads cut off -------------------------------------

DAMAGED = {
    "nothing": b"",
    "a part of itself": b'{"a": 1, "b',
    "a list": b"[1]",
    "nothing that is needed": b'{"a": 1}',
    "brackets inside brackets": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "another encoding": b'{"a": "\xff\xfe"}',
}


CONFIG = '{"recipe": "vla/raft", "config": {}, "command": ""}'


def run_folder(path: Path) -> object:
    from autotelic.trainers.runs.run_folder import RunFolder

    return RunFolder.open(path)


def evaluations(path: Path) -> object:
    from autotelic.trainers.runs.run_folder import RunFolder

    (path.parent / "config.json").write_text(CONFIG)
    return RunFolder.open(path.parent).evaluations()


def records(path: Path) -> object:
    from autotelic.trainers.runs.run_folder import RunFolder

    (path / "config.json").write_text(CONFIG)
    (path / "metrics.jsonl").write_bytes((path / "metrics.jsonl").read_bytes() + b"\n")
    return RunFolder.open(path).metrics()


def adapters(path: Path) -> object:
    from autotelic.trainers.lora import load_lora

    (path / "adapter_model.safetensors").write_bytes(b"")
    return load_lora(torch.nn.Linear(1, 1), path)


def language_model(path: Path) -> object:
    from autotelic.vlm.loading import load

    return load(str(path))


def small_model(path: Path) -> object:
    from autotelic.vlm.setting import LanguageConfig, is_small

    return is_small(LanguageConfig(model=str(path)))


def robot_policy(path: Path) -> object:
    from autotelic.vla.environments import _foreign_policy
    from autotelic.vla.setting import RobotConfig

    return _foreign_policy(RobotConfig(model=str(path)), 4, 5)


def robot_network(path: Path) -> object:
    from autotelic.vla.network import _settings

    return _settings(str(path))


def openvla(path: Path) -> object:
    from autotelic.vla.openvla import _settings

    return _settings(str(path))


def robot_data(path: Path) -> object:
    from autotelic.envs.lerobot_dataset import read_demonstrations

    return read_demonstrations(path.parent)


def pipeline(path: Path) -> object:
    from autotelic.diffusion.pipelines.loading import load

    return load(path)


FILES: list[tuple[str, str, str, Callable[[Path], object]]] = [
    ("core", "resume", "run/config.json", run_folder),
    ("core", "report", "run/evaluations/before.json", evaluations),
    ("core", "report", "run/metrics.jsonl", records),
    ("core", "LoRA", "adapters/adapter_config.json", adapters),
    ("vlm", "model", "model/adapter_config.json", language_model),
    ("vlm", "model", "model/config.json", language_model),
    ("vlm", "model", "model/config.json of the small model", small_model),
    ("vla", "model", "model/config.json", robot_policy),
    ("vla", "model", "model/policy.json", robot_network),
    ("vla", "model", "model/action_policy.json", openvla),
    ("vla", "dataset", "data/meta/info.json", robot_data),
    ("diffusion", "model", "pipeline/model_index.json", pipeline),
]


def damaged(file: str, content: bytes, door: Callable[[Path], object]) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        path = folder / file.partition(" of ")[0]
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return door(path.parent)

    return act


NEEDS_NOTHING = (evaluations, records, small_model, robot_policy, robot_network)
for modality, entry, file, door in FILES:
    for what, content in DAMAGED.items():
        if (what == "nothing that is needed" and door in NEEDS_NOTHING) or (what == "nothing" and door is records):
            continue
        named = re.escape(file.split("/")[-1].partition(" of ")[0])
        case(
            f"settings: {file} is {what}, {modality}",
            kind="data files",
            modality=modality,
            entry=entry,
            required=Refuses(f"{named}|cannot load .*model|holds adapters"),
            by="user",
        )(damaged(file, content, door))


# --- settings of another kind than what is wanted -------------------------------------------------------------------


def saved_robot(folder: Path) -> Callable[[], object]:
    from autotelic.vla.policy import ActionModel, ActionPolicy

    ActionPolicy(ActionModel(4, 2, chunk=2, hidden=8)).save_pretrained(folder)
    return lambda: ActionPolicy.from_pretrained(str(folder))


def saved_adapters(folder: Path) -> Callable[[], object]:
    from autotelic.trainers.lora import add_lora, load_lora, save_lora

    network = torch.nn.Sequential(torch.nn.Linear(4, 4))
    add_lora(network, 2, ["0"])
    save_lora(network, folder)
    return lambda: load_lora(torch.nn.Sequential(torch.nn.Linear(4, 4)), folder)


def saved_actions(folder: Path) -> Callable[[], object]:
    from autotelic.vla.openvla import SETTINGS, _settings

    folder.mkdir()
    (folder / SETTINGS).write_text(json.dumps({"view": None, "scale": [[0.0], [1.0]]}))
    return lambda: _settings(str(folder))


def listed_statistics(folder: Path) -> Callable[[], object]:
    from autotelic.vla.openvla import statistics_of

    folder.mkdir()
    (folder / "statistics.json").write_text('{"bridge": {"action": {"q01": [0], "q99": [1]}}}')
    return lambda: statistics_of(json.loads((folder / "statistics.json").read_text()))


def adapted_model(folder: Path) -> Callable[[], object]:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a"}')
    return lambda: language_model(folder)


ODD: list[tuple[str, str, str, Callable[[Path], Callable[[], object]], dict[str, Any]]] = [
    ("vla", "model", "policy.json", saved_robot, {"likelihood": ["a"], "chunk": "x"}),
    ("vla", "model", "config.json", saved_robot, {"head": True, "origin": "x", "action_size": 7, "hidden": [1]}),
    ("vla", "model", "action_policy.json", saved_actions, {"view": 1, "scale": [1, 2, 3, 4]}),
    ("vla", "model", "statistics.json", listed_statistics, {"bridge": {"action": {"q01": "a", "q99": "b"}}}),
    ("vla", "action scale", "statistics.json", listed_statistics, {"bridge": None}),
    ("core", "LoRA", "adapter_config.json", saved_adapters, {"bias": [], "lora_alpha": "x", "rank_pattern": []}),
    ("vlm", "model", "adapter_config.json", adapted_model, {"base_model_name_or_path": ["a"]}),
]


def odd(file: str, change: dict[str, Any], made: Callable[[Path], Callable[[], object]]) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        read, path = made(folder / "model"), folder / "model" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        return read()

    return act


for modality, entry, file, made, changes in ODD:
    for key, value in changes.items():
        case(
            f"settings: {key} of {file} is {json.dumps(value)}, {modality}",
            kind="robot data" if entry == "action scale" else "data files",
            modality=modality,
            entry=entry,
            required=Refuses("model|statistics|adapter_config"),
            by="user",
        )(odd(file, {key: value}, made))


# --- brackets inside brackets --------------------------------------------------------------------------------------


@case(
    "data: an answer of 900 lists inside each other",
    kind="data files",
    modality="vlm",
    entry="questions",
    required=Refuses("line 1.*brackets"),
    by="user",
)
def nested_answer(folder: Path) -> object:
    answer: list[Any] = []
    for _ in range(900):
        answer = [answer, 1]
    return asked(lines(folder, [{"prompt": "a", "answer": answer}]))


for kind in ("yaml", "json"):

    @case(
        f"config: brackets inside brackets, {kind}",
        kind="data files",
        modality="core",
        entry="option",
        required=Refuses(f"flags.{kind}.*brackets"),
        by="user",
    )
    def deep_config(folder: Path, kind: str = kind) -> object:
        from autotelic.config_files import read_config

        path = folder / f"flags.{kind}"
        path.write_text("a: " * (kind == "yaml") + "[" * 3000)
        return read_config(str(path))


# --- instructions of robots ----------------------------------------------------------------------------------------

HALF = "a \ud83d dog"


def of_instruction(family: str, instruction: str) -> list[int]:
    """The ids that a policy of OpenVLA's kind reads."""
    from autotelic.envs.simulator import View
    from autotelic.vla.chunk_policy import Seen
    from autotelic.vla.openvla import OpenVLAPolicy

    model, processor = tiny.vlm(family)
    policy = OpenVLAPolicy(model, processor, chunk=1, action_size=2, bins=8, view=View(32))
    frames = {"main": torch.zeros(1, 32, 32, 3, dtype=torch.uint8)}
    _, inputs = policy._inputs(Seen([instruction], torch.zeros(1, 0), frames))
    ids: list[int] = inputs["input_ids"][0].tolist()
    return ids


def special(tokenizer: Any) -> set[int]:
    named = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (named | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def more_of(family: str, read: Callable[[str, str], list[int]]) -> int:
    """How many control ids the worst text adds to a plain one."""
    tokenizer = tiny.vlm(family)[1].tokenizer
    control = special(tokenizer)
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    plain = sum(number in control for number in read(family, "red"))
    texts = [text for name in names for text in (name, f"red {name} two", f"{name}{name}")]
    return max(sum(number in control for number in read(family, text)) for text in texts) - plain


def of_judge(family: str, text: str) -> list[int]:
    """The ids that a model reads who judges a text."""
    from PIL import Image

    from autotelic.rewards.models.vlm import VLM

    model, processor = tiny.vlm(family)
    ids: list[int] = VLM(model=model, processor=processor)._inputs([(Image.new("RGB", (32, 32)), text)])["input_ids"]
    return list(ids[0])


for family in ("llava", "qwen2_5_vl", "smolvlm", "qwen3_vl", "idefics3", "internvl"):
    for modality, entry, what, read in (
        ("vla", "prompt", "an instruction", of_instruction),
        ("vlm", "judge", "a judged text", of_judge),
    ):
        case(
            f"text: control tokens spelt out in {what}, {family}",
            kind="text to ids",
            modality=modality,
            entry=entry,
            required=Gives(0),
            by="policy" if modality == "vlm" else "user",
        )(lambda folder, family=family, read=read: more_of(family, read))
        case(
            f"text: half of a character in {what}, {family}",
            kind="text to ids",
            modality=modality,
            entry=entry,
            required=GoesOn(),
            by="policy" if modality == "vlm" else "user",
        )(lambda folder, family=family, read=read: read(family, HALF))


@case(
    "text: a judged answer holds half of a character",
    kind="text to ids",
    modality="vlm",
    entry="judge",
    required=Gives(True),
    by="policy",
)
def judged_half(folder: Path) -> object:
    from PIL import Image

    from autotelic.rewards.models.vlm import VLM

    model, processor = tiny.vlm("llava")
    (share,) = VLM(model=model, processor=processor)([(Image.new("RGB", (32, 32)), HALF)])
    return 0 <= share <= 1


@case(
    "a prompt of OpenVLA's with a field of its own",
    kind="numbers",
    modality="vla",
    entry="option",
    required=Refuses("instruction"),
    by="user",
)
def odd_prompt(folder: Path) -> object:
    from autotelic.envs.simulator import View
    from autotelic.vla.openvla import OpenVLAPolicy

    model, processor = tiny.vlm("llava")
    return OpenVLAPolicy(
        model, processor, chunk=1, action_size=2, bins=8, view=View(32), prompt="{instruction} {place}"
    )


# --- numbers too large for single precision ------------------------------------------------------------------------

for what, value in {"1e39": 1e39, "1e300 in a segment": [1.0, -1e300]}.items():

    @case(
        f"numbers: a reward of {what}",
        kind="numbers",
        modality="core",
        entry="reward",
        required=Refuses("e\\+?39|e\\+?300"),
        by="user",
    )
    def too_large(folder: Path, value: Any = value) -> object:
        from autotelic.returned import scores_of

        return scores_of("mine", [value, 0.0], {"tasks": [Task("a", "p"), Task("b", "p")]})


# --- what is written about a run -------------------------------------------------------------------------------------


def told(folder: Path, name: str, values: tuple[float, float]) -> Any:
    """A run with one metric and one category of this name."""
    from autotelic.trainers.runs.run_folder import RunFolder

    run = RunFolder.create(folder / "run", recipe="vla/raft", config={}, command=f"autotelic run {name}")
    for iteration, value in enumerate(values, 1):
        run.log(iteration, {"reward": value, f"mine/{name}": value})
    for side in ("before", "after"):
        outcome = {"success": [0, 1], "score": list(values), "seeds": [0, 1]}
        figures = {name: {name: values[0]}}
        content = {"iteration": 0, "unit": "success", "outcomes": {name: outcome}, "notes": [name], "figures": figures}
        run.write_json(f"evaluations/{side}", content)
    return run


@case(
    "numbers: metrics as far apart as numbers are",
    kind="numbers",
    modality="core",
    entry="report",
    required=GoesOn(),
    by="policy",
)
def far_apart(folder: Path) -> object:
    from autotelic.trainers.runs.report import write_report

    return write_report(told(folder, "push", (-1.7e308, 1.7e308)))


for what, name in {
    "a bar": "a|b",
    "lines": "a\n\n# b",
    "a fence": "a\n```\n# b",
    "a tag": "<script>a</script>",
}.items():

    @case(
        f"text: {what} in the name of a task, in the model card",
        kind="report",
        modality="core",
        entry="report",
        required=Gives([True, True, True]),
        by="user",
    )
    def card(folder: Path, name: str = name) -> object:
        text = told(folder, name, (0.0, 1.0)).write_card().read_text()
        table = text.partition("## Results")[2].partition("In percent")[0]
        rows = [line.replace(r"\|", "").count("|") for line in table.splitlines() if line.strip()]
        return [len(set(rows)) == 1 and len(rows) == 3, "\n# b" not in table, "<script>" not in table]


@case(
    "report: half of a character in the name of a task",
    kind="report",
    modality="core",
    entry="report",
    required=GoesOn(),
    by="user",
)
def half_a_name(folder: Path) -> object:
    from autotelic.trainers.runs.report import write_report

    run = told(folder, HALF, (0.0, 1.0))
    return write_report(run), run.write_card()


@case(
    "numbers: a reward that does not apply to one attempt of an evaluation, in the audit",
    kind="numbers",
    modality="core",
    entry="audit",
    required=Gives([0.5, 0.0]),
    by="user",
)
def one_unknown_score(folder: Path) -> object:
    from autotelic.trainers.runs.comparison import audit

    first = {"success": [0, 1, 1], "score": [0.0, math.nan, 1.0]}
    second = {"success": [0, 1, 1], "score": [1.0, 1.0, math.nan]}
    (found,) = audit({"outcomes": {"push": first}}, {"outcomes": {"push": second}})
    return [found.reward_change, found.success_change]


# --- groups that lose members ----------------------------------------------------------------------------------------


@case(
    "numbers: one answer of a group of four has a finite log-probability",
    kind="numbers",
    modality="vlm",
    entry="update",
    required=Gives([3.0, 0.0]),
    by="policy",
)
def last_of_a_group(folder: Path) -> object:
    from autotelic.trainers.advantages import grpo
    from autotelic.trainers.learner import Optimisation, PolicyLearner
    from autotelic.trainers.objectives import PPOClip
    from autotelic.vlm.policy import TokenPolicy

    policy = TokenPolicy.of(*tiny.text(), horizon=4)
    learner = PolicyLearner(policy, PPOClip(), Optimisation(), advantage=grpo())
    rollouts = policy.act([Task("a", "what is one ?")], 4)
    for number, rollout in enumerate(rollouts):
        rollout.scores["total"] = float(number)
        assert rollout.log_probs is not None
        rollout.log_probs[0] = math.nan if number else -1.0
    metrics = learner.update(rollouts)
    return [metrics["rollouts/not_finite"], metrics["rollouts"]]


# --- servers that tell nonsense --------------------------------------------------------------------------------------


def served(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    """Whether an answer with such a change ends in one line of the server's or in rollouts with finite numbers."""

    def act(folder: Path) -> object:
        from autotelic.vlm.policy import TokenPolicy
        from autotelic.vlm.server import ServerActor, ServerError, _checked

        policy = TokenPolicy.of(*tiny.text(), horizon=4)
        choice = {"message": {"content": "red"}, "finish_reason": "stop", "token_ids": [5, 1]}
        choice["logprobs"] = {"content": [{"token": "red", "logprob": -1.0}, {"token": "", "logprob": -1.0}]}
        answer: dict[str, Any] = {"choices": [choice]}
        change(answer)
        actor = ServerActor(policy, "http://127.0.0.1:9/v1", "tiny", attempts=1, wait=0.0)
        actor._once = lambda body: _checked(json.dumps(answer).encode(), 1)  # type: ignore[method-assign]
        try:
            (rollout,) = actor.act([Task("q", "red ?")], 1)
        except ServerError as error:
            return "\n" not in str(error)
        assert rollout.log_probs is not None
        return all(map(math.isfinite, rollout.log_probs.tolist()))

    return act


def of_choice(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda answer: answer["choices"][0].update(fields)


NONSENSE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ids that are a text": of_choice(token_ids="ab"),
    "ids that are a number": of_choice(token_ids=7),
    "ids that are null": of_choice(token_ids=[None, None]),
    "ids of 300 digits": of_choice(token_ids=[10**300, 1]),
    "ids below zero": of_choice(token_ids=[-1, -2]),
    "an infinite id": of_choice(token_ids=[math.inf, 1]),
    "a question's ids that are a number": lambda answer: answer.update(prompt_token_ids=7),
    "minus infinity for log-probabilities": of_choice(
        logprobs={"content": [{"token": "red", "logprob": -math.inf}, {"token": "", "logprob": -1.0}]}
    ),
    "a log-probability of 400 digits": of_choice(
        logprobs={"content": [{"token": "red", "logprob": -(10**400)}, {"token": "", "logprob": -1.0}]}
    ),
    "tokens that are named by words": lambda answer: answer["choices"].__setitem__(
        0,
        {
            "message": {"content": "red"},
            "logprobs": {"content": [{"token": "token_id:red", "logprob": -1.0}]},
        },
    ),
    "a choice that is a number": lambda answer: answer.update(choices=[3]),
    "a text that is a list": of_choice(message={"content": ["red"]}),
}
for what, change in NONSENSE.items():
    case(
        f"server: {what}",
        kind="drift",
        modality="vlm",
        entry="server",
        required=Gives(True),
        by="machine",
    )(served(change))
