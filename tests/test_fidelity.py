"""A recipe's docstring says in a fixed form what it is and is not: paper, fidelity, labels, figure."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from autotelic.recipes import all_recipes

from .test_results import cited

ROOT = Path(__file__).parents[1]
LABELS = ("Paper", "Faithful", "Left out", "Differs", "Labels", "Expected")
LABEL = re.compile(rf"^({'|'.join(LABELS)}): (?=\S)", re.MULTILINE)
MODULES = {
    f"{room}/{path.stem}": path
    for room in ("vlm", "vla", "diffusion")
    for path in sorted((ROOT / room / "recipes").glob("[!_]*.py"))
}


def paragraphs(docstring: str) -> dict[str, str]:
    """Label -> what is said, in the order in which they stand; nothing where a label comes twice."""
    parts = LABEL.split(docstring)[1:]
    found = dict(zip(parts[::2], (" ".join(text.split()) for text in parts[1::2]), strict=True))
    return found if len(found) == len(parts) // 2 else {}


def faults(docstring: str) -> list[str]:
    """What a docstring lacks of the form."""
    said, lines = paragraphs(docstring), docstring.splitlines()
    if list(said) != list(LABELS):
        return [f"paragraphs {', '.join(said) or 'none'} in place of {', '.join(LABELS)}"]
    found = (
        [] if len(lines) > 1 and not lines[1].strip() and not LABEL.match(lines[0]) else ["no first line of its own"]
    )
    if not re.search(r"arXiv: ?\d{4}\.\d{4,5}", said["Paper"]) and not said["Paper"].startswith("none, "):
        found.append("Paper: names no arXiv number and does not begin with none")
    if "not measured yet" not in said["Expected"] and not cited(said["Expected"]):
        found.append("Expected: has neither a number that cites its key nor the words not measured yet")
    return found


def faults_of(name: str) -> list[str]:
    return faults(ast.get_docstring(ast.parse(MODULES[name].read_text())) or "")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_recipe_says_what_it_is_and_is_not(name: str) -> None:
    assert not faults_of(name)


def test_every_recipe_has_a_module() -> None:
    assert set(MODULES) == {name for name in all_recipes() if name.partition("/")[0] in ("vlm", "vla", "diffusion")}


FORM = """Copies its best attempts.

Paper: RAFT (Dong et al., arXiv:2304.06767).
Faithful: the rule of selection, read.
Left out: nothing that is known.
Differs: small.
Labels: answers.
Expected: not measured yet.
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", ""),
        ("Labels: answers.\n", "", "paragraphs"),
        ("Differs: small.\nLabels: answers.", "Labels: answers.\nDiffers: small.", "paragraphs"),
        ("Labels: answers.", "Labels: answers.\nLabels: none.", "paragraphs"),
        ("arXiv:2304.06767", "2023", "Paper"),
        ("RAFT (Dong et al., arXiv:2304.06767)", "none, a method of this project", ""),
        ("not measured yet", "80 %", "Expected"),
        ("not measured yet", "67.0 to 80.2 % [evolve_vla.json: arms.evolve_vla.summary.mean.after]", ""),
        ("Copies its best attempts.\n\n", "", "first line"),
    ],
)
def test_the_form_is_checked(old: str, new: str, message: str) -> None:
    found = faults(FORM.replace(old, new, 1).strip())
    assert bool(found) == bool(message) and all(message in fault for fault in found)
