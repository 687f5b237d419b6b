"""Prompts of training, gate and evaluation say different things, however they are written."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotelic.diffusion import prompts
from autotelic.diffusion.prompts import Prompts, content, file_prompts
from autotelic.diffusion.recipes import prdp
from autotelic.errors import UsageError

from .small_drawing import saved_pipeline


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("A red  cat, ", "a red cat"),
        ("a RED cat.", "a red cat"),
        ("a \uff32ed cat", "a red cat"),
        ("a red-cat", "a red cat"),
        ("Straße", "strasse"),
        ("猫, 赤い", "猫 赤い"),
        ("!?", "!?"),
    ],
)
def test_what_a_prompt_says(written: str, said: str) -> None:
    assert content(written) == said


def test_prompts_that_say_the_same_stay_on_one_side_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "prompts.txt"
    ways = ("A {} cat", "a {} cat.", "  a {}   CAT")
    path.write_text("\n".join(way.format(i) for i in range(30) for way in ways))
    with caplog.at_level(logging.WARNING):
        made = file_prompts(path)
    sides = [{content(str(task.prompt)) for task in side} for side in made.sides.values()]
    assert sum(map(len, sides)) == 30 and not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert sum(len(side) for side in made.sides.values()) == 90, "no row is lost"
    assert "30 prompts are written in several ways, such as 'A 0 cat' and 'a 0 cat.'" in caplog.text


def test_a_file_that_says_too_little_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na dog\na fox\nA cat.\nA dog.\nA fox.\n")
    with pytest.raises(UsageError, match="holds 3 prompts: 4 or more"):
        file_prompts(path)


def leaking(made: Prompts) -> Prompts:
    task = made.unrewarded[3]
    return replace(made, probes=(*made.probes, replace(task, id="again", prompt=str(task.prompt).upper() + "!")))


def empty(made: Prompts) -> Prompts:
    return replace(made, probes=())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (leaking, r"evaluation and the gate's probes share content, 1 times: \"a .* and \"A .*!\""),
        (empty, "this split leaves nothing for the gate's probes"),
    ],
)
def test_a_run_whose_sides_share_content_or_hold_none_is_refused(
    change: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, shapes_prompts = saved_pipeline(str(tmp_path / "pipeline")), prompts.shapes_prompts
    config = prdp.Config.tiny(model=pipeline, num_inference_steps=2, rewards=("sharpness",))
    monkeypatch.setattr(prompts, "shapes_prompts", lambda *given: change(shapes_prompts(*given)))
    with pytest.raises(UsageError, match=told) as error:
        prdp.build(config, None)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
