"""The report renders with everything, with nothing, and says the right thing in words and numbers."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from autotelic.statistics import wilson
from autotelic.trainers.runs.charts import before_after, curve, trade_off
from autotelic.trainers.runs.comparison import audit, compare
from autotelic.trainers.runs.evaluations import figures_of, known
from autotelic.trainers.runs.report import in_short, write_report
from autotelic.trainers.runs.run_folder import RunFolder

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
    assert "Of single categories, drawer rose, with p corrected for their number." in text
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
    assert "Aesthetic score on portraits was 1.25 before and 2.17 after (+0.917" in text and "points" not in text
    assert "which cannot be told from no change" in text  # differences 1, 0.25, 1.5: 0.917 +- 4.30 * 0.629 / sqrt(3)


def test_audit_by_hand() -> None:
    drawer, push, reach = audit(BEFORE, AFTER)
    assert drawer.auc == 1.0 and (drawer.successes, drawer.failures) == (25, 15)
    assert drawer.finding == "tells success from failure" and not drawer.doubtful
    # push: of 18 successes 10 score 0.5 and 8 score 0.6, of 22 failures 10 and 12
    assert push.auc == pytest.approx((8 * 10 + 0.5 * (10 * 10 + 8 * 12)) / (18 * 22)) and push.doubtful
    assert reach.finding.startswith("cannot be judged") and not reach.doubtful


def test_an_outcome_that_is_no_rate_is_audited_at_its_median() -> None:
    before = {"outcomes": {"sea": {"success": [0.1, 0.2, 0.3, 0.4, 0.5], "score": [1, 2, 3, 4, 5]}}}
    after = {"outcomes": {"sea": {"success": [0.6, 0.7, 0.8, 0.9, 1.0], "score": [6, 7, 8, 9, 10]}}}
    (row,) = audit(before, after)
    assert row.auc == 1.0 and (row.successes, row.failures) == (5, 5)


def test_the_model_card(folder: RunFolder) -> None:
    assert "not been evaluated" in folder.write_card().read_text()
    folder.describe(label_account="gate_labels: none")
    folder.write_json("evaluations/before", BEFORE)
    folder.write_json("evaluations/after", AFTER)
    card = folder.write_card(citation=["EVOLVE-VLA, arXiv 2512.14666"]).read_text()
    assert "| drawer | 20 | 25.0 [11 to 47] | 100.0 [84 to 100] | +75.0" in card
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


def test_sheets_show_their_prompts_row_by_row(folder: RunFolder) -> None:
    place = folder.samples / "images"
    place.mkdir()
    for side in ("before", "after"):
        Image.new("RGB", (300, 200)).save(place / f"seen-{side}.png")  # two rows of 100 pixels
        Image.new("RGB", (300, 300)).save(place / f"large_{side}.png")  # two rows of 150
    (place / "broken-after.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(place / "alone.png")
    (place / "seen.txt").write_text("a <red> circle\na blue square\n")
    (place / "large.txt").write_text("a cat\na dog\n")
    (place / "broken.txt").write_bytes(b"\xff\n")
    (place / "unused.txt").write_text("never drawn\n")
    path = write_report(folder)
    source, text = path.read_text(), text_of(path)
    sheets = {}
    for part in source.split('<figure class="sheet"')[1:]:
        name = re.search(r"<figcaption>(.*?)</figcaption>", part)
        assert name is not None
        sheets[name[1]] = part.split("</figure>")[0]
    assert set(sheets) == {"seen", "large", "broken"}
    seen = sheets["seen"]
    assert re.findall(r"<small>(\w+)</small>", seen) == ["before", "after"] and "--sides: 2" in seen
    assert seen.index("a &lt;red&gt; circle") < seen.index("a blue square") < seen.index('alt="seen-before"')
    assert seen.index('alt="seen-before"') < seen.index('alt="seen-after"') and seen.count('class="pixels"') == 2
    assert 'alt="large_before"' in sheets["large"] and "pixels" not in sheets["large"]
    assert "--sides: 1" in sheets["broken"] and "pixels" not in sheets["broken"]
    assert "never drawn" not in text and "No samples" not in text
    assert source.count("data:image/png;base64,") == 6
    assert re.search(r'<div class="pair">\s*<div><img [^>]*alt="alone" class="pixels">', source)


def charts_of(path: Path) -> dict[str, str]:
    """The small charts of a report by their captions."""
    return dict(re.findall(r"<figure><figcaption>([^<]*)</figcaption>(<svg.*?</svg>)</figure>", path.read_text()))


def test_rewards_are_drawn_over_reward_queries(folder: RunFolder) -> None:
    for i, queries in enumerate((1_000, 1_100, 3_000), start=1):
        rewards = {"reward": 0.5 * i, "reward/clip": 0.2 / i, "category/cats": 0.1 + i}
        folder.append("metrics", {"iteration": i, **rewards, "objective/loss": -i, "queries": queries})
    path = write_report(folder)
    charts = charts_of(path)
    for name in ("reward", "clip", "category/cats"):
        chart = ElementTree.fromstring(charts[name])
        assert [each.text for each in chart.findall("text")][-4:-1] == ["1,000", "reward queries", "3,000"]
        first, second, third = (float(each.attrib["cx"]) for each in chart.findall("circle"))
        assert (second - first) / (third - first) == pytest.approx(0.05, abs=1e-3)
    for name in ("objective/loss", "queries"):
        assert ">iteration<" in charts[name] and "reward queries" not in charts[name]
    assert "3 iterations of vla/evolve_vla and 3,000 reward queries." in text_of(path)


@pytest.mark.parametrize("counts", [(10, 20, 10), (10, None, 20), (None, None, None)])
def test_without_a_count_that_grows_rewards_are_drawn_over_iterations(
    folder: RunFolder, counts: tuple[int | None, ...]
) -> None:
    for i, queries in enumerate(counts, start=1):
        folder.append("metrics", {"iteration": i, "reward": i} | ({} if queries is None else {"queries": queries}))
    path = write_report(folder)
    assert ">iteration<" in charts_of(path)["reward"] and "reward queries" not in text_of(path)


def test_trade_off_places_a_dot_per_iteration() -> None:
    points = [(1, 0.0, 1.0), (2, 4.0, 3.0), (3, math.nan, 2.0), (4, 1.0, math.inf), (5, 2.0, 2.0)]
    markup = trade_off(points, "divergence <a>", "reward")
    assert markup is not None
    chart = ElementTree.fromstring(markup)
    dots = {each.findtext("title"): each.attrib for each in chart.findall("circle")}
    assert [each["class"] for each in dots.values()] == ["mark", "before dot", "after dot"]
    middle, start, end = ((float(dot["cx"]), float(dot["cy"])) for dot in dots.values())
    assert end[0] == pytest.approx((start[0] + middle[0]) / 2, abs=0.1) and start[0] < middle[0]
    assert end[1] == pytest.approx((start[1] + middle[1]) / 2, abs=0.1) and start[1] > middle[1]
    path = chart.find("path")
    assert path is not None
    numbers = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", path.attrib["d"])]
    assert numbers == [start, middle, end], "the line goes in the order of time"
    words = [each.text for each in chart.findall("text")]
    assert {"divergence <a>", "reward", "start, iteration 1", "end, iteration 5"} <= set(words)
    assert next(iter(dots)) == "iteration 2: divergence <a> 4, reward 3"
    assert trade_off(points[:1], "a", "b") is None and trade_off([], "a", "b") is None


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({"objective/log_ratio_start": 1.0, "objective/kl_reference": 2.0}, "reference (objective/kl_reference)"),
        ({"solver/kl_reference": 1.0, "solver/kl_start": 2.0}, "start (solver/kl_start)"),
        ({"objective/kl_start": None, "objective/log_ratio_start": 2.0}, "start (objective/log_ratio_start)"),
        ({"objective/kl": 1.0, "objective/kl_proximal": 1.0}, ""),
    ],
)
def test_the_first_divergence_that_is_there_is_drawn(folder: RunFolder, metrics: dict[str, Any], shown: str) -> None:
    for i in (1, 2):
        folder.append("metrics", {"iteration": i, "reward": i} | metrics)
    text = text_of(write_report(folder))
    assert (f"divergence from the {shown}" in text) if shown else "reward against divergence" not in text
    assert ("may fall below zero" in text) == ("log_ratio" in shown)


def test_a_divergence_without_a_reward_is_no_chart(folder: RunFolder) -> None:
    for i in (1, 2):
        folder.append("metrics", {"iteration": i, "objective/kl_start": 1.0})
    assert "reward against divergence" not in text_of(write_report(folder))


DRAWN = {"unit": "judge", "notes": ["same noise"]}
FIRST = DRAWN | {
    "iteration": 0,
    "outcomes": {"seen": {"success": [0, 1, 0, 1], "score": [0.0, 1.0, 0.0, 1.0], "seeds": [1, 2, 3, 4]}},
    "figures": {"seen": {"reward": -1.5, "kl": 0.0}, "unseen": {"reward": None}},
}
SECOND = DRAWN | {
    "iteration": 8,
    "outcomes": {"seen": {"success": [0, 1, 1, 1], "score": [0.0, 1.0, 1.0, 1.0], "seeds": [1, 2, 3, 4]}},
    "figures": {"seen": {"reward": -0.12345, "kl": 4.5, "diversity": 0.5}},
}


def test_figures_stand_side_by_side(folder: RunFolder) -> None:
    folder.write_json("evaluations/before", FIRST)
    folder.write_json("evaluations/after", SECOND)
    source = write_report(folder).read_text()
    table = source.split("Further figures")[1].split("</table>")[0]
    rows = [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row) for row in table.split("</tr>")]
    assert rows[:3] == [
        ["", "reward", "kl", "diversity"],
        ["seen", "-1.5 → -0.123", "0 → 4.5", "n/a → 0.5"],
        ["unseen", "n/a → n/a", "n/a → n/a", "n/a → n/a"],
    ]
    assert "| reward | -1.5 | -0.1235 | n/a | n/a |" in folder.write_card().read_text()
    alone = figures_of(FIRST, None)
    assert alone is not None and alone.rows[0][1][0][0] == -1.5 and math.isnan(alone.rows[0][1][0][1])
    assert figures_of(BEFORE, AFTER) is None and figures_of(None, None) is None
    folder.write_json("evaluations/before", BEFORE)
    folder.write_json("evaluations/after", AFTER)
    assert "Further figures" not in write_report(folder).read_text()


def test_words_fit_pictures_as_well_as_robots(folder: RunFolder) -> None:
    folder.write_json("evaluations/before", FIRST)
    folder.write_json("evaluations/after", SECOND)
    evidence = {"probe": {"candidate": 0.5, "base": 0.4, "upper": 0.05}}
    folder.append("gate", {"iteration": 8, "decision": "keep", "reason": "", "harmed": [], "evidence": evidence})
    text = text_of(write_report(folder))
    assert "Outcome by the judge on seen was 50.0 % before and 75.0 % after" in text
    assert "seen 4 50.0 " in text, "four attempts"
    assert "Does the evaluation agree?" in text and "evaluation: judge" in text and "judge attempts before" in text
    # the gate's probes are not among the evaluation's categories, whose mean rose by 25 points
    assert "+25.0 points (mean)" in text
    assert "oracle" not in text and "episode" not in text.split("Next")[0]


def test_what_fell_below_its_start_comes_first(folder: RunFolder) -> None:
    """Ten of ten lost is told apart from chance, one of ten is not; what rose is not named."""
    for name, iteration, outcomes in (
        ("before", 0, {"a": [1] * 10, "b": [1] * 10, "c": [0] * 10}),
        ("after", 4, {"a": [1] * 9 + [0], "b": [0] * 10, "c": [1] * 10}),
    ):
        pairs = {category: (values, [float(v) for v in values]) for category, values in outcomes.items()}
        folder.write_json(f"evaluations/{name}.json", evaluation(iteration, **pairs))
    doubtful = "a (100.0 % to 90.0 %, which cannot be told from no change)"
    told = f"Below the start at the end: b (100.0 % to 0.0 %) and {doubtful}."
    assert told + " The run made" in text_of(write_report(folder))
    assert told in in_short(folder).replace("\xa0", " ")
    folder.write_json("evaluations/after.json", folder.evaluations()["before"])
    assert "Below the start" not in text_of(write_report(folder))


def test_waiting_and_stopping_are_told(folder: RunFolder) -> None:
    decisions = ("keep", "wait", "repair", "wait", "rollback", "wait")
    for i, decision in enumerate(decisions, start=1):
        folder.append("gate", {"iteration": 2 * i, "decision": decision, "stop": i == len(decisions)})
    path = write_report(folder)
    text = text_of(path)
    told = "The gate kept 1 of 6 updates, waited 3 times, asked for repair once, rolled back once."
    assert f"{told} It stopped the run at iteration 12." in text
    timeline = path.read_text().split('<ol class="timeline">')[1].split("</ol>")[0]
    marks = re.findall(r'<li class="(\w+)"><b>(\d+)</b>(\w+)</li>', timeline)
    assert marks == [(d, str(2 * i), d) for i, d in enumerate(decisions, start=1)] + [("stop", "12", "stop")]
    assert "wait : not better than the best so far" in text and "wait, stop" in text
    card = folder.write_card().read_text()
    assert "The gate decided 6 times: keep 1, wait 3, repair 1, rollback 1." in card
    assert "It stopped the run at iteration 12." in card


def test_a_gate_that_never_waits_is_told_as_before(folder: RunFolder) -> None:
    folder.append("gate", {"iteration": 2, "decision": "keep"})
    text = text_of(write_report(folder))
    assert "The gate kept 1 of 1 update." in text and "wait :" not in text and "stop" not in text.split("Next")[0]


def test_attempts_without_a_known_outcome_are_left_out(folder: RunFolder) -> None:
    holes = {"success": [1, math.nan, 0, 1], "score": [1.0, 2.0, math.nan, 4.0], "seeds": [1, 2, 3, 4]}
    folder.write_json("evaluations/before", {"outcomes": {"seen": holes, "lost": {"success": [math.nan]}}})
    folder.write_json("evaluations/after", {"outcomes": {"seen": holes}, "figures": {"seen": {"kl": math.inf}}})
    read = known(folder.evaluations()["before"])
    assert set(read["outcomes"]) == {"seen"} and read["outcomes"]["seen"]["success"] == [1.0, 0.0, 1.0]
    assert read["outcomes"]["seen"]["seeds"] == [1, 3, 4] and math.isnan(read["outcomes"]["seen"]["score"][1])
    text = text_of(write_report(folder))
    assert "stayed at 66.7 %" in text and "seen: 1 of 4 attempts have no known outcome." in text
    assert "| seen | 3 | 66.7" in folder.write_card().read_text()


@pytest.mark.parametrize("content", [{}, {"outcomes": {}}, {"outcomes": {"seen": {}}, "figures": {"seen": {}}}])
def test_evaluations_that_hold_nothing_do_not_stop_the_report(folder: RunFolder, content: dict[str, Any]) -> None:
    for name in ("before", "iteration-000001", "after"):
        folder.write_json(f"evaluations/{name}", content)
    folder.append("gate", {"iteration": 0, "decision": "wait"})
    assert "share no category" in text_of(write_report(folder))
    assert "share no category" in folder.write_card().read_text()


def test_outcomes_that_are_not_rates_are_explained_and_audited(folder: RunFolder) -> None:
    for name, values in (("before", [0.25, 1.5, 2.0]), ("after", [1.25, 1.75, 3.5])):
        outcomes = {"portraits": {"success": values, "score": values, "seeds": [1, 2, 3]}}
        folder.write_json(f"evaluations/{name}", {"iteration": 0, "unit": "judge", "outcomes": outcomes})
    text = text_of(write_report(folder))
    assert "95 % intervals by Student" in text and "McNemar" not in text
    assert "McNemar" not in folder.write_card().read_text()


def scored(**pairs: tuple[list[float], list[float]]) -> dict[str, dict[str, Any]]:
    """category=(before, after) as two evaluations of the same episodes."""
    sides = [{c: {"success": pair[i], "seeds": list(range(len(pair[i])))} for c, pair in pairs.items()} for i in (0, 1)]
    return {name: {"unit": "score", "outcomes": side} for name, side in zip(("before", "after"), sides, strict=True)}


def test_without_a_test_the_interval_decides_the_words(folder: RunFolder) -> None:
    # differences 1, 1.1, 0.9: 1 +- 4.30 * 0.1 / sqrt(3) = 0.75 to 1.25
    for name, content in scored(a=([1, 2, 3], [2, 3.1, 3.9])).items():
        folder.write_json(f"evaluations/{name}", content)
    assert "Score on a rose from 2 to 3 (+1" in text_of(write_report(folder))
    content = scored(a=([1, 2, 3], [0.0, 0.9, 2.1]))["after"]
    folder.write_json("evaluations/after", content)
    assert "Score on a fell from 2 to 1 (-1" in text_of(write_report(folder))
    content["outcomes"]["a"]["seeds"] = [7, 8, 9]
    folder.write_json("evaluations/after", content)
    assert "no test tells whether that is chance" in text_of(write_report(folder))


def test_what_a_metric_never_changes_and_what_is_drawn_already_is_text(folder: RunFolder) -> None:
    for i in range(1, 4):
        folder.append(
            "metrics", {"iteration": i, "reward": i, "reward/clip": i, "reward/none": math.nan, "rollouts": 8}
        )
    path = write_report(folder)
    text = text_of(path)
    assert "Drawn once: clip is reward." in text and "Never changed: rollouts 8." in text
    assert set(charts_of(path)) == {"reward"} and "no finite value" in text, "what was never known is not unchanged"


@pytest.mark.parametrize("narrow", [False, True])
def test_a_control_stands_where_its_value_is(narrow: bool) -> None:
    found = compare(BEFORE, AFTER)
    assert found is not None
    picture = ElementTree.fromstring(before_after(found.rows, True, {"push": 0.5, "reach": math.nan}, narrow=narrow))
    (control,) = (line for line in picture.iter("line") if line.attrib["class"] == "control")
    ticks = {t.text: float(t.attrib["x"]) for t in picture.iter("text") if t.attrib["text-anchor"] == "middle"}
    assert float(control.attrib["x1"]) == pytest.approx(ticks["50 %"])
    assert float(picture.attrib["viewBox"].split()[2]) == (350 if narrow else 860)


def test_large_pictures_go_into_the_page_smaller_and_stay_as_they_are(folder: RunFolder) -> None:
    place = folder.samples / "images"
    place.mkdir()
    picture = Image.effect_noise((1600, 1200), 80)
    picture.save(place / "seen-before.png")
    Image.new("RGB", (16, 16)).save(place / "seen-after.png")
    before = (place / "seen-before.png").read_bytes()
    source = write_report(folder).read_text()
    kinds = re.findall(r'src="data:image/(\w+);base64,([^"]*)"', source)
    assert [kind for kind, _ in kinds] == ["webp", "png"]
    assert Image.open(io.BytesIO(base64.b64decode(kinds[0][1]))).size == (1040, 780)
    assert (place / "seen-before.png").read_bytes() == before


def test_a_large_film_stays_a_film(folder: RunFolder) -> None:
    place = folder.samples / "videos"
    place.mkdir()
    first, second = (Image.effect_noise((900, 900), spread) for spread in (60, 90))
    first.save(place / "door.webp", save_all=True, append_images=[second], duration=80, lossless=True)
    source = write_report(folder).read_text()
    (film,) = re.findall(r'src="data:image/webp;base64,([^"]*)"', source)
    assert base64.b64decode(film) == (place / "door.webp").read_bytes()
