"""What a flag reaches: tools, a server, policies of LeRobot and vision-language models, adapters of the attention."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotelic.envs.pool import Pool
from autotelic.errors import UsageError
from autotelic.testing import vlms
from autotelic.types import Task
from autotelic.vla.environments import make_policy
from autotelic.vla.lerobot_policy import LeRobotPolicy
from autotelic.vla.openvla import OpenVLAPolicy
from autotelic.vla.setting import RobotConfig
from autotelic.vlm.conversation import Conversation, Turn
from autotelic.vlm.server import ServerActor
from autotelic.vlm.setting import LanguageConfig, start

from . import point_mass


def echo(images: list[Any], word: str) -> str:
    """A tool of a person's own."""
    return f"you said {word}"


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> LanguageConfig:
    folder = tmp_path_factory.mktemp("llama")
    for part in vlms.text("llama"):
        part.save_pretrained(folder)
    lines = [json.dumps({"prompt": f"how many in {word} ?", "answer": word}) for word in vlms.WORDS[:10]]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    data = str(folder / "questions.jsonl")
    return LanguageConfig.tiny(model=str(folder), data=data, gate="none", lora_rank=0, max_new_tokens=3)


def test_tools_by_name_and_by_place_stand_in_the_conversation(language: LanguageConfig) -> None:
    setting = start(replace(language, tools=("crop", f"{__name__}:echo"), turns=2))
    stage = setting.stage(None, None, learners={})  # type: ignore[arg-type]
    actor = stage.actor
    assert isinstance(actor, Conversation) and actor.turns == 2 and "keep_prefix" not in stage.sampling
    turn = Turn('<tool_call>{"name": "echo", "arguments": {"word": "red"}}</tool_call>')
    assert "you said red" in actor.environment(Task("a", "?"), [turn]).text
    with pytest.raises(UsageError, match='"crp": did you mean crop'):
        start(replace(language, tools=("crp",))).actor()


def test_a_server_answers_in_training_and_the_policy_is_looked_at(language: LanguageConfig) -> None:
    setting = start(replace(language, server="http://localhost:9"))
    actor = setting.actor()
    assert isinstance(actor, ServerActor) and actor.model == language.model
    assert actor.evaluated() is setting.policy and start(language).actor().players == ("policy",)
    with pytest.raises(UsageError, match="--tools or --server"):
        start(replace(language, server="http://localhost:9", tools=("crop",))).actor()


def test_an_actor_of_the_recipes_own_refuses_them(language: LanguageConfig) -> None:
    setting = start(replace(language, tools=("crop",)))
    with pytest.raises(UsageError, match="has an actor of its own"):
        setting.stage(None, None, actor=setting.policy)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with point_mass.simulators(chunk=2) as simulators:
        yield simulators


def robot(folder: Path) -> RobotConfig:
    return RobotConfig(model=str(folder), tasks=(point_mass.NAME,))


def test_a_vision_language_model_says_actions(tmp_path: Path, pool: Pool) -> None:
    model, processor = vlms.vlm("llava")
    made = OpenVLAPolicy(model, processor, chunk=2, action_size=2, bins=8)
    made.save_pretrained(tmp_path / "trained")
    policy = make_policy(robot(tmp_path / "trained"), point_mass.NAME, pool)
    assert isinstance(policy, OpenVLAPolicy) and policy.bins == 8
    OpenVLAPolicy(model, processor, chunk=3, action_size=2, bins=8).save_pretrained(tmp_path / "longer")
    with pytest.raises(UsageError, match="say --chunk 3"):
        make_policy(robot(tmp_path / "longer"), point_mass.NAME, pool)


def test_a_folder_of_lerobot_is_told_by_its_type(tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def loaded(name: str, **options: Any) -> Any:
        asked.update(name=name, **options)
        raise UsageError("loaded")

    monkeypatch.setattr(LeRobotPolicy, "from_pretrained", loaded)
    (tmp_path / "config.json").write_text('{"type": "act"}')
    with pytest.raises(UsageError, match="loaded"):
        make_policy(robot(tmp_path), point_mass.NAME, pool)
    assert asked == {"name": str(tmp_path), "chunk": 2}
