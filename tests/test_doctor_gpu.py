"""``autotelic doctor --gpu``: its parts run at their tiny size, each is recorded as it ends, and none is repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotelic import doctor_gpu
from autotelic.cli import main


@pytest.mark.parametrize("part", [part for part in doctor_gpu.PARTS if part not in ("robots", "frames")])
def test_a_part_gives_numbers(part: str) -> None:
    figures = doctor_gpu.PARTS[part]("tiny")
    assert figures and json.loads(json.dumps(figures)) == figures
    assert all(figure > 0 for name, figure in figures.items() if "per_s" in name or name.startswith("ms"))


def test_simulators_are_measured_beside_the_policy() -> None:
    figures = doctor_gpu.PARTS["robots"]("tiny")
    assert figures["environment_steps_per_s"] > 0


def test_what_is_recorded_is_not_repeated_and_what_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def apart(part: str, size: str) -> dict[str, Any]:
        asked.append(part)
        return {"good": False, "why": "lost the card"} if part == "language" else {"good": True, "speed": 3}

    monkeypatch.setattr(doctor_gpu, "_apart", apart)
    record = tmp_path / "gpu.json"
    words = ["doctor", "--gpu", "--size", "tiny", "--json", str(record), "--parts"]
    assert main([*words, "ground"]) == 0
    assert main([*words, "ground", "language"]) == 1
    assert asked == ["ground", "language"]
    assert json.loads(record.read_text())["parts"]["ground"] == {"good": True, "speed": 3}
    assert "lost the card" in capsys.readouterr().out


def test_a_part_that_ends_its_process_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_gpu, "LIMIT", 120.0)
    found = doctor_gpu._apart("no such part", "tiny")
    assert found["good"] is False and "no such part" in found["why"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpu", "--parts", "speed"], "speed"),
        (["--gpu", "--size", "3b"], "sees no GPU"),
        (["--size", "3b"], "about --gpu"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["doctor", *words, "--json", str(tmp_path / "gpu.json")]) != 0
    said = capsys.readouterr()
    assert told in said.err + said.out and len((said.err or said.out).strip().splitlines()) == 1


def test_a_record_of_another_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "gpu.json"
    record.write_text('{"size": "7b", "parts": {}}')
    assert main(["doctor", "--gpu", "--size", "tiny", "--json", str(record)]) != 0
    assert "of size 7b" in capsys.readouterr().err
