"""What the terminal and the report say of a run: words that follow the test, charts that can be read."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autotelic import cli

from .cases import Gives, Required, case


@case(
    "newcomer smaller: one success is not told in the plural",
    kind="report",
    modality="core",
    entry="audit",
    required=Gives(True),
    by="machine",
)
def _(folder: Path) -> object:
    from autotelic.rewards.audit import audit_scores

    audit = audit_scores([0.1, 0.2, 0.3, 0.4, 0.9], [0, 0, 0, 0, 1], name="the reward", on="reach")
    return "1 success and 4 failures" in audit.verdict


def _outcomes(**before_and_after: tuple[list[float], list[float]]) -> tuple[dict[str, Any], dict[str, Any]]:
    sides: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name, pair in before_and_after.items():
        for side, values in zip(sides, pair, strict=True):
            side[name] = {"success": values, "seeds": list(range(len(values)))}
    first, second = ({"iteration": 4 * i, "unit": "success", "outcomes": side} for i, side in enumerate(sides))
    return first, second


def _terminal(**before_and_after: tuple[list[float], list[float]]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        table = cli.comparison_table(*_outcomes(**before_and_after))
        assert table is not None
        cli._print(table)
    return said.getvalue()


@case(
    "newcomer 9: the terminal says what its brackets and its p are",
    kind="report",
    modality="core",
    entry="terminal",
    required=Gives([True, True, True]),
    by="machine",
)
def _(folder: Path) -> object:
    text = " ".join(_terminal(drawer=([0] * 20, [1] * 10 + [0] * 10), push=([0] * 20, [0] * 20)).split())
    return ["95 % interval" in text, "20 attempts" in text, "Holm" in text]


@case(
    "newcomer smaller: no zero has a sign in the terminal",
    kind="report",
    modality="core",
    entry="terminal",
    required=Gives(False),
    by="machine",
)
def _(folder: Path) -> object:
    return "-0" in _terminal(hill=([0] * 40, [0] * 40)) or "-0" in cli._percent(-0.0, (-0.0, 0.09))


# --- the report ----------------------------------------------------------------------------------


def _report(folder: Path, evaluations: dict[str, Any], metrics: list[dict[str, Any]] = (), **facts: Any) -> str:  # type: ignore[assignment]
    """The source of a run's report."""
    from autotelic.trainers.runs.report import write_report
    from autotelic.trainers.runs.run_folder import RunFolder

    recipe = facts.pop("recipe", "vla/evolve_vla")
    run = RunFolder.create(folder / "run", recipe=recipe, config={}, command="autotelic run")
    run.describe(**facts)
    for name, content in evaluations.items():
        run.write_json(f"evaluations/{name}", content)
    for record in metrics:
        run.append("metrics", record)
    return write_report(run).read_text()


def _words(source: str) -> str:
    """What a reader sees of a page."""
    import html
    import re

    body = source.partition("<body>")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).replace("\u00a0", " ").split())


def _pair(**before_and_after: tuple[list[float], list[float]]) -> dict[str, Any]:
    before, after = _outcomes(**before_and_after)
    return {"before": before, "after": after}


def report_case(name: str, required: Required) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    return case(name, kind="report", modality="core", entry="report", required=required, by="machine")


@report_case("newcomer 9: one episode more of forty is no rise", Gives([False, True]))
def _(folder: Path) -> object:
    text = _words(_report(folder, _pair(swing=([1] + [0] * 39, [1, 1] + [0] * 38))))
    return ["rose from" in text, "2.5 %" in text and "5.0 %" in text and "cannot be told from no change" in text]


@report_case("newcomer 9: a fall that is none is not told as one", Gives(False))
def _(folder: Path) -> object:
    return "fell from" in _words(_report(folder, _pair(swing=([1, 1] + [0] * 38, [1] + [0] * 39))))


@report_case("newcomer 9: a rise that the test finds is told as one", Gives(True))
def _(folder: Path) -> object:
    return "rose from 0.0 % to 50.0 %" in _words(_report(folder, _pair(swing=([0] * 40, [1] * 20 + [0] * 20))))


@report_case("newcomer smaller: nothing stays from 50 to 50", Gives([False, True]))
def _(folder: Path) -> object:
    half = [1] * 20 + [0] * 20
    text = _words(_report(folder, _pair(swing=(half, half))))
    return ["from 50.0 % to 50.0 %" in text, "stayed at 50.0 %" in text]


@report_case("newcomer 9: single tasks are told apart from their mean", Gives(True))
def _(folder: Path) -> object:
    tasks = {f"task-{i}": ([0] * 20, [1] * 4 + [0] * 16) for i in range(5)}
    text = _words(_report(folder, _pair(**tasks)))
    return "rose from 0.0 % to 20.0 %" in text and "no single category" in text.lower()


@report_case("newcomer 9: intervals that are not corrected are said to be not", Gives(True))
def _(folder: Path) -> object:
    text = _words(_report(folder, _pair(a=([0] * 20, [1] * 5 + [0] * 15), b=([0] * 20, [0] * 20))))
    return "not corrected" in text and "Holm" in text


@report_case("newcomer 9: a training reward is not called the judge", Gives([False, True]))
def _(folder: Path) -> object:
    before, after = _outcomes(seen=([0.3, 0.31, 0.3, 0.29], [0.4, 0.39, 0.41, 0.4]))
    before["unit"] = after["unit"] = "training reward"
    text = _words(_report(folder, {"before": before, "after": after}, recipe="diffusion/prdp"))
    return ["judge" in text.partition("What the gate did")[0].lower(), "training reward" in text]


@case(
    "newcomer 9: what is drawn without a judge is evaluated as the training reward",
    kind="report",
    modality="diffusion",
    entry="evaluation",
    required=Gives(["training reward", "judge"]),
    by="user",
)
def _(folder: Path) -> object:
    from types import SimpleNamespace

    from autotelic.diffusion.evaluation import unit_of

    alone: Any = SimpleNamespace(world=None, judge=None)
    judged: Any = SimpleNamespace(world=None, judge=lambda **columns: [])
    return [unit_of(alone), unit_of(judged)]


@report_case("newcomer 9: evaluations of other states are not joined to a curve", Gives(3))
def _(folder: Path) -> object:
    before, after = _outcomes(reach=([0] * 20, [1] * 8 + [0] * 12))
    middle = {**after, "iteration": 2}
    other = json.loads(json.dumps(after))
    other["outcomes"]["reach"] = {"success": [1] * 6 + [0] * 4, "seeds": list(range(1000, 1010))}
    evaluations = {"before": before, "iteration-000002": middle, "after": after, "best-40-50": other}
    curves = _report(folder, evaluations).partition("<figcaption>reach")[2].partition("</figure>")[0]
    return curves.count("<circle")


def _widths(source: str) -> list[str]:
    """Texts of small charts that leave the picture, by a letter's width of 0.62 of its height."""
    import re
    from xml.etree import ElementTree

    out = []
    for svg in re.findall(r"<svg.*?</svg>", source):
        picture = ElementTree.fromstring(svg)
        width = float(picture.attrib["viewBox"].split()[2])
        for text in picture.iter("text"):
            x, size = float(text.attrib["x"]), 6.3 * len(text.text or "")
            start = x - size * {"start": 0, "middle": 0.5, "end": 1}[text.attrib["text-anchor"]]
            if start < -1 or start + size > width + 1:
                out.append(str(text.text))
    return out


@report_case("newcomer 2: no label of a chart is cut off", Gives([]))
def _(folder: Path) -> object:
    rows = [
        {"iteration": i + 1, "objective/kl": kl, "objective/loss": loss, "objective/big": big, "objective/small": small}
        for i, (kl, loss, big, small) in enumerate(
            [(489299.0, -0.00046, -1.5e-7, 2.5e12), (1.0, -0.0033, -2.5e-7, 1e12), (512_345.0, 0.1, 1e-9, -3e12)]
        )
    ]
    return _widths(_report(folder, {}, rows))


@report_case("newcomer 2: what never changes is a line of text and no curve", Gives([False, True]))
def _(folder: Path) -> object:
    rows = [{"iteration": i, "rollouts": 320.0, "horizon_share": 1.0, "reward": i / 4} for i in range(1, 5)]
    source = _report(folder, {}, rows)
    return ["<figcaption>rollouts" in source, "rollouts 320" in _words(source)]


@report_case("newcomer 2: the same curve is drawn once", Gives([1, True]))
def _(folder: Path) -> object:
    rows = [{"iteration": i, "reward": i / 4, "reward/warm": i / 4, "reward/calm": -i / 8} for i in range(1, 5)]
    source = _report(folder, {}, rows)
    return [source.count("<figcaption>reward") + source.count("<figcaption>warm"), "warm" in _words(source)]


@report_case("newcomer 2: the ticks of an axis differ", Gives(True))
def _(folder: Path) -> object:
    import re

    rows = [{"iteration": i, "objective/ratio_max": 1 + i * 1e-5, "objective/far": 1e6 + i} for i in range(1, 5)]
    charts = re.findall(r"<svg.*?</svg>", _report(folder, {}, rows))
    ticks = [re.findall(r'<text class="tick" [^>]*text-anchor="end">([^<]*)<', chart) for chart in charts]
    return bool(charts) and all(len(set(each)) == len(each) for each in ticks)


@report_case("newcomer 2: a column that nothing is in is left out", Gives([False, True]))
def _(folder: Path) -> object:
    scores = _report(folder / "a", _pair(seen=([0.3, 0.4, 0.35], [0.4, 0.5, 0.6])))
    rates = _report(folder / "b", _pair(reach=([0] * 20, [1] * 20)))
    return ["<th>p</th>" in scores, "<th>p</th>" in rates]


@report_case("newcomer 2: no zero has a sign", Gives(["0.0", "+0.0", "0 to 9", "0.0\u00a0%", "+0.0 points", "0"]))
def _(folder: Path) -> object:
    from autotelic.numbers import Outcomes

    show, little = Outcomes(True), -1e-9
    words = [show.value(little), show.value(little, "+"), show.interval((little, 0.09)), show.with_unit(little)]
    return [*words, show.change(little), Outcomes(False).value(-0.0)]


@report_case("newcomer 2: the report says what was done", Gives([True, True, True]))
def _(folder: Path) -> object:
    done = {"demonstrations": "1 of drawer-open-v3", "policy": "a Gaussian per step", "success": "the simulator's own"}
    text = _words(_report(folder, _pair(drawer=([0] * 20, [1] * 20)), method=done))
    return [each in text for each in done.values()]


@report_case("newcomer 2: a control stands beside the gain", Gives(True))
def _(folder: Path) -> object:
    both = _pair(red=([0] * 20, [1] * 20))
    for each in both.values():
        each |= {"figures": {"red": {"blind": 0.35}}, "controls": {"blind": "guessing from the question alone"}}
    text = _words(_report(folder, both))
    return "guessing from the question alone" in text and "35.0" in text


@report_case("newcomer 2: the report says what to do next", Gives([True, True, True]))
def _(folder: Path) -> object:
    text = _words(_report(folder, _pair(drawer=([0] * 20, [1] * 20))))
    return [f"autotelic {name}" in text for name in ("eval", "record", "audit")]


@report_case("newcomer 2: a run that is not of a robot is not told to record episodes", Gives(False))
def _(folder: Path) -> object:
    return "autotelic record" in _words(_report(folder, _pair(red=([0] * 20, [1] * 20)), recipe="vlm/grpo"))


@report_case("newcomer 2: a video says which task it shows and whether it succeeded", Gives([True, False]))
def _(folder: Path) -> object:
    from PIL import Image

    from autotelic.trainers.runs.report import write_report
    from autotelic.trainers.runs.run_folder import RunFolder

    run = RunFolder.create(folder / "run", recipe="vla/evolve_vla", config={}, command="autotelic run")
    (place := run.samples / "videos").mkdir()
    Image.new("RGB", (8, 8)).save(place / "door-open-v3-100000000.webp")
    caption = {"door-open-v3-100000000": "open the door: before failed, after succeeded"}
    (place / "captions.json").write_text(json.dumps(caption))
    text = _words(write_report(run).read_text())
    return ["open the door: before failed, after succeeded" in text, "100000000" in text]


@report_case("newcomer 8: a reason for no videos does not stand beside videos", Gives(False))
def _(folder: Path) -> object:
    from PIL import Image

    from autotelic.trainers.runs.report import write_report
    from autotelic.trainers.runs.run_folder import RunFolder

    run = RunFolder.create(folder / "run", recipe="vla/evolve_vla", config={}, command="autotelic run")
    (place := run.samples / "videos").mkdir()
    Image.new("RGB", (8, 8)).save(place / "door-open.webp")
    (place / "missing.txt").write_text("cannot render\n")
    return "No videos" in _words(write_report(run).read_text())


@report_case("diffusion M8: sheets of large pictures do not make a report of hundreds of megabytes", Gives(True))
def _(folder: Path) -> object:
    import numpy as np
    from PIL import Image

    from autotelic.trainers.runs.report import write_report
    from autotelic.trainers.runs.run_folder import RunFolder

    run = RunFolder.create(folder / "run", recipe="diffusion/prdp", config={}, command="autotelic run")
    (place := run.samples / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    for side in ("before", "after"):
        Image.fromarray(noise).save(place / f"seen-{side}.png", compress_level=1)
    (place / "seen.txt").write_text("a cat\n")
    return write_report(run).stat().st_size < 2 * 2**20
