"""The report renders with everything, with nothing, and says the right thing in words and numbers."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from autotelic.trainers.charts import before_after, curve
from autotelic.trainers.comparison import audit, compare
from autotelic.trainers.report import write_report
from autotelic.trainers.run_folder import RunFolder
from autotelic.trainers.statistics import wilson

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")


def evaluation(iteration: int, **outcomes: tuple[list[int], list[float]]) -> dict[str, Any]:
    """category=(successes, scores); the episodes are the same in every evaluation."""
    return {
        "iteration": iteration,
        "unit": "success",
        "outcomes": {
            name: {"success": s, "score": score, "seeds": list(range(len(s)))} for name, (s, score) in outcomes.items()
        },
        "notes": ["20 held-out states per task"],
    }


BEFORE = evaluation(
    0,
    drawer=([0] * 15 + [1] * 5, [0.1] * 15 + [0.9] * 5),
    push=([1] * 10 + [0] * 10, [0.5] * 20),
    reach=([1] * 19 + [0], [0.5] * 20),
)
AFTER = evaluation(
    4,
    drawer=([1] * 15 + [1] * 5, [0.9] * 20),
    push=([1] * 8 + [0] * 12, [0.6] * 20),
    reach=([1] * 20, [0.5] * 20),
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", recipe="vla/evolve_vla", config={"seed": 0}, command="autotelic run <x>")


def text_of(path: Path) -> str:
    """The words a reader sees, checking on the way that tags balance."""
    stack: list[str] = []
    words: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "img", "line", "circle", "path"):
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in ("line", "circle", "path"):
                assert stack.pop() == tag

        def handle_data(self, data: str) -> None:
            if stack and stack[-1] != "style":
                words.append(data)

    Reader().feed(path.read_text())
    assert stack == []
    return " ".join(" ".join(words).replace("\u00a0", " ").split())


def test_an_empty_run_says_what_is_missing(folder: RunFolder) -> None:
    text = text_of(write_report(folder))
    for line in (
        "0 iterations",
        "evaluations/before.json and evaluations/after.json not written yet",
        "samples/videos and samples/images are empty",
        "metrics.jsonl is empty",
        "gate.jsonl is empty",
        "No audit",
        "No alarm",
        "autotelic run <x>",
        "states no label account",
    ):
        assert line in text


def test_a_full_run_tells_its_story(folder: RunFolder) -> None:
    folder.describe(label_account="gate_labels: none")
    for i in range(1, 5):
        folder.append("metrics", {"iteration": i, "reward": i / 4, "objective/loss": math.nan, "time/act": 1.0})
    folder.write_json("evaluations/before", BEFORE)
    folder.write_json("evaluations/iteration-000002", BEFORE | {"iteration": 2})
    folder.write_json("evaluations/after", AFTER)
    evidence = {name: {"candidate": 0.5, "base": 0.4, "promoted": 0.4, "upper": 0.05} for name in BEFORE["outcomes"]}
    folder.append(
        "gate", {"iteration": 2, "decision": "repair", "reason": "fell", "harmed": ["push"], "evidence": evidence}
    )
    folder.append("gate", {"iteration": 4, "decision": "keep", "reason": "fine", "harmed": [], "evidence": evidence})
    folder.append("alarms", {"iteration": 4, "alarm": "reward up, judge down", "detail": "push <b>"})
    (folder.samples / "videos").mkdir()
    (folder.samples / "videos" / "missing.txt").write_text("rendering needs libosmesa6\n")
    (folder.samples / "images").mkdir()
    for name in ("cup-before.png", "cup-after.png", "alone.png"):
        (folder.samples / "images" / name).write_bytes(PIXEL)
    path = write_report(folder)
    text, source = text_of(path), path.read_text()

    # means over drawer, push, reach: (25 + 50 + 95) / 3 = 56.7 and (100 + 40 + 100) / 3 = 80
    assert "rose from 56.7 % to 80.0 % (+23.3 points" in text
    assert "Significantly better: drawer. Significantly worse: none." in text
    assert "kept 1 of 2 updates, asked for repair once." in text
    assert "on push the reward cannot tell success from failure, and rose while success fell" in text
    assert "cannot be judged on so few failures" in text  # reach, in the table only
    assert text.index("No videos: rendering needs libosmesa6") > 0 and "No images" not in text
    assert source.count("data:image/png;base64,") == 3
    assert source.index('alt="cup-before"') < source.index('alt="cup-after"')
    assert "push &lt;b&gt;" in source and "gate_labels: none" in text and "20 held-out states" in text
    assert "no finite value" in text
    low, high = wilson(20, 20)
    assert f"{100 * low:.0f} to {100 * high:.0f}" in text


def test_the_report_needs_nothing_from_outside(folder: RunFolder) -> None:
    folder.write_json("evaluations/before", BEFORE)
    folder.write_json("evaluations/after", AFTER)
    source = write_report(folder).read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", source)


def test_comparison_by_hand() -> None:
    found = compare(BEFORE, AFTER)
    assert found is not None and found.rates
    drawer, push, reach = found.rows
    assert (drawer.gains, drawer.losses, push.gains, push.losses) == (15, 0, 0, 2)
    # exact McNemar 2 * 2^-15, 2 * 2^-2, and 1; Holm multiplies them by 3, 2 and 1
    assert drawer.p == pytest.approx(3 * 2**-14) and push.p == 1.0 and reach.p == 1.0
    assert drawer.rose and not push.fell
    assert found.mean.difference == pytest.approx((0.75 - 0.1 + 0.05) / 3)
    assert found.mean.difference_interval is not None and found.mean.difference_interval[0] > 0


def test_other_episodes_are_not_paired() -> None:
    other = json.loads(json.dumps(AFTER))
    other["outcomes"]["drawer"]["seeds"] = list(range(100, 120))
    found = compare(BEFORE, other)
    assert found is not None
    assert found.rows[0].difference == 0.75 and found.rows[0].difference_interval is None and found.rows[0].p is None
    assert found.mean.difference_interval is None and found.rows[1].p is not None
    assert compare(BEFORE, evaluation(1, other=([1], [1.0]))) is None


def test_scores_other_than_rates_are_compared_as_numbers(folder: RunFolder) -> None:
    for name, values in (("before", [0.25, 1.5, 2.0]), ("after", [1.25, 1.75, 3.5])):
        outcomes = {"portraits": {"success": values, "seeds": [1, 2, 3]}}
        folder.write_json(f"evaluations/{name}", {"iteration": 0, "unit": "aesthetic score", "outcomes": outcomes})
    text = text_of(write_report(folder))
    assert "Mean aesthetic score over 1 category rose from 1.25 to 2.17 (+0.917" in text and "points" not in text


def test_audit_by_hand() -> None:
    drawer, push, reach = audit(BEFORE, AFTER)
    assert drawer.auc == 1.0 and (drawer.successes, drawer.failures) == (25, 15)
    assert drawer.finding == "tells success from failure" and not drawer.doubtful
    # push: of 18 successes 10 score 0.5 and 8 score 0.6, of 22 failures 10 and 12
    assert push.auc == pytest.approx((8 * 10 + 0.5 * (10 * 10 + 8 * 12)) / (18 * 22)) and push.doubtful
    assert reach.finding.startswith("cannot be judged") and not reach.doubtful


def test_the_model_card(folder: RunFolder) -> None:
    assert "not been evaluated" in folder.write_card().read_text()
    folder.describe(label_account="gate_labels: none")
    folder.write_json("evaluations/before", BEFORE)
    folder.write_json("evaluations/after", AFTER)
    card = folder.write_card(citation=["EVOLVE-VLA, arXiv 2512.14666"]).read_text()
    assert "| drawer | 20 | 25.0 [11.2, 46.9] | 100.0 [83.9, 100.0] | +75.0" in card
    assert "gate_labels: none" in card and "- EVOLVE-VLA" in card and "autotelic run <x>" in card


def test_charts_place_values_on_their_scale() -> None:
    line = ElementTree.fromstring(curve([(0, 0.0), (1, math.nan), (2, 1.0)], rates=True))
    path = line.find("path[@class='line']")
    assert path is not None
    (x0, y0), (x1, y1) = re.findall(r"M([\d.]+) ([\d.]+)", path.attrib["d"])
    assert float(x0) < float(x1) and float(y0) > float(y1), "two pieces, as the NaN breaks the line"
    found = compare(BEFORE, AFTER)
    assert found is not None
    dots = ElementTree.fromstring(before_after(found.rows, rates=True)).findall("circle")
    (before, after), span = [float(dot.attrib["cx"]) for dot in dots[:2]], 860 - 24 - 190
    assert (after - before) / span == pytest.approx(0.75, abs=1e-3)
    flat = ElementTree.fromstring(curve([(1, 5.0), (2, 5.0)])).find("path")
    assert flat is not None and len(set(re.findall(r" ([\d.]+)", flat.attrib["d"]))) == 1
