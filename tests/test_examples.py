"""Examples: each is short, is called and felt in a run by the command line, resumes, and edits nothing."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autotelic import Batch, Evaluation, PPOClip, Rollout, Task
from autotelic.cli import main
from autotelic.diffusion.pipelines import adapter_for
from autotelic.plugins import imported, module_at
from autotelic.testing import pipelines as tiny

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "examples").glob("*.py"))
LETTERS = "abcdefghi"


@pytest.fixture(scope="module")
def cost() -> SimpleNamespace:
    """benchmarks/extension_cost.py, which says how each example is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "extension_cost.py")))


@pytest.fixture(scope="module")
def prepared(cost: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    cost.prepare(folder)
    return folder


def command(words: Sequence[str]) -> tuple[int, str]:
    """``autotelic`` in this process."""
    with io.StringIO() as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(words)
        return code, said.getvalue()


@pytest.mark.parametrize("letter", LETTERS)
def test_an_example_is_called_and_felt_and_resumes(
    letter: str, cost: SimpleNamespace, prepared: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]
) -> None:
    chosen = [example for example in cost.EXAMPLES if example.letter == letter]
    if not chosen:
        pytest.skip("this example does not stand here")
    monkeypatch.chdir(prepared)
    monkeypatch.setenv("WITNESS", str(prepared / "resets"))

    def run(words: Sequence[str]) -> tuple[int, str]:
        forget()  # as another process
        return command(words)

    figures = cost.tried(chosen[0], run, prepared, whole=False)
    assert letter != "f" or figures["other_processes"] >= 1


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_is_at_most_60_lines_and_says_what_it_is_and_how_it_runs(file: Path, cost: SimpleNamespace) -> None:
    lines = file.read_text().splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith('"""') and f"examples/{file.name}" in "".join(lines[:4])
    assert file.name == "grpo.py" or file.name in {example.file for example in cost.ALL}


# what they compute


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_pixart_draws_what_its_pipeline_draws(scale: float, forget: Callable[[], None]) -> None:
    module_at(str(ROOT / "examples" / "pixart.py"))
    prompts = ["a red circle", "two blue squares"]
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    adapter = adapter_for(tiny.pixart_alpha(), height=16, width=24, negative_prompt="ugly")
    adapter.set_timesteps(adapter.scheduler, 3)
    condition, without, latents = adapter.encode(prompts), adapter.unconditional(2), noise
    for t in adapter.scheduler.timesteps:
        out = adapter.predict_guided(adapter.denoiser, latents, t.expand(2), condition, without, scale)
        latents = adapter.scheduler.step(out, t, latents, return_dict=False)[0]
    how = {"guidance_scale": scale, "negative_prompt": "ugly", "num_inference_steps": 3, "height": 16, "width": 24}
    made = [
        adapter.pipeline(prompts, latents=noise, output_type=kind, use_resolution_binning=False, **how).images
        for kind in ("latent", "pt")
    ]
    torch.testing.assert_close(latents, made[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(adapter.decode(latents), made[1], rtol=0, atol=1e-6)
    assert (noise - latents).abs().max() > 0.1


def test_cispo_keeps_the_gradient_that_the_clip_of_ppo_drops(forget: Callable[[], None]) -> None:
    objective, _ = imported(f"{ROOT}/examples/objective.py:cispo")()
    old, now = torch.tensor([[-4.0, -1.0]]), torch.tensor([[-1.0, -1.0]])  # the first token is e^3 times likelier
    ones = torch.ones(1, 2)
    batch = Batch({}, ones.bool(), 0 * ones.long(), ones.long(), {"behaviour": old}, {}, ones[:, :1].bool())
    batch.advantages = ones
    for each, expected in ((objective, [-5 / 2, -1 / 2]), (PPOClip(aggregate="decision"), [0.0, -1 / 2])):
        leaves = Evaluation(now).leaves()
        loss, _ = each(leaves, batch)
        assert leaves.gradient_of(loss).log_probs[0].tolist() == pytest.approx(expected)


def test_bots_asks_what_is_passed_half_of_the_time(forget: Callable[[], None]) -> None:
    tasks = [Task(f"{kind}/{i}", "", category=kind) for kind in ("easy", "even", "hard") for i in range(10)]
    sources = {kind: [task for task in tasks if task.category == kind] for kind in ("easy", "even", "hard")}
    bots, rates = imported(f"{ROOT}/examples/curriculum.py:BOTS")(sources), {"easy": 1.0, "even": 0.5, "hard": 0.0}
    for _ in range(30):
        rollouts = [Rollout.plain(task, "") for task in bots.sample(10) for _ in range(4)]
        for rollout in rollouts:
            rollout.scores["total"] = rates[rollout.task.category]
        bots.update(rollouts)
    again = imported(f"{ROOT}/examples/curriculum.py:BOTS")(sources)
    again.load_state_dict(bots.state_dict())
    asked = bots.sample(10)
    assert sum(task.category == "even" for task in asked) >= 7
    assert [task.id for task in asked] == [task.id for task in again.sample(10)]


# bad input

BAD = {
    "broken": "x = 1\nimport no_such_module_at_all\n",
    "taken": "from autotelic import register\n\nregister('objective', 'grpo', lambda: 0)\n",
    "half": "from autotelic import Callback, Curriculum\n\nclass Half(Curriculum):\n    def sample(self, n): ...\n"
    "\nclass Own:\n    def on_start(self, run): ...\n",
    "bare": '"""No recipe."""\n',
}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("run vlm/grpo --use broken.py", r"cannot import broken.py: ModuleNotFoundError: .* \(broken.py, line 2\)"),
        ("run vlm/grpo --use taken.py", r'taken.py, line 3: the objective "grpo" comes with autotelic'),
        ("run vlm/grpo --curriculum half.py:Half", r"half.py, line 3: the curriculum Half has no update"),
        ("run vlm/grpo --trackers half.py:Own", r"half.py, line 6: the tracker Own has no on_iteration"),
        ("run vlm/grpo --objective half.py:Hafl", r'unknown name "half.py:Hafl": did you mean half.py:Half'),
        ("run bare.py", r"bare.py: the recipe bare_\w+ has no Config"),
    ],
)
def test_a_plugin_that_does_not_fit_is_told_in_one_line(
    words: str, line: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]
) -> None:
    for name, text in BAD.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    tiny_model = f"--model {prepared}/llama --data {prepared}/questions.jsonl" if "vlm" in words else ""
    code, said = command([*words.split(), *tiny_model.split(), "--output-dir", "run"])
    (told,) = [each for each in said.splitlines() if each.startswith("autotelic: ")]
    assert code == 2 and re.search(line, told), said
    assert "Traceback" not in said and not (tmp_path / "run").exists()
