"""Recipes for pictures from the command line, on an untrained pipeline: presets, a resume, adapters, bad input."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from autotelic.cli import main
from autotelic.diffusion.pipelines import load
from autotelic.diffusion.recipes import prdp
from autotelic.diffusion.small.pretraining import Pretraining, quiet, untrained
from autotelic.envs.toys import shapes
from autotelic.recipes import all_recipes, config_from_json
from autotelic.testing import pipelines as tiny_pipelines
from autotelic.trainers.runs.run_folder import RunFolder

from .small_drawing import saved_pipeline
from .test_loop import assert_same_run

RECIPES = sorted(name for name in all_recipes() if name.startswith("diffusion/"))
CAPTION = "a red square"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache: whatever is pretrained here would be found in it."""
    folder = tmp_path_factory.mktemp("cache")
    quiet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOTELIC_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_pipeline(str(tmp_path_factory.mktemp("pipeline")))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(f"a {colour} {thing}" for colour in ("red", "green") for thing in ("cat", "dog", "fox")))
    return str(path)


def run(name: str, pipeline: str, path: Path, *options: str) -> int:
    """A debug preset with three denoising steps."""
    cheap = ("--debug", "--model", pipeline, "--num-inference-steps", "3", "--rewards", "sharpness")
    return main(["run", f"diffusion/{name}", *cheap, "--output-dir", str(path), *options])


def drawn(pipeline: Any) -> Tensor:
    noise = torch.Generator().manual_seed(7)
    return torch.from_numpy(pipeline([CAPTION, "a blue disc"], 3, generator=noise, output_type="np").images)


# --- whole runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_debug_presets_run_two_iterations(name: str, pipeline: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert run(name.partition("/")[2], pipeline, path) == 0
    folder = RunFolder.open(path)
    assert [row["iteration"] for row in folder.metrics()] == [1, 2]
    assert folder.metrics()[0]["objective/grad_norm"] > 0, "it learned"
    gate = folder.read("gate")
    assert len(gate) == 2 or gate[-1]["stop"]
    assert set(gate[0]["evidence"]) == {"probe"}, "the nearest true render judges, on probes"
    for evaluation in folder.evaluations().values():
        assert {kind: len(row["success"]) for kind, row in evaluation["outcomes"].items()} == {
            "rewarded": 192,
            "unrewarded": 72,
        }
        assert {"reward", "judge", "distance", "kl", "reward_ode"} <= evaluation["figures"]["unrewarded"].keys()
    assert folder.evaluations()["before"]["figures"]["rewarded"]["kl"] == 0
    assert "<html" in (path / "report.html").read_text() and "gate_labels: 24" in (path / "README.md").read_text()
    grids = {f"{kind}-{when}.png" for kind in ("rewarded", "unrewarded") for when in ("before", "after")}
    assert grids <= {p.name for p in (path / "samples" / "images").iterdir()}
    assert (path / "policy" / "pytorch_lora_weights.safetensors").exists()


def test_a_reward_that_knows_nothing_makes_the_same_steps(pipeline: str, tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("random", "sharpness")}
    for name, path in paths.items():
        assert run("ddpo", pipeline, path, "--rewards", name) == 0
    chance, sharp = (RunFolder.open(path) for path in paths.values())
    one, other = (folder.metrics()[-1] for folder in (chance, sharp))
    assert one["queries"] == other["queries"] and one["objective/grad_norm"] > 0
    assert 0.3 < one["reward"] < 0.7 and len(chance.read("gate")) == len(sharp.read("gate")) == 2


FRAGILE = """
import os

class Redness:
    calls = 0

    def __call__(self, images, **_):
        self.calls += 1
        if self.calls >= int(os.environ.get("BREAKS_AT", 10**6)):
            raise RuntimeError("the judge is gone")
        return [float(image[0].mean() - image[1].mean()) for image in images]
"""


def test_prdp_resumes_as_if_nothing_had_happened(
    pipeline: str, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a reward of one's own; it breaks off in the third of four iterations."""
    (tmp_path / "own.py").write_text(FRAGILE)
    options = ("--max-steps", "4", "--data", prompts, "--judge", "colourfulness", "--gate-margin", "9")
    options = (*options, "--ema", "0.9", "--rewards", f"{tmp_path / 'own.py'}:Redness")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run("prdp", pipeline, whole, *options) == 0
    # Before: two kinds of prompts, drawn in two ways. A round asks once, and the gate once per policy it does not know.
    monkeypatch.setenv("BREAKS_AT", str(4 + (1 + 3) + (1 + 1) + 1))
    assert run("prdp", pipeline, cut, *options) == 2
    assert len(RunFolder.open(cut).metrics()) == 2, "it broke off in the third"
    monkeypatch.delenv("BREAKS_AT")
    assert main(["resume", str(cut)]) == 0
    assert_same_run(RunFolder.open(cut), RunFolder.open(whole))
    start, end = (RunFolder.open(whole).load_checkpoint(which) for which in ("iteration-000003", "latest"))
    assert any(not torch.equal(weight, weights(end)[name]) for name, weight in weights(start).items())


def weights(state: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = state["now"]["policy"]["policy"]
    return found


def test_saved_adapters_draw_the_same_in_a_fresh_pipeline(pipeline: str, prompts: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert run("raft", pipeline, path, "--lr", "0.05", "--gate", "none", "--data", prompts, "--dtype", "fp32") == 0
    fresh: Any = load(pipeline, dtype=torch.float32)
    before = drawn(fresh)
    fresh.load_lora_weights(str(path / "policy"))
    after = drawn(fresh)
    assert (after - before).abs().max() > 0.05, "it learned something"
    trained = trained_policy(path, "raft")
    with trained.worn():
        assert torch.allclose(drawn(trained.adapter.pipeline), after, atol=1e-5)


def trained_policy(path: Path, name: str) -> Any:
    """The policy of a finished run, from its folder."""
    folder, module = RunFolder.open(path), all_recipes()[f"diffusion/{name}"].load()
    (stage,) = module.build(config_from_json(module.Config, folder.config), folder).stages
    stage.learners["policy"].load_state_dict(folder.load_checkpoint()["now"]["policy"])
    return stage.actor


def test_without_adapters_the_whole_pipeline_is_saved(pipeline: str, prompts: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert run("draft", pipeline, path, "--lora-rank", "0", "--lr", "1e-3", "--gate", "none", "--data", prompts) == 0
    trained = trained_policy(path, "draft")
    with trained.worn():
        assert torch.allclose(drawn(trained.adapter.pipeline), drawn(load(path / "policy")), atol=1e-5)
    assert (drawn(load(pipeline)) - drawn(load(path / "policy"))).abs().max() > 1e-3


# --- pairs that were collected before --------------------------------------------------------------


def pairs_file(folder: Path, captions: list[str]) -> Path:
    """True renders, preferred to grey pictures of another size."""
    lines = []
    for number, caption in enumerate(captions):
        scene = list(shapes.LABELS).index(caption) if caption in shapes.LABELS else number
        pixels = (shapes.templates()[scene, 0] * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"good-{number}.png")
        Image.new("RGB", (20, 20), (128, 128, 128)).save(folder / f"bad-{number}.png")
        lines.append({"prompt": caption, "chosen": f"good-{number}.png", "rejected": f"bad-{number}.png"})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_dpo_learns_from_a_file_of_pairs(pipeline: str, tmp_path: Path) -> None:
    """The chosen become likelier than the rejected, without a picture being drawn or scored in training."""
    captions = random.Random(0).sample(list(shapes.LABELS), 4)
    pairs, path = pairs_file(tmp_path, captions), tmp_path / "run"
    options = ("--pairs", str(pairs), "--max-steps", "6", "--tasks-per-step", "4", "--gate", "none")
    assert run("dpo", pipeline, path, *options, "--lr", "0.01") == 0
    metrics = RunFolder.open(path).metrics()
    assert {row["reward"] for row in metrics} == {0.5}, "one of two is preferred"
    assert {row["rollouts"] for row in metrics} == {8}
    assert metrics[0]["objective/margin"] == pytest.approx(0, abs=1e-4)
    assert metrics[-1]["objective/margin"] > 0.05 and metrics[-1]["objective/accuracy"] == 1
    outcomes = RunFolder.open(path).evaluations()["after"]["outcomes"]
    assert len(outcomes["rewarded"]["success"]) == 4
    held_out = {task.prompt for task in prdp_tasks("unrewarded")} - set(captions)
    assert len(outcomes["unrewarded"]["success"]) == len(held_out), "what is learned is no longer held out"


def prdp_tasks(kind: str) -> Any:
    from autotelic.diffusion.prompts import shapes_prompts

    return getattr(shapes_prompts(prdp.Config().split), kind)


def test_pairs_of_other_prompts_come_with_prompts_of_their_kind(
    pipeline: str, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = pairs_file(tmp_path, ["a grey cat", "a grey dog"])
    assert run("dpo", pipeline, tmp_path / "run", "--pairs", str(pairs), "--data", prompts) == 0
    capsys.readouterr()
    refused(["--pairs", str(pairs)], '"a grey cat" in', "--data FILE", pipeline, tmp_path, capsys, name="dpo")


# --- bad input -------------------------------------------------------------------------------------


def refused(
    options: list[str],
    what: str,
    hint: str,
    pipeline: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    name: str = "prdp",
) -> None:
    """Exit code 2, one line that says what and what to do, and no folder."""
    path = folder / "refused"
    chosen = [] if "--model" in options or not pipeline else ["--model", pipeline]
    rewards = [] if "--rewards" in options else ["--rewards", "sharpness"]
    command = ["run", f"diffusion/{name}", "--debug", "--num-inference-steps", "3", "--output-dir", str(path)]
    assert main([*command, *chosen, *rewards, *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("autotelic: ") and said.count("\n") == 1, said
    assert what in said and hint in said, said
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "options", "what", "hint"),
    [
        ("prdp", ["--rewards", "sharpnes"], 'unknown reward "sharpnes"', "did you mean sharpness"),
        ("prdp", ["--rewards", "nowhere.py:f"], "there is no file nowhere.py", ""),
        (
            "prdp",
            ["--judge", "sharpnes", "--rewards", "attributes"],
            'unknown reward "sharpnes"',
            "did you mean sharpness",
        ),
        ("alignprop", ["--rewards", "jpeg"], "reward jpeg has no gradient", "diffusion/prdp, ddpo, nft, raft"),
        ("refl", ["--rewards", "sharpness", "colourfulness"], "no gradient", "diffusion/prdp, ddpo, nft, raft"),
        ("ddpo", ["--group-size", "1"], "--group-size 2 or more", "not 1"),
        pytest.param(
            *("prdp", ["--dtype", "fp16"], "float16 does not train on the CPU", "give --dtype fp32 or bf16"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it does"),
        ),
        ("prdp", ["--data", "nowhere.txt"], "there is no file nowhere.txt", ""),
    ],
)
def test_what_needs_no_pipeline_is_refused_before_one_is_made(
    name: str,
    options: list[str],
    what: str,
    hint: str,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused(options, what, hint, "", tmp_path, capsys, name)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "what"),
    [('{"prompt": 3}', 'wants a text in the column "prompt"'), ('{"prompt": "a cat"', "is no JSON object")],
)
def test_a_malformed_line_of_prompts_is_named(
    line: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a dog"}\n\n' + line + "\n")
    refused(["--data", str(path)], "prompts.jsonl line 3 ", what, "", tmp_path, capsys)


def test_captions_rewards_do_not_go_with_prompts_of_ones_own(
    prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", prompts, "--rewards", "attributes"]
    refused(
        options, "the reward attributes knows the small world's captions alone", "name others", "", tmp_path, capsys
    )


@pytest.mark.parametrize(
    ("options", "what", "hint"),
    [
        (["--lora-targets", "to_q", "to_x"], 'unknown LoRA target "to_x"', "did you mean to_"),
        (["--sampler", "ddim"], "sampler ddim does not suit FlowMatchEulerDiscreteScheduler", "flow_ancestral"),
        (["--model", "./nowhere"], "there is no folder ./nowhere", "--model"),
    ],
)
def test_what_the_pipeline_cannot_do_is_refused(
    options: list[str], what: str, hint: str, pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(options, what, hint, pipeline, tmp_path, capsys)


def test_a_picture_that_cannot_be_read_is_named(
    pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = pairs_file(tmp_path, list(shapes.LABELS)[:2])
    (tmp_path / "bad-1.png").write_text("no picture")
    told = f"{pairs.name} line 2: the picture cannot be decoded"
    refused(["--pairs", str(pairs)], told, "bad-1.png", pipeline, tmp_path, capsys, name="dpo")
    pairs.write_text('{"prompt": ["a"], "chosen": "good-0.png", "rejected": "good-1.png"}\n')
    refused(["--pairs", str(pairs)], f"{pairs.name} line 1 wants", '"prompt": text', pipeline, tmp_path, capsys, "dpo")


def test_a_pipeline_without_an_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(sample_size=16, norm_num_groups=4, layers_per_block=1, **blocks)  # type: ignore[arg-type]
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    refused([], "no adapter for DDPMPipeline", "ShapesPipeline", str(tmp_path / "ddpm"), tmp_path, capsys)


def test_a_scheduler_without_a_gaussian_step_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import IPNDMScheduler, PNDMScheduler

    made, folder = tiny_pipelines.stable_diffusion(), str(tmp_path / "ipndm")
    made.scheduler = IPNDMScheduler()
    made.save_pretrained(folder)
    refused([], "no denoising step is known for IPNDMScheduler", "DDIMScheduler", folder, tmp_path, capsys)
    made.scheduler = PNDMScheduler()
    made.save_pretrained(folder)
    refused([], "PNDMScheduler cannot be prepared for 3 steps", "try another number", folder, tmp_path, capsys)


def test_pictures_of_another_size_than_the_small_worlds_want_prompts_of_their_own(
    prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "large")
    made: Any = untrained(Pretraining(size=32, width=32, layers=1))
    made.save_pretrained(folder)
    refused([], "judged at 16 x 16 pixels, and this pipeline draws 32 x 32", "--data FILE", folder, tmp_path, capsys)
    assert run("prdp", folder, tmp_path / "run", "--data", prompts) == 0
