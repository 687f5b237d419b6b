"""What a config names is looked for before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from autotelic.errors import UsageError
from autotelic.preflight import check, located, looks_local
from autotelic.recipes import all_recipes

CONFIGS = {name: recipe.load().Config for name, recipe in all_recipes().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_recipe_passes_as_it_is_and_in_small(name: str) -> None:
    check(CONFIGS[name]())
    check(CONFIGS[name].tiny())


def test_what_recipes_know_themselves_is_what_they_make() -> None:
    from autotelic.diffusion.setting import DiffusionConfig
    from autotelic.vla import progress
    from autotelic.vlm.asking import own_rewards
    from autotelic.vlm.setting import LanguageConfig

    policy: Any = None
    made = own_rewards(policy, policy)
    assert set(LanguageConfig.OWN["rewards"]) == set(LanguageConfig.OWN["judge"]) == set(made)
    assert {*progress.KINDS, *progress.CONDITIONED} == set(progress.ProgressConfig.OWN["critic"])
    for name in DiffusionConfig.OWN["rewards"]:
        check(CONFIGS["diffusion/ddpo"](rewards=(name,), judge=name))


def test_a_field_of_that_name_that_names_no_plugin_is_left_alone() -> None:
    hint = get_type_hints(CONFIGS["vlm/self_critique"])["critic"]
    for value in get_args(hint):
        check(CONFIGS["vlm/self_critique"](critic=value))


def test_names_of_a_hub_are_not_looked_for_here() -> None:
    for name in ("owner/model", "gpt2", "owner/model.v2"):
        assert not looks_local(name)
        check(CONFIGS["vlm/grpo"](model=name))
    check(CONFIGS["vla/evolve_vla"](demonstrations_from=("owner/data",)))
    with pytest.raises(UsageError, match=r"--pairs: there is no file pairs\.jsonl"):
        check(CONFIGS["diffusion/dpo"](pairs="pairs.jsonl"))


def test_what_is_there_is_named_from_the_root_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "python").touch()
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    values = located(
        {
            "data": "rows.jsonl",
            "eval_data": "link.jsonl",
            "model": "owner/model",
            "demonstrations_from": ("rows.jsonl", "owner/data"),
            "rewards": ("isolated:python@my.py:tidy", "isolated:my.py:tidy", "exact:0.5"),
            "tasks": ("python",),
            "judge": "",
        }
    )
    assert values["data"] == str(tmp_path / "rows.jsonl") and values["eval_data"] == str(tmp_path / "link.jsonl")
    assert (values["model"], values["tasks"], values["judge"]) == ("owner/model", ("python",), "")
    assert list(values["demonstrations_from"]) == [str(tmp_path / "rows.jsonl"), "owner/data"]
    isolated = [f"isolated:{tmp_path}/python@my.py:tidy", "isolated:my.py:tidy", "exact:0.5"]
    assert list(values["rewards"]) == isolated
