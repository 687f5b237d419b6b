"""What of a run of pictures reads labels: with other true renders a run without labels ends at the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.diffusion.small.pretraining import quiet
from autotelic.envs.toys import shapes
from autotelic.recipes import all_recipes
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.trainers.scoring import score

from .small_drawing import saved_pipeline
from .test_diffusion_recipes import pairs_file


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    quiet()
    yield saved_pipeline(str(tmp_path_factory.mktemp("pipeline")))


def built(recipe: str, pipeline: str, folder: Path | None = None, **changes: Any) -> tuple[Any, Any]:
    module = all_recipes()[f"diffusion/{recipe}"].load()
    fields = {"model": pipeline, "rewards": ("sharpness",), "num_inference_steps": 4, "gate": "none", "grid": 0}
    fields |= {"lr": 0.01, "tasks_per_step": 3, "group_size": 3, "lora_rank": 4}
    run = None if folder is None else RunFolder.create(folder, f"diffusion/{recipe}", fields)
    experiment = module.build(module.Config(**fields | changes), run)
    return experiment, experiment.stages[0]


def learned(recipe: str, pipeline: str, **changes: Any) -> Tensor:
    """Trained weights after two rounds."""
    _, stage = built(recipe, pipeline, **changes)
    for number in range(2):
        rollouts = stage.actor.act(stage.curriculum.sample(3), 3, key=(0, number), **stage.sampling)
        score(rollouts, stage.reward)
        stage.learners["policy"].update(rollouts)
    return torch.cat([tensor.detach().flatten() for tensor in stage.learners["policy"].policy.trained().values()])


def other_labels(patch: pytest.MonkeyPatch) -> None:
    """True renders are those of other captions, and inverted."""
    templates, sample = shapes.templates, shapes.sample
    patch.setattr(shapes, "templates", lambda *size: 1 - templates(*size).roll(7, 0))
    patch.setattr(shapes, "sample", lambda *given: 1 - sample(*given))


LABEL_FREE = ("prdp", "ddpo", "flow_grpo", "nft", "raft", "dpo", "d3po", "alignprop", "draft")
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "a reward by true renders": ("prdp", {"rewards": ("nearest_render",)}),
    "true renders are imitated": ("raft", {"sft_coef": 1.0}),
    "refl holds on to true renders": ("refl", {}),
}


@pytest.mark.parametrize("recipe", LABEL_FREE)
def test_with_a_reward_that_reads_none_no_label_reaches_the_weights(
    recipe: str, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = learned(recipe, pipeline)
    other_labels(monkeypatch)
    assert torch.equal(learned(recipe, pipeline), before)


@pytest.mark.parametrize("control", CONTROLS)
def test_what_reads_labels_learns_otherwise_from_others(
    control: str, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, changes = CONTROLS[control]
    before = learned(recipe, pipeline, **changes)
    other_labels(monkeypatch)
    assert float((learned(recipe, pipeline, **changes) - before).abs().max()) > 1e-3


def test_preferences_are_labels(pipeline: str, tmp_path: Path) -> None:
    """The same pairs, preferred the other way round."""
    pairs = pairs_file(tmp_path, list(shapes.LABELS)[:4])
    turned = tmp_path / "turned.jsonl"
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    turned.write_text("".join(json.dumps(row) + "\n" for row in swapped))
    one, other = (learned("dpo", pipeline, pairs=str(path)) for path in (pairs, turned))
    assert float((one - other).abs().max()) > 1e-3


ACCOUNTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "nothing": ("prdp", {}, "gate_labels: none"),
    "the gate": ("prdp", {"gate": "non_inferiority"}, "gate_labels: 24"),
    "fewer probes": ("prdp", {"gate": "best", "gate_prompts": 5}, "gate_labels: 5"),
    "a gate by a proxy": ("prdp", {"gate": "best", "judge": "colourfulness"}, "gate_labels: none"),
    "the reward": (
        "ddpo",
        {"rewards": ("nearest_render", "sharpness")},
        "gate_labels: none; reward: true renders of every caption",
    ),
    "imitated": (
        "refl",
        {"sft_pictures": 8},
        "gate_labels: none; 8 true renders of rewarded captions, imitated in every step",
    ),
}


@pytest.mark.parametrize("case", ACCOUNTS)
def test_the_account_tells_all_that_is_read(case: str, pipeline: str) -> None:
    recipe, changes, told = ACCOUNTS[case]
    assert built(recipe, pipeline, **changes)[0].label_account == told


def test_the_account_counts_preferences(pipeline: str, tmp_path: Path) -> None:
    pairs = pairs_file(tmp_path, list(shapes.LABELS)[:4])
    experiment, _ = built("dpo", pipeline, pairs=str(pairs))
    assert experiment.label_account == "gate_labels: none; people's preferences in 4 pairs, in every step"


def test_every_pair_of_a_prompt_is_learned_from(pipeline: str, tmp_path: Path) -> None:
    """Two pairs of one caption, and one of another: each is a task, with its own two pictures at one noise."""
    captions = list(shapes.LABELS)[:2]
    pairs = pairs_file(tmp_path, [captions[0], captions[0], captions[1]])
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    rows[1]["chosen"], rows[1]["rejected"] = rows[1]["rejected"], rows[1]["chosen"]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, stage = built("dpo", pipeline, pairs=str(pairs))
    policy, tasks = stage.learners["policy"].policy, stage.curriculum.sample(3)
    rollouts = stage.actor.act(tasks, 8, key=(0, 1), **stage.sampling)
    assert len(rollouts) == 6
    pictures = {(r.task.id.split("/")[1], r.info["preferred"]): r.output for r in rollouts}
    assert len(pictures) == 6 and torch.equal(pictures["1", True], pictures["2", False])
    batch = policy.collate(rollouts, "forward").payload
    for first in range(0, 6, 2):
        assert torch.equal(batch["level"][first], batch["level"][first + 1])
        assert torch.equal(batch["noise"][first], batch["noise"][first + 1])
    assert not torch.equal(batch["noise"][0], batch["noise"][2])
