"""What a run that speaks reads of labels: its account tells, and a label-free run learns the same from wrong ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.envs.toys import scenes
from autotelic.recipes import all_recipes
from autotelic.trainers.scoring import score
from autotelic.types import Task
from autotelic.vlm import questions
from autotelic.vlm.small import glimpse_training
from autotelic.vlm.small.glimpse_training import Item, Schooling

SHOWN = "14 demonstrations with answers and traces: imitated by the start"
READ = "answers of training questions, by the reward"
ACCOUNTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "grpo": ({}, [READ, f"{SHOWN}, replayed in every step"]),
    "grpo without replay": ({"sft_coef": 0.0}, [READ, f"{SHOWN}, replayed after a repair by the gate"]),
    "grpo by the majority": ({"rewards": ("majority",)}, [f"{SHOWN}, replayed in every step"]),
    "grpo, no demonstrations": ({"demonstrations": 0}, [READ]),
    "score": ({}, [READ, f"{SHOWN}, replayed in every step"]),
    "raft": ({}, [READ, f"{SHOWN}, replayed in every step"]),
    "evol_rl": ({}, [SHOWN]),
    "ttrl": ({}, [SHOWN]),
    "ttrl with replay": ({"sft_coef": 0.5}, [f"{SHOWN}, replayed in every step"]),
    "sft": ({}, [f"{SHOWN}, imitated in training"]),
    "sft of answers": (
        {"target": "answers"},
        [f"{SHOWN}, replayed after a repair by the gate", "answers of training questions, imitated"],
    ),
}


@pytest.fixture(scope="module", autouse=True)
def start_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model of one lesson, as a folder, and as what the cache would hold."""
    folder = str(tmp_path_factory.mktemp("start"))
    model = glimpse_training.new_model(0).eval()
    items, _ = glimpse_training.demonstrated(28, 0, 0)
    glimpse_training.learn_answers(model, items, Schooling(batch=16), 40)
    model.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glimpse_training, "default_model", lambda *given: folder)
        yield folder


def built(recipe: str, **changes: Any) -> Any:
    module = all_recipes()[f"vlm/{recipe.partition(' ')[0].rstrip(',')}"].load()
    fields = {"tasks_per_step": 7, "group_size": 4, "demonstrations": 14, "eval_episodes": 2, "gate_labels": 7}
    return module.build(module.Config.tiny(**fields | changes), None)


@pytest.mark.parametrize("name", ACCOUNTS)
def test_the_account_tells_all_that_is_read(name: str) -> None:
    changes, told = ACCOUNTS[name]
    if name.startswith("sft"):
        changes = {"tasks_per_step": 1, "group_size": 1, **changes}
    assert built(name, **changes).label_account == "; ".join(["gate_labels: 7", *told])


def test_rules_of_the_world_that_judge_are_told() -> None:
    assert built("self_critique").label_account.endswith(
        "the small world's own rules, on cells as the start reads them"
    )


def wrong_tasks(made: list[Task]) -> list[Task]:
    """The same questions with other answers, traces and scenes."""
    draw, found = random.Random(1), []
    for task in made:
        extra = dict(task.extra)
        if "trace" in extra:
            extra["trace"] = glimpse_training.corrupted(extra["trace"], draw)
        if "scene" in extra:
            extra["scene"] = tuple(reversed(extra["scene"]))
        found.append(replace(task, reference=task.reference and "cyan_plus", extra=extra))
    return found


def wrong_items(items: list[Item], shown: Any) -> tuple[list[Item], Any]:
    """The same demonstrations, each with a mistake in what is said, so among the tokens that are imitated."""
    draw = random.Random(2)
    return [replace(item, answer=glimpse_training.corrupted(item.answer, draw)) for item in items], shown


def weights_after(recipe: str, start: str, wrong: bool, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Tensor:
    tasks, demonstrated = scenes.tasks, glimpse_training.demonstrated
    questions._block.cache_clear()
    with monkeypatch.context() as patch:
        if wrong:
            patch.setattr(scenes, "tasks", lambda *given, **how: wrong_tasks(tasks(*given, **how)))
            patch.setattr(
                glimpse_training,
                "demonstrated",
                lambda *given: wrong_items(*demonstrated(*given)),
            )
        (stage, *_) = built(recipe, model=start, gate="none", **changes).stages
        for number in range(2):
            sampled = stage.curriculum.sample(stage.tasks_per_step)
            rollouts = stage.actor.act(sampled, stage.group_size, key=(0, number), **stage.sampling)
            score(rollouts, stage.reward)
            told = stage.learners["policy"].update(rollouts)
            stage.curriculum.update(rollouts)
            assert told["learned"]
    questions._block.cache_clear()
    return torch.cat([p.detach().flatten() for p in stage.learners["policy"].policy.parameters()])


@pytest.mark.parametrize(
    ("recipe", "free"),
    [
        ("evol_rl", True),
        ("evol_rl --no-novelty", True),
        ("ttrl", True),
        ("ttrl --sft-coef", False),
        ("grpo", False),
        ("grpo --sft-coef 0", False),
        ("score", False),
        ("sft", False),
        ("raft", False),
    ],
)
def test_a_label_free_run_learns_the_same_from_wrong_labels(
    recipe: str, free: bool, start_of_all: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, with the gate off; every other run, GRPO with its reward alone too, learns something else."""
    given: dict[str, dict[str, Any]] = {
        "evol_rl --no-novelty": {"novelty": False},
        "ttrl --sft-coef": {"sft_coef": 0.5},
        "grpo --sft-coef 0": {"sft_coef": 0.0},
        "sft": {"tasks_per_step": 1, "group_size": 1},
    }
    changes = given.get(recipe, {})
    right, wrong = (weights_after(recipe, start_of_all, lies, monkeypatch, **changes) for lies in (False, True))
    assert torch.equal(right, wrong) == free
