"""What does it cost to extend the toolkit? Each file of examples/ against the installed wheel, and no file edited.

    python benchmarks/extension_cost.py [--quick] [--json FILE] [--only a b …]

The wheel is built, installed into a folder that is made read-only, and every example is copied to an empty folder
without the repository and run there by the command line. Of each: that its plugin was called and felt (weights differ
from those of the same run without it, or that run is refused); that a run which is interrupted after its first
iteration and resumed ends bit-equal to one that is not; that the simulator ran in another process; how many files of
the installed package were edited; lines and seconds. ``tests/test_examples.py`` makes the same runs in its own process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, parser_of, save
from resume import differences

from autotelic.trainers.runs.run_folder import RunFolder

Run = Callable[[Sequence[str]], tuple[int, str]]
"""Words of ``autotelic`` -> exit code, and what it printed."""

TINY = "--debug --keep-last 9 --gate none"
TEXT = f"{TINY} --model llama --lora-rank 0 --data questions.jsonl --max-new-tokens 3 --rewards reward.py:letters"
PIXART = f"{TINY} --model pixart --data prompts.txt --rewards colourfulness --num-inference-steps 2"
GEMMA = f"{TINY} --model gemma3 --lora-rank 0 --data pictures.jsonl --max-new-tokens 3 --rewards reward.py:letters"
ARM = "vla/evolve_vla --debug --keep-last 9 --tasks arm --obs-type pixels"


@dataclass(frozen=True)
class Example:
    """An extension and how it is tried.

    Attributes:
        letter, file: (a) to (i), and the file in examples/.
        command: of ``autotelic``.
        control: the same without the plugin.
        refused: a part of the line by which the control is refused, where it is.
        called: metrics that only the plugin tells of.
        learners: those whose weights the plugin moves.
        same: the plugin watches, and the weights are those of the control.
    """

    letter: str
    file: str
    command: str
    control: str
    refused: str = ""
    called: tuple[str, ...] = ()
    learners: tuple[str, ...] = ("policy",)
    same: bool = False


ALL = (
    Example(
        *("a", "objective.py", f"run vlm/grpo {TEXT} --epochs 2 --objective objective.py:cispo"),
        *(f"run vlm/grpo {TEXT} --epochs 2", "", ("objective/weight_max",)),
    ),
    Example(
        *("b", "curriculum.py", f"run vlm/grpo {TEXT} --curriculum curriculum.py:BOTS"),
        *(f"run vlm/grpo {TEXT}", "", ("curriculum/pass_rate",)),
    ),
    Example(
        *("c", "two_players.py", f"run two_players.py {TINY.replace('none', 'canary')}"),
        *(f"run vlm/grpo {TINY}", "", ("solver/objective/loss", "checker/objective/loss"), ("solver", "checker")),
    ),
    Example(
        *("d", "memory.py", f"run memory.py {TEXT.replace('none', 'canary')}"),
        *(f"run vlm/grpo {TEXT}", "", ("memory/notes",)),
    ),
    Example(
        *("e", "pixart.py", f"run diffusion/prdp --use pixart.py {PIXART}"),
        *(f"run diffusion/prdp {PIXART}", "no adapter for PixArtAlphaPipeline"),
    ),
    Example("f", "two_cameras.py", f"run {ARM} --use two_cameras.py witness.py", f"run {ARM}", 'environment "arm"'),
    Example(
        *("g", "vlm_family.py", f"run vlm/grpo --use vlm_family.py {GEMMA}"),
        *(f"run vlm/grpo {GEMMA}", "token_type_ids"),
    ),
    Example(
        *("h", "tracker.py", f"run vlm/grpo {TEXT} --trackers tracker.py:CsvTracker"),
        *(f"run vlm/grpo {TEXT}",),
        same=True,
    ),
    Example(
        *("i", "text_recipe.py", f"run text_recipe.py {TEXT.replace('--rewards reward.py:letters', '')}"),
        f"run vlm/grpo {TEXT}",
    ),
)
EXAMPLES = tuple(example for example in ALL if (ROOT / "examples" / example.file).is_file())

STOP = """import os, signal
from autotelic import Callback

class Stop(Callback):
    def on_iteration(self, iteration, metrics):
        if iteration == 1:
            os.kill(os.getpid(), signal.SIGINT)
"""
WITNESS = """import os
from pathlib import Path
from autotelic.plugins import module_at

arm = module_at(str(Path(__file__).with_name("two_cameras.py"))).Arm
reset = arm.reset

def told(self, **how):
    if "WITNESS" in os.environ:
        with open(os.environ["WITNESS"], "a") as file:
            file.write(f"{os.getpid()} ")
    return reset(self, **how)

arm.reset = told
"""
REWARD = "def letters(completions, **columns):\n    return [len(set(said)) / 26 for said in completions]\n"


def prepare(folder: Path) -> None:
    """An empty folder gets the examples, tiny models, questions, prompts, a reward and what interrupts a run."""
    from PIL import Image

    from autotelic.testing import pipelines, vlms

    (folder / "pids").write_text(f"{os.getpid()} ")
    for example in EXAMPLES:
        shutil.copy(ROOT / "examples" / example.file, folder)
    for name, text in (("stop", STOP), ("witness", WITNESS), ("reward", REWARD)):
        (folder / f"{name}.py").write_text(text)
    models = {"llama": lambda: vlms.text("llama")}
    if any(example.letter == "g" for example in EXAMPLES):
        models["gemma3"] = lambda: vlms.vlm("gemma3")
    for name, make in models.items():
        for part in make():
            part.save_pretrained(folder / name)
    pipelines.pixart_alpha().save_pretrained(folder / "pixart")
    colours, things, rows = ("red", "green", "blue"), ("circle", "square", "dog", "cat"), []
    for number in range(40):
        colour, thing = colours[number % 3], things[number % 4]
        many = ("one", "two", "three", "four", "five")[number % 5]
        rows.append({"prompt": f"what is the {many} {thing} in the picture ?", "answer": colour})
        if number < 3:
            Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{**row, "image": f"{row['answer']}.png"} for row in rows]
    (folder / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.txt").write_text("".join(f"a {colour} {thing}\n" for colour in colours for thing in things))


def tried(example: Example, run: Run, folder: Path, whole: bool = True) -> dict[str, Any]:
    """What became of an example in a folder that was prepared.

    Args:
        whole: compare the resumed run with one that was not interrupted; without, a run is interrupted and resumed,
            and compared with the control alone.

    Raises:
        AssertionError: the plugin was not called, or not felt; the run does not resume; the simulator ran in the
            process of the run.
    """
    started, where = time.perf_counter(), folder / example.letter
    words = example.command.split()
    stop = ["--trackers", "stop.py:Stop"] if "--trackers" not in words else ["stop.py:Stop"]
    code, said = run([*words, *stop, "--output-dir", f"{where}/run"])
    assert code == 130, f"the run was to be interrupted: exit code {code}\n{said}"
    assert len(RunFolder.open(where / "run").metrics()) == 1
    code, said = run(["resume", f"{where}/run"])
    assert code == 0, f"the run does not resume: exit code {code}\n{said}"
    resumed = RunFolder.open(where / "run")
    if whole:
        code, said = run([*words, "--output-dir", f"{where}/straight"])
        assert code == 0, said
        wrong = differences(RunFolder.open(where / "straight"), resumed)
        assert not wrong, f"the resumed run differs from one that was not interrupted: {wrong[:3]}"
    code, said = run([*example.control.split(), "--output-dir", f"{where}/control"])
    assert code == (2 if example.refused else 0) and example.refused in said, said
    control = None if example.refused else RunFolder.open(where / "control")
    figures = {"called": called(example, resumed), "felt": felt(example, resumed, control)}
    if example.letter == "f":
        figures["other_processes"] = len(processes(folder))
    return figures | {"resumed": "bit-equal" if whole else "yes", "seconds": round(time.perf_counter() - started, 1)}


def called(example: Example, run: RunFolder) -> str:
    """How it shows that the plugin was called."""
    rows = run.metrics()
    lacking = [name for name in example.called if not all(name in row for row in rows)]
    assert not lacking and len(rows) == 2, f"{len(rows)} iterations without the metrics {lacking}"
    if example.letter == "h":
        first, *lines = (run.path / "metrics.csv").read_text().splitlines()
        assert first.startswith("iteration,") and [line.split(",")[0] for line in lines] == ["1", "2"], lines
        return "metrics.csv has both iterations"
    if example.letter == "d":
        figures = run.evaluations()["after"]["figures"]["questions"]
        assert "policy alone" in figures, "the memory was not evaluated as a part of the system"
    if example.refused:
        return "the run is refused without"
    return f"metrics: {', '.join(example.called)}" if example.called else f"reward {rows[0]['reward']:.3f}"


def felt(example: Example, run: RunFolder, control: RunFolder | None) -> str:
    """How far weights are from the control's, or where there is none from the start."""
    last = run.load_checkpoint("latest")["now"]
    if control is not None:
        other = control.load_checkpoint("latest")["now"]["policy"]["policy"]
    else:
        other = run.load_checkpoint("iteration-000000")["now"]["policy"]["policy"]
    farthest = 0.0
    for name in example.learners:
        ours = last[name]["policy"]
        farthest = max(float((ours[key].float() - other[key].float()).abs().max()) for key in ours)
        assert (farthest == 0) == example.same, f"the weights of {name} are {farthest:g} from those without the plugin"
    whom = "the start" if control is None else "the control"
    return f"weights equal those of {whom}" if example.same else f"weights {farthest:.2g} from those of {whom}"


def processes(folder: Path) -> set[str]:
    """Where the simulator was reset, but in the processes that ran the recipe."""
    resets, runs = (set((folder / name).read_text().split()) for name in ("resets", "pids"))
    assert resets - runs, f"the simulator ran in the process of the run alone: {resets}"
    return resets - runs


# --- the wheel ----------------------------------------------------------------------------------


def installed(scratch: Path) -> Path:
    """A folder, read-only, with the wheel of this repository installed."""
    tree, target = scratch / "tree", scratch / "site"
    tree.mkdir()
    for name in ("src", "vlm", "vla", "diffusion", "envs", "rewards", "trainers"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    quiet: Mapping[str, Any] = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", scratch, tree], **quiet)
    (wheel,) = scratch.glob("*.whl")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel], **quiet)
    shutil.rmtree(tree)
    subprocess.run(["chmod", "-R", "a-w", target], check=True)
    return target


def hashes(site: Path) -> dict[str, str]:
    """Every installed file but compiled ones, with the SHA-256 of its content."""
    files = (path for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(site)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def command_line(site: Path, folder: Path) -> Run:
    """``autotelic`` of the installed wheel, in a folder."""
    environment = os.environ | {"PYTHONPATH": str(site), "WITNESS": str(folder / "resets")}

    def run(words: Sequence[str]) -> tuple[int, str]:
        command = [sys.executable, "-P", "-m", "autotelic", *words]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=folder, env=environment, text=True, **streams)
        said, _ = process.communicate()
        with (folder / "pids").open("a") as file:
            file.write(f"{process.pid} ")
        return process.returncode, said

    code = [sys.executable, "-P", "-c", "import autotelic; print(autotelic.__file__)"]
    where = subprocess.run(code, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout
    assert Path(where.strip()).is_relative_to(site), f"{where} is not the wheel"
    return run


def each(letters: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The figures of every example."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        scratch = Path(name).resolve()
        site, folder = installed(scratch), scratch / "empty"
        folder.mkdir()
        prepare(folder)
        run, before = command_line(site, folder), hashes(site)
        for example in EXAMPLES:
            if example.letter in letters:
                figures = tried(example, run, folder)
                after = hashes(site)
                edited = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
                lines = len((ROOT / "examples" / example.file).read_text().splitlines())
                yield {
                    "example": example.letter,
                    "file": example.file,
                    "files_edited": len(edited),
                    "lines": lines,
                    **figures,
                    "command": f"autotelic {example.command}",
                }
        subprocess.run(["chmod", "-R", "u+w", site], check=True)


def main() -> None:
    parser = parser_of(__doc__, "(a), (h) and (i)")
    parser.add_argument("--only", nargs="+", choices=[example.letter for example in EXAMPLES])
    options = parser.parse_args()
    letters = options.only or (["a", "h", "i"] if options.quick else [example.letter for example in EXAMPLES])
    rows = []
    for row in each(letters):
        rows.append(row)
        print(json.dumps(row), flush=True)
    figures = {
        "files_edited": {row["example"]: row["files_edited"] for row in rows},
        "longest": max(row["lines"] for row in rows),
        "examples": rows,
    }
    save(options, figures)
    print(json.dumps({key: value for key, value in figures.items() if key != "examples"}))


if __name__ == "__main__":
    main()
