"""The matrix of strange input: for every kind, modality and entry point a case, a test, or why it cannot occur.

Cases stand in tests/strangers, reasons in tests/untrusted_cells.py, and properties, drawn at random by a fixed seed,
below and in the files that ``PROPERTIES`` names.
"""

from __future__ import annotations

import ast
import json
import math
import random
import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autotelic.config_files import read_config
from autotelic.envs.pool import Episode
from autotelic.errors import RewardError, UsageError, unknown
from autotelic.images import as_pil
from autotelic.json_files import read_object
from autotelic.recipes import all_recipes
from autotelic.returned import LARGEST, scores_of
from autotelic.sandbox import Limits, Result, run_code
from autotelic.testing import vlms as tiny
from autotelic.trainers.advantages import dr_grpo, grpo, rloo
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives import PPOClip
from autotelic.trainers.runs.report import write_report
from autotelic.trainers.scoring import score
from autotelic.trainers.weights import checksum, is_finite
from autotelic.types import Task
from autotelic.untrusted import by_bytes
from autotelic.vlm.conversation import Turn
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.server import ServerActor, ServerError, _checked
from autotelic.vlm.tools import ToolBox

from .small_drawing import shapes_policy
from .strangers import toy_envs
from .strangers.cases import ENTRY_POINTS, KINDS, MODALITIES, all_cases
from .strangers.cells import ODD, adapted_model, of_instruction, of_judge, special, told
from .strangers.drawing import KNOWN, scheduler_of
from .strangers.env_doors import played, spec
from .strangers.speech import TOOLS
from .test_robot_edges import acted
from .test_robot_edges import policy as robot
from .untrusted_cells import CELLS, NOWHERE, PROPERTIES, Cell

ROOT = Path(__file__).parent.parent
STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 7, 10**400, -(10**30), 0.5, math.nan, math.inf, -math.inf, 1e39, -1e300),
    *("", "nan", "\ud83d", "\x00", "7" * 5000, b"7", [], [1], {}, {"a": 1}, (1, 2), {1}, 1j, object),
    *(np.float32(2), np.array([1.0]), np.zeros((2, 2)), torch.tensor(3.0), torch.tensor([math.nan])),
)

# --- the matrix ------------------------------------------------------------------------------------------------------


@cache
def stated() -> frozenset[Cell]:
    return frozenset((case.kind, case.modality, case.entry_point) for case in all_cases())


def reasons(cell: Cell) -> list[int]:
    """Which of the reasons say that nothing of a kind can enter a modality there."""
    return [
        number
        for number, (kinds, modalities, entries, _) in enumerate(NOWHERE)
        if cell[0] in kinds and cell[1] in modalities and cell[2] in entries
    ]


WHOLE = [(kind, modality, entry) for kind in KINDS for modality in MODALITIES for entry in ENTRY_POINTS]


def test_every_cell_has_a_case_a_test_or_a_reason_and_not_two_of_them() -> None:
    bare = [cell for cell in WHOLE if cell not in stated() and cell not in CELLS and not reasons(cell)]
    assert bare == [], f"{len(bare)} cells that nobody thought of"
    assert [cell for cell in WHOLE if reasons(cell) and (cell in stated() or cell in CELLS)] == [], (
        "reasons proved wrong"
    )
    assert [cell for cell in CELLS if cell in stated()] == [], "cells that have cases need no other test"
    assert set(CELLS) <= set(WHOLE)


def test_no_reason_is_idle() -> None:
    used = Counter(number for cell in WHOLE for number in reasons(cell))
    assert [NOWHERE[number][3] for number in range(len(NOWHERE)) if not used[number]] == []
    for kinds, modalities, entries, why in NOWHERE:
        assert kinds <= set(KINDS) and modalities <= set(MODALITIES) and entries <= set(ENTRY_POINTS), why


def source_of(test: str) -> str:
    file, _, name = test.partition("::")
    text = (ROOT / file).read_text()
    found = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert found, f"there is no {test}"
    return ast.get_source_segment(text, found[0]) or ""


def test_tests_that_cells_name_are_there_and_those_of_kinds_draw_by_a_seed() -> None:
    for test in set(CELLS.values()):
        source_of(test)
    assert set(PROPERTIES) == set(KINDS)
    for kind, test in PROPERTIES.items():
        assert re.search(r"Random\(|default_rng\(|seed", source_of(test)), f"{kind}: {test} draws nothing"


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_what_a_reward_returns_is_refused_or_finite_in_single_precision() -> None:
    draw, ends = random.Random(0), Counter[str]()
    tasks = [Task(str(number), "p") for number in range(3)]
    for _ in range(600):
        values = [draw.choice(STRANGE) if draw.random() < 0.3 else draw.random() for _ in tasks]
        try:
            found = scores_of("mine", draw.choice((list, tuple))(values), {"tasks": tasks})
        except RewardError as error:
            assert "mine" in str(error) and "\n" not in str(error)
            ends["refused"] += 1
            continue
        for value in (value for scores in found.values() for value in scores if value is not None):
            parts = value if isinstance(value, list) else [value]
            assert all(math.isfinite(part) and abs(part) <= LARGEST for part in map(float, parts))
        ends["scores"] += 1
    assert min(ends["refused"], ends["scores"]) > 100


def speaker() -> TokenPolicy:
    return TokenPolicy.of(*tiny.text(), horizon=4)


def test_no_number_in_rollouts_makes_weights_that_are_not_finite() -> None:
    draw, policy, tasks = random.Random(1), speaker(), [Task("a", "what is one ?"), Task("b", "how many cat ?")]
    learner = PolicyLearner(policy, PPOClip(), Optimisation(lr=1e-2), advantage=grpo())
    moved = 0
    for round_ in range(25):
        rollouts = policy.act(tasks, 4, key=(round_,))
        for rollout in rollouts:
            rollout.scores["total"] = draw.choice((None, math.nan, 0.0, 1.0, 1.0, 1e30, -LARGEST, LARGEST))
            assert rollout.log_probs is not None
            if draw.random() < 0.2:
                rollout.log_probs[draw.randrange(len(rollout.log_probs))] = draw.choice((math.nan, math.inf, -math.inf))
        before = checksum(policy.state_dict())
        learner.update(rollouts)
        assert is_finite(policy.state_dict()), round_
        moved += before != checksum(policy.state_dict())
    assert moved > 5


def test_pictures_are_numbers_between_0_and_1_or_no_pictures() -> None:
    draw, opened = np.random.default_rng(2), 0
    for _ in range(200):
        array = draw.random((4, 5, 3)).astype(draw.choice(["f2", "f4", "f8"]))
        if draw.random() < 0.6:
            array.flat[draw.integers(array.size)] = draw.choice([np.nan, np.inf, -np.inf, -0.5, 1.5, 6e4])
        whole = bool(np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1)
        if whole:
            np.testing.assert_allclose(np.asarray(as_pil(array)), array.astype(float) * 255, atol=0.51)
            opened += 1
        else:
            with pytest.raises(UsageError, match="the image"):
                as_pil(array)
    assert 50 < opened < 150


def test_one_number_that_is_not_finite_is_found_in_any_state() -> None:
    draw, state = random.Random(14), speaker().state_dict()
    nested: dict[str, Any] = {"now": {"policy": state, "optimizer": {"steps": [1, {"mean": torch.zeros(3)}]}}}
    assert is_finite(nested)
    for _ in range(60):
        weights = draw.choice([*state.values(), nested["now"]["optimizer"]["steps"][1]["mean"]])
        place = draw.randrange(weights.numel())
        kept = weights.view(-1)[place].item()
        weights.view(-1)[place] = draw.choice((math.nan, math.inf, -math.inf))
        assert not is_finite(nested)
        weights.view(-1)[place] = kept
    assert is_finite(nested)


def spoilt(module: torch.nn.Module, draw: random.Random) -> None:
    """Every tensor of a network gets one number that is none."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.view(-1)[draw.randrange(weight.numel())] = draw.choice((math.nan, math.inf))


@pytest.mark.parametrize("modality", ["vlm", "vla", "diffusion"])
def test_a_policy_of_weights_that_are_not_finite_acts_for_nobody(modality: str) -> None:
    draw = random.Random(modality)
    if modality == "vlm":
        speaking = speaker()
        spoilt(speaking, draw)
        with pytest.raises(UsageError, match="not finite") as caught:
            speaking.act([Task("a", "what is one ?")], 2)
        assert "\n" not in str(caught.value)
        return
    if modality == "vla":
        moving = robot()
        spoilt(moving, draw)
        for rollout in acted(moving, "plain", 8):
            assert rollout.output.fault is not None and not rollout.mask.any()
        return
    drawing = shapes_policy()
    spoilt(drawing.adapter.denoiser, draw)
    rollouts = drawing.act([Task("a", "red circle"), Task("b", "blue square")], 2)
    score(rollouts, lambda images, **columns: [1.0] * len(images))
    for rollout in rollouts:
        assert not rollout.mask.any() and "not finite" in rollout.info["fault"] and rollout.scores["total"] is None


def test_outcomes_that_are_no_numbers_are_left_out_and_counted(tmp_path: Path) -> None:
    draw = random.Random(15)
    for number in range(12):
        run = told(tmp_path / str(number), "push", (0.0, 1.0))
        for side in ("before", "after"):
            success = [draw.choice((0, 1, 1.0, None, math.nan, math.inf, LARGEST, -LARGEST)) for _ in range(9)]
            values = {"success": success, "score": success[::-1], "seeds": list(range(9))}
            figures = {"push": {"kl": draw.choice((math.nan, math.inf, LARGEST, 0.5))}}
            run.write_json(f"evaluations/{side}", {"iteration": 0, "outcomes": {"push": values}, "figures": figures})
        lost = sum(not isinstance(value, int | float) or not math.isfinite(value) for value in success)
        page = re.sub(r"<style.*?</style>|<[^>]*>", " ", write_report(run).read_text(), flags=re.S)
        assert f"{lost} of 9 attempts have no known outcome" in page or not lost
        assert not re.search(r"\bnan\b|\binf\b", page + run.write_card().read_text())


# --- errors of the policy --------------------------------------------------------------------------------------------

PIECES = (
    *('{"name": ', '"divide"', '"look_up"', '"python"', '"crop"', ', "arguments": ', "{", "}", "[", "]", '"a"', ": "),
    *("0", "-1", "1e999", "NaN", "7" * 5000, '"\\ud83d"', '"\x00"', "null", "true", ",", '"code"', '"print(1)"'),
    *('"box"', "[0, 0, 1, 1]", "</tool_call>", "<tool_call>", "[" * 2000, "\\", "é", "\u2028"),
)


def test_whatever_a_policy_writes_as_a_call_it_is_told_something_that_it_can_read() -> None:
    draw, box, renderer = random.Random(3), ToolBox(TOOLS), speaker().renderer
    tasks = (Task("q", "what ?"), Task("q", "what ?", (np.zeros((8, 8, 3), np.uint8),)))
    for _ in range(300):
        inside = "".join(draw.choice(PIECES) for _ in range(draw.randrange(12)))
        reply = box(draw.choice(tasks), [Turn(f"I call. <tool_call>{inside}</tool_call>")])
        assert isinstance(reply.text, str)
        renderer.reply(reply.text)


def test_whatever_a_tool_returns_the_policy_can_read() -> None:
    renderer = speaker().renderer
    for number, value in enumerate(STRANGE):
        box = ToolBox({"mine": lambda images, value=value: value})
        reply = box(Task("q", "what ?"), [Turn('<tool_call>{"name": "mine", "arguments": {}}</tool_call>')])
        assert isinstance(reply.text, str), number
        renderer.reply(reply.text)


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_instructions_and_judged_texts_spell_no_control_token(family: str) -> None:
    draw, tokenizer = random.Random(family), tiny.vlm(family)[1].tokenizer
    control = special(tokenizer)
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for read in (of_instruction, of_judge):
        plain = Counter(number for number in map(int, read(family, "red")) if number in control)
        for _ in range(8):
            cut = draw.choice(names)
            pieces = (*names, cut[:2], cut[2:], cut[:3] + draw.choice(names) + cut[3:], " ", "red", "\ud83d", "{", "}")
            text = "".join(draw.choice(pieces) for _ in range(draw.randrange(1, 7)))
            assert Counter(n for n in map(int, read(family, text)) if n in control) == plain, (read, text)


NAMES = (
    *("<script>", "</script>", "<img src=x onerror=a()>", '"', "'", "&", "</svg>", "</style>", "{{ 7*7 }}", "{% x %}"),
    *("|", "`", "```", "\n", "\r", "\u2028", "\x1b[31m", "\x00", "# b", "a", "push", "-->", "]]>", "\ud83d", "é" * 400),
)


class Tags(HTMLParser):
    """Counts elements, and attributes that run something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        self.seen.update(name for name, _ in attrs if name.startswith("on"))


def test_names_of_tasks_and_metrics_are_words_in_report_and_card(tmp_path: Path) -> None:
    draw = random.Random(4)
    plain = told(tmp_path / "plain", "push", (0.0, 1.0))
    wanted, rows = Tags(write_report(plain).read_text()).seen, plain.write_card().read_text().count("\n|")
    for number in range(25):
        name = "".join(draw.choice(NAMES) for _ in range(draw.randrange(1, 8))) + "."
        run = told(tmp_path / str(number), name, (0.0, 1.0))
        found = Tags(write_report(run).read_text()).seen
        assert {tag for tag in found if found[tag] != wanted[tag]} <= {"text"}, name
        card = run.write_card().read_text()
        assert card.count("\n|") == rows and "<script>" not in card.partition("## Command")[0], name


# --- doors -----------------------------------------------------------------------------------------------------------


def test_one_picture_is_the_same_through_every_door(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    for number in range(20):
        array = draw.integers(0, 256, (*draw.integers(4, 9, 2), 3), dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(array).save(path)
        content = path.read_bytes()
        doors = (path, str(path), content, {"bytes": content, "path": None}, Image.open(path), array, array / 255)
        for door in (*doors, torch.from_numpy(array), torch.from_numpy(array).permute(2, 0, 1), array * np.uint16(257)):
            np.testing.assert_array_equal(np.asarray(as_pil(door)), array)


def test_scores_are_the_same_in_every_container() -> None:
    draw, tasks = np.random.default_rng(6), [Task(str(number), "p") for number in range(5)]
    for _ in range(50):
        values = [float(np.float32(value)) for value in draw.normal(size=5)]
        array = np.array(values, np.float32)
        containers = (
            tuple(values),
            iter(values),
            array,
            array[:, None],
            torch.tensor(values),
            torch.tensor(array)[:, None],
        )
        for container in (*containers, {"mine": values}, list(array), list(torch.tensor(values)), (values, {})):
            assert scores_of("mine", container, {"tasks": tasks})["total"] == values


# --- programs, sizes, files ------------------------------------------------------------------------------------------


def test_any_bytes_as_a_program_end_in_a_result() -> None:
    draw = random.Random(7)
    pieces = (
        "print(",
        "1",
        ")",
        "\n",
        "import os",
        "while True: pass",
        "raise ",
        "x" * 3000,
        "\x00",
        "\ud83d",
        "(" * 300,
    )
    for _ in range(6):
        code = "".join(draw.choice(pieces) for _ in range(draw.randrange(1, 8)))
        result = run_code(code, tests=["assert True"], limits=Limits(seconds=2.0))
        assert isinstance(result, Result) and (result.ok or result.error) and "\n" not in result.error


def test_a_text_within_so_many_tokens_has_no_more_bytes() -> None:
    draw = random.Random(8)
    for _ in range(300):
        text = "".join(draw.choice("aé\u2028😀\ud83d\x00 ") for _ in range(draw.randrange(60)))
        most = draw.randrange(1, 40)
        short = by_bytes(text, most)
        head, more = re.match(r"(.*?)(?:\n\.\.\. \((\d+) more characters\))?\Z", short, re.S).groups()  # type: ignore[union-attr]
        assert len(head.encode()) <= most and (more is None or int(more) > 0)


def test_settings_that_were_cut_off_or_altered_are_an_object_or_one_line(tmp_path: Path) -> None:
    draw, path, ends = random.Random(9), tmp_path / "config.json", Counter[str]()
    whole = json.dumps({"recipe": "vla/raft", "config": {"a": [1, 2.5, None, "é"]}, "command": "x"}).encode()
    for _ in range(400):
        content = bytearray(whole[: draw.randrange(len(whole) + 1)] if draw.random() < 0.5 else whole)
        for _ in range(draw.randrange(3) if content else 0):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            assert isinstance(read_object(path), dict)
            ends["read"] += 1
        except UsageError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            ends["refused"] += 1
    assert min(ends.values()) > 50


@pytest.mark.parametrize("number", [n for n, row in enumerate(ODD) if row[3] is not adapted_model])  # asks a hub
def test_settings_that_say_anything_are_taken_or_end_in_one_line(number: int, tmp_path: Path) -> None:
    _, _, file, made, _ = ODD[number]
    draw, read, path, ends = random.Random(number), made(tmp_path / "model"), tmp_path / "model" / file, Counter[str]()
    strange = [value for value in STRANGE if isinstance(value, str | int | float | list | dict | None)]
    whole = path.read_text()
    for _ in range(60):
        settings = json.loads(whole)
        container, key = draw.choice(places(settings))
        container[key] = draw.choice(strange)
        path.write_text(json.dumps(settings))
        try:
            read()
            ends["taken"] += 1
        except UsageError as error:
            assert "\n" not in str(error)
            ends["refused"] += 1
    assert ends["refused"]


def test_config_files_that_were_cut_off_or_altered_are_flags_or_one_line(tmp_path: Path) -> None:
    draw, ends = random.Random(16), Counter[str]()
    written = {
        "yaml": "seed: 1\nlr: 1.0e-4\ntasks: [reach-v3, push-v3]\nuse:\n  - a.py\n",
        "json": json.dumps({"seed": 1, "lr": 1e-4, "tasks": ["reach-v3"]}),
    }
    strange = (
        *("[" * 3000, "{", "}", ": ", "- ", "\t", "&a ", "*a", "!!python/object:os.system"),
        *("\x00", "é", "7" * 5000, "\n"),
    )
    for _ in range(300):
        kind = draw.choice(sorted(written))
        place = draw.randrange(len(written[kind]))
        before, after = written[kind][:place], written[kind][place + draw.randrange(9) :]
        text = before + draw.choice(strange) * draw.randrange(3) + after
        path = tmp_path / f"flags.{kind}"
        path.write_bytes(text.encode() if draw.random() < 0.9 else text.encode("utf-16"))
        try:
            assert isinstance(read_config(str(path)).values, dict)
            ends["read"] += 1
        except UsageError as error:
            assert "flags." in str(error) and "\n" not in str(error)
            ends["refused"] += 1
    assert min(ends["read"], ends["refused"]) > 50


# --- learning, schedulers, servers -----------------------------------------------------------------------------------


def test_groups_without_spread_teach_nothing() -> None:
    draw, policy = random.Random(10), speaker()
    for maker in (grpo, dr_grpo, rloo):
        for round_ in range(4):
            rollouts = policy.act([Task("a", "what is one ?"), Task("b", "one cat ?")], 3, key=(round_,))
            for start in (0, 3):
                value = draw.choice((0.1, 0.3, -1e30, 1e-30, LARGEST, draw.gauss(0, 1)))
                for rollout in rollouts[start : start + 3]:
                    rollout.scores["total"] = value
            assert not maker()(policy.collate(rollouts)).any()


@pytest.mark.parametrize("number", range(0, len(KNOWN), 3))
def test_any_number_of_steps_makes_levels_that_lose_noise_or_one_line(number: int) -> None:
    from autotelic.diffusion.sampler import sampler_for

    name, settings = KNOWN[number]
    draw = random.Random(number)
    for steps in (1, 2, *(draw.randrange(3, 1200) for _ in range(3))):
        try:
            chain = sampler_for(scheduler_of(name, **settings), steps, "auto")
        except UsageError as error:
            assert "\n" not in str(error)
            continue
        sigma = chain.levels.sigma / chain.levels.alpha.clamp(min=1e-12)
        assert bool(sigma.isfinite().all()) and bool((sigma.diff() < 0).all()) and bool(chain.std.isfinite().all())


def places(value: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """(container, key) of every part of a JSON value."""
    found = [] if found is None else found
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        found.append((value, key))
        places(part, found)
    return found


def test_a_server_that_tells_anything_ends_in_one_line_or_in_finite_rollouts() -> None:
    draw, policy, ends = random.Random(11), speaker(), Counter[str]()
    told_ = {"content": [{"token": "red", "logprob": -1.0}, {"token": "", "logprob": -0.5}]}
    choice = {"message": {"content": "red"}, "finish_reason": "stop", "token_ids": [5, 1], "logprobs": told_}
    strange = [value for value in STRANGE if isinstance(value, str | int | float | list | dict | None)]
    for _ in range(400):
        answer = json.loads(json.dumps({"choices": [choice], "prompt_token_ids": None}))
        for _ in range(draw.randrange(1, 3)):
            container, key = draw.choice(places(answer))
            container[key] = draw.choice(strange)
        sent = json.dumps(answer)[: draw.choice((-1, None, None, None))].encode()
        actor = ServerActor(policy, "http://127.0.0.1:9/v1", "tiny", attempts=1, wait=0.0)
        actor._once = lambda body, sent=sent: _checked(sent, 1)  # type: ignore[method-assign,misc]
        try:
            (rollout,) = actor.act([Task("q", "red ?")], 1)
        except ServerError as error:
            assert "\n" not in str(error)
            ends["refused"] += 1
            continue
        assert rollout.log_probs is not None and bool(rollout.log_probs.isfinite().all())
        ends["rollouts"] += 1
    assert min(ends["refused"], ends["rollouts"]) > 40


# --- environments, names, processes ----------------------------------------------------------------------------------


class Anything(toy_envs.Plain):
    """Sometimes says something strange: as observation, as reward, as an end."""

    def begin(self) -> None:
        self.draw = np.random.default_rng(self._np_random_seed)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        said: list[Any] = list(super().step(action))
        if self.draw.random() < 0.1:
            said[int(self.draw.integers(0, 2))] = STRANGE[int(self.draw.integers(len(STRANGE)))]
        return said[0], said[1], False, False, {}


def test_an_environment_that_says_anything_spoils_its_own_episodes_alone() -> None:
    episodes: list[Episode] = played(spec(Anything), seeds=16)
    whole = played(spec(toy_envs.Plain), seeds=16)
    spoilt = 0
    for episode, plain in zip(episodes, whole, strict=True):
        assert np.isfinite(episode.observations).all()
        spoilt += episode.fault is not None
        if episode.fault is None and episode.observations.shape == plain.observations.shape:
            assert "\n" not in str(episode.fault)
    assert 0 < spoilt < len(episodes)


def test_a_name_with_one_slip_is_told_with_the_right_one() -> None:
    draw, names = random.Random(12), sorted(all_recipes())
    for _ in range(200):
        name = draw.choice(names)
        place = draw.randrange(len(name))
        slip = name[:place] + draw.choice(("", "x", name[place] * 2)) + name[place + 1 :]
        if slip in names:
            continue
        line = str(unknown("recipe", slip, names))
        assert name in line and "\n" not in line, (slip, line)


def test_one_weight_that_differs_is_another_checksum() -> None:
    state, draw = speaker().state_dict(), random.Random(13)
    same = checksum(state)
    assert checksum({name: weight.clone() for name, weight in state.items()}) == same
    for _ in range(50):
        other = {name: weight.clone() for name, weight in state.items()}
        weights = other[draw.choice(sorted(other))].view(-1)
        place = draw.randrange(len(weights))
        weights[place] = torch.nextafter(weights[place], torch.tensor(math.inf)) if weights.is_floating_point() else 9
        assert checksum(other) != same
