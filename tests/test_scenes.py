"""The small world of visual questions: pictures pixel by pixel, answers by hand, views, second looks, captions."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from autotelic.envs.toys import scenes
from autotelic.envs.toys.scenes import CELLS, KINDS, TYPES, Answer, Question, Scene, View
from autotelic.errors import UsageError
from autotelic.types import Task
from autotelic.vlm.questions import blind_baseline, small_world


def scene_of(**objects: str) -> Scene:
    """scene_of(p5="red_disc") has a red disc in cell 5 and nothing else."""
    cells = [0] * CELLS
    for place, kind in objects.items():
        cells[int(place[1:])] = KINDS.index(kind)
    return tuple(cells)


def drawn(kind: str, count: int = 40, seed: str = "test") -> list[tuple[Question, Scene]]:
    return scenes.questions(kind, count, seed)


EVERY = [item for kind in TYPES for item in drawn(kind)]
"""Forty questions of every type, with their scenes."""


def gold(question: Question, scene: Scene) -> Answer:
    found = scenes.answer(question, scene)
    assert found is not None, (question, scene)
    return found


# --- pictures --------------------------------------------------------------------------------------


def test_kinds_are_colours_times_shapes() -> None:
    assert len(KINDS) == len(set(KINDS)) == 19
    assert KINDS[:4] == ("empty", "red_square", "red_disc", "red_plus") and KINDS[18] == "cyan_plus"


def test_a_square_pixel_by_pixel() -> None:
    """Without a seed: half width 0.9 x 2.7 = 2.43 around the middle of a cell of 8, so from 1.57 to 6.43. Of the four
    samples per pixel and axis, at 1.125, 1.375, 1.625 and 1.875, two are inside, so the rim is half covered."""
    (picture,) = scenes.render([scene_of(p5="red_square")])
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    cell = picture[8:16, 8:16]
    assert cell[4, 4].tolist() == cell[2, 5].tolist() == [230, 40, 40]
    assert cell[1, 3].tolist() == cell[4, 6].tolist() == [125, 30, 30]  # halfway from 20 to 230 and from 20 to 40
    assert cell[1, 1].tolist() == cell[6, 6].tolist() == [72, 25, 25]  # a quarter: 72.5, to even
    assert cell[0, 4].tolist() == cell[4, 7].tolist() == [20, 20, 20]
    rest = picture.copy()
    rest[8:16, 8:16] = 20
    assert (rest == 20).all(), "nothing is drawn outside its cell"


def test_a_disc_and_a_plus_pixel_by_pixel() -> None:
    """A disc of radius 2.7: of the 16 samples of pixel (2, 2), 0.125 to 0.875 beyond (1, 1) from the middle, all are
    inside, since 1.875 x sqrt 2 is 2.65; pixel (1, 1) is empty, since 2.125 x sqrt 2 is 3.0. A plus is 2.7 long and
    0.81 wide on either side: of pixel 3's samples, 0.125 to 0.875 from the middle, three are inside."""
    picture, crossed = scenes.render([scene_of(p0="green_disc"), scene_of(p15="blue_plus")])
    assert picture[2, 2].tolist() == picture[3, 3].tolist() == [40, 230, 40]
    assert picture[1, 1].tolist() == picture[0, 3].tolist() == [20, 20, 20]
    cell = crossed[24:, 24:]
    assert cell[3, 3].tolist() == [39, 39, 217]  # 15 of 16: 38.75 and 216.875, the corner beyond both arms is missing
    assert cell[2, 3].tolist() == [35, 35, 178]  # 12 of 16
    assert cell[1, 3].tolist() == [31, 31, 138]  # 3 of 4 across, 3 of 4 along (2.125, 2.375, 2.625): 9 of 16
    assert cell[2, 2].tolist() == [20, 20, 20], "between the arms there is nothing"


def test_a_seed_moves_objects_and_adds_noise_and_nothing_else() -> None:
    scene = [scene_of(p5="red_square", p6="cyan_disc")]
    plain, one, same, other = (scenes.render(scene, seed)[0].astype(int) for seed in (None, "a", "a", "b"))
    assert (one == same).all() and (one != other).any() and (one != plain).any()
    noise = (one - plain)[16:]  # below, where nothing is
    assert abs(noise.mean()) < 1.5 and 9 < noise.std() < 12.5, "of 12 levels, cut at black"
    still = scenes.render([scene_of()], "a", noise=0.0)[0]
    assert (still == 20).all()


def test_every_kind_is_drawn_in_its_colour_and_all_differ() -> None:
    pictures = scenes.render([scene_of(p0=kind) for kind in KINDS[1:]])
    assert len({picture.tobytes() for picture in pictures}) == 18
    for kind, picture in zip(KINDS[1:], pictures, strict=True):
        colour, shape = kind.split("_")
        middle = 3 if shape != "plus" else None
        if middle is not None:
            assert tuple(picture[3, 3]) == scenes.COLOURS[colour]


# --- answers ---------------------------------------------------------------------------------------

ROOM = scene_of(p0="red_disc", p1="blue_plus", p4="green_disc", p5="red_square", p15="blue_disc")
"""red disc, blue plus / green disc, red square / nothing / a blue disc in the last cell."""


@pytest.mark.parametrize(
    ("asked", "right"),
    [
        ("what is right of red_disc", "p0 p1 = blue_plus"),
        ("what is down of blue_plus", "p1 p5 = red_square"),
        ("what is up of red_disc", None),  # outside
        ("what is right of red_square", None),  # nothing there
        ("what is right of yellow_disc", None),  # there is none
        ("what is down then right of red_disc", "p0 p4 p5 = red_square"),
        ("what is right then left of red_disc", "p0 p1 p0 = red_disc"),
        ("how many disc", "p0 p4 p15 = 3"),
        ("how many yellow", "= 0"),
        ("how many red or disc", "p0 p4 p5 p15 = 4"),
        ("how far red_disc to blue_disc", "p0 p15 = 6"),
        ("how far blue_disc to green_disc", "p15 p4 = 5"),
        ("how far red_disc to yellow_disc", None),
        ("what is 1st", "p0 = red_disc"),
        ("what is 4th", "p0 p1 p4 p5 = red_square"),
        ("what is 6th", None),
        ("what is p4", "= green_disc"),
        ("what is p9", "= empty"),
        ("where is blue_disc", "= p15"),
        ("where is disc", None),  # three of them
        ("which is odd", None),
    ],
)
def test_answers_by_hand(asked: str, right: str | None) -> None:
    found = scenes.answer(Question.parse(asked), ROOM)
    assert (None if found is None else str(found)) == right


def test_the_odd_one_by_hand() -> None:
    by_colour = scene_of(p0="red_disc", p3="red_plus", p9="blue_plus")
    assert scenes.odd_cells(by_colour) == [0, 9], "the blue one by colour, the disc by shape: unsettled"
    assert scenes.answer(Question("odd"), by_colour) is None
    settled = scene_of(p0="red_disc", p3="red_plus", p9="blue_disc", p10="red_disc", p12="red_plus")
    assert str(scenes.answer(Question("odd"), settled)) == "p9 = blue_disc"
    assert scenes.odd_cells(scene_of(p0="red_disc", p1="blue_plus")) == [], "of two neither is odd"


def test_a_start_that_stands_twice_does_not_settle_a_chain() -> None:
    twice = scene_of(p0="red_disc", p8="red_disc", p1="blue_plus", p9="blue_plus")
    assert scenes.answer(Question.parse("what is right of red_disc"), twice) is None


def test_a_question_outside_the_world_is_refused() -> None:
    for text in ("why is it red", "", "what is", "how many", "how far red_disc"):
        with pytest.raises(ValueError, match="not a question of this world"):
            Question.parse(text)
    with pytest.raises(ValueError, match="no question of this world: why"):
        scenes.answer(Question("why"), ROOM)


def test_questions_are_read_back_from_their_text() -> None:
    more = [Question("name", ("p7",)), Question("find", ("red_disc",))]
    for question in [*(question for question, _ in EVERY), *more]:
        assert Question.parse(str(question)) == question


def test_answers_are_read_back_from_their_text() -> None:
    for item in EVERY:
        assert scenes.parse_answer(str(gold(*item))) == gold(*item)


@pytest.mark.parametrize("text", ["", "=", "p5 blue_plus", "p5 p16 = 2", "p5 = = 2", "x5 = 2", "p5 = 2 3", "2 ="])
def test_what_is_no_answer_is_not_read_as_one(text: str) -> None:
    assert scenes.parse_answer(text) is None


# --- drawing questions -----------------------------------------------------------------------------


def test_drawing_depends_on_its_seed_alone() -> None:
    for kind in TYPES:
        first = scenes.questions(kind, 5, "a")
        random.random()
        assert first == scenes.questions(kind, 5, "a") and first != scenes.questions(kind, 5, "b")
        assert scenes.questions(kind, 8, "a")[:5] == first, "more questions begin with fewer"


def composition(question: Question, scene: Scene) -> Any:
    """What a held-out question asks about, told here in other words: names in any order, or the scene itself."""
    if question.type in ("odd", "kth"):
        return scene
    return question.words if question.type in ("hop1", "hop2", "count") else frozenset(question.words)


@pytest.mark.parametrize("kind", TYPES)
def test_held_out_compositions_are_never_seen(kind: str) -> None:
    sides = [scenes.questions(kind, 150, "split", split=1, unseen=unseen) for unseen in (False, True)]
    seen, unseen = ({composition(*item) for item in side} for side in sides)
    assert seen and unseen and not seen & unseen
    assert {str(s) for _, s in sides[0]}.isdisjoint({str(s) for _, s in sides[1]}), "nor does a scene come twice"
    kept = [scenes.held_out(*item, 1) for item in scenes.questions(kind, 60, "other", split=2)]
    assert any(kept), "another split holds out others"


def test_a_split_that_holds_out_nothing_of_a_type_is_refused() -> None:
    """Of "how many WORD" there are nine compositions, so some splits hold out none of them."""
    empty = [
        s for s in range(40) if not any(scenes.held_out(Question("count", (w,)), (), s) for w in scenes.ATTRIBUTES)
    ]
    assert empty and not {0, 1} & set(empty)
    with pytest.raises(UsageError, match=rf"split {empty[0]} leaves no count questions unseen: take another"):
        scenes.questions("count", 1, "x", split=empty[0], unseen=True)
    with pytest.raises(UsageError, match="no question type 'why': there are hop1, hop2"):
        scenes.questions("why", 1, "x")


def test_guessing_from_the_question_pays_little() -> None:
    known, asked = (
        scenes.tasks([i for kind in TYPES for i in scenes.questions(kind, 250, name, split=1, unseen=unseen)], name)
        for name, unseen in (("known", False), ("asked", True))
    )
    blind = blind_baseline(known, asked)
    assert set(blind) == set(TYPES)
    for kind, share in blind.items():
        assert share < (0.25 if kind == "dist" else 0.2), (kind, share)


def test_the_blind_baseline_by_hand() -> None:
    def task(prompt: str, answer: str, kind: str = "a") -> Any:
        return Task(prompt + answer, prompt, reference=answer, category=kind)

    known = [task("x", "1"), task("x", "2"), task("x", "2"), task("y", "3"), task("y", "3"), task("y", "3")]
    asked = [task("x", "2"), task("x", "1"), task("z", "3"), task("z", "2"), task("x", "2", "b"), task("z", "0", "c")]
    assert blind_baseline(known, asked) == {"a": 0.5, "b": 1.0, "c": 0.0}


# --- tasks -----------------------------------------------------------------------------------------


def test_tasks_carry_picture_answer_and_trace() -> None:
    items = drawn("hop1", 3)
    made = scenes.tasks(items, "some")
    assert [task.id for task in made] == ["some/hop1/0", "some/hop1/1", "some/hop1/2"]
    for task, (question, scene) in zip(made, items, strict=True):
        right = gold(question, scene)
        assert (task.prompt, task.reference, task.category) == (str(question), right.word, "hop1")
        assert task.extra == {"trace": str(right), "scene": scene} and task.images[0].shape == (32, 32, 3)


def test_tasks_without_labels_carry_the_picture_alone() -> None:
    items = drawn("kth", 3)
    for bare, told in zip(
        scenes.tasks(items, "some", labels=False, known=False), scenes.tasks(items, "some"), strict=True
    ):
        assert bare.reference is None and bare.extra == {}
        assert (bare.images[0] == told.images[0]).all() and bare.prompt == told.prompt


@pytest.mark.parametrize("gate_labels", [0, 1, 10, 14, 20])
def test_the_gate_gets_exactly_the_labels_that_are_counted(gate_labels: int) -> None:
    made = small_world(3, 1, labels=False, gate_labels=gate_labels, held_out=1, probes=2)
    labelled = [task for task in made.probes if task.reference is not None]
    assert len(labelled) == gate_labels and len({task.id for task in made.probes}) == len(made.probes)
    if gate_labels:
        assert {task.category for task in made.probes} == {"canary"} and len(made.probes) == gate_labels
    else:
        assert len(made.probes) == 7 * 2 * 2, "seven types, two probes each, two views of each"
        assert all(not {"scene", "trace"} & set(task.extra) for task in made.probes)


# --- views -----------------------------------------------------------------------------------------

VIEWS = [
    View(turns, mirrored, channels)
    for turns in range(4)
    for mirrored in (False, True)
    for channels in ((0, 1, 2), (2, 0, 1), (1, 0, 2))
]


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_view_of_a_scenes_picture_is_the_picture_of_its_view(view: View) -> None:
    everything = [scene for _, scene in EVERY[::13]]
    pictures = scenes.render(everything)
    seen = scenes.render([view.scene(scene) for scene in everything])
    for before, after in zip(pictures, seen, strict=True):
        assert (view.picture(before) == after).all()


def test_a_view_by_hand() -> None:
    """A quarter turn counter-clockwise brings the top right corner to the top left, and right to up."""
    turned = View(turns=1)
    assert [turned.word(word) for word in ("p3", "p0", "p15", "right", "up", "red", "red_disc", "7", "of")] == [
        *("p0", "p12", "p3", "up", "left", "red", "red_disc", "7", "of"),
    ]
    assert View(mirrored=True).text("what is left of red_disc") == "what is right of red_disc"
    swapped = View(channels=(1, 0, 2))  # the new red is the old green
    assert [swapped.word(w) for w in ("red", "green", "blue", "yellow", "magenta", "cyan", "red_plus")] == [
        *("green", "red", "blue", "yellow", "cyan", "magenta", "green_plus"),
    ]


def test_the_right_answer_is_seen_in_every_view() -> None:
    draw = random.Random(0)
    views = set()
    for question, scene in EVERY:
        view = View.draw(question, draw)
        views.add(view)
        seen = Question.parse(view.text(str(question)))
        told = scenes.in_order(seen, view.text(str(gold(question, scene))))
        assert told == str(gold(seen, view.scene(scene))), (question, view)
        assert view.back(view.text(f"{question} {gold(question, scene)}")) == f"{question} {gold(question, scene)}"
        if question.type == "kth":
            assert (view.turns, view.mirrored) == (0, False), "reading order must not turn"
    assert len({(view.turns, view.mirrored) for view in views}) == 8 and len({view.channels for view in views}) == 6


def test_cells_of_a_set_come_in_reading_order_and_others_stay() -> None:
    count, chain = Question("count", ("red",)), Question("hop1", ("up", "red_disc"))
    assert scenes.in_order(count, "p10 p9 p1 = 3") == "p1 p9 p10 = 3"
    assert scenes.in_order(count, "= 0") == "= 0" and scenes.in_order(count, "p10 p9") == "p10 p9"
    assert scenes.in_order(count, "p10 red p9 = 3") == "p9 p10 red = 3"
    assert scenes.in_order(chain, "p10 p9 = red_disc") == "p10 p9 = red_disc"


# --- looking again ---------------------------------------------------------------------------------


def test_right_traces_pass_a_second_look() -> None:
    for question, scene in EVERY:
        right = gold(question, scene)
        assert scenes.claims(question, right, scene) == [True] * (len(right.cells) + 1)


@pytest.mark.parametrize(
    ("asked", "said", "holds"),
    [
        ("what is right of red_disc", "p0 p1 = blue_disc", [True, True, False]),  # another word
        ("what is right of red_disc", "p4 p5 = red_square", [False, True, True]),  # begins elsewhere
        ("what is right of red_disc", "p0 p4 = green_disc", [True, False, True]),  # goes elsewhere
        ("what is right of red_disc", "p0 = red_disc", [True, False]),  # too short
        ("what is right of red_disc", "p0 p1 p5 = red_square", [True, True, False, False]),  # too long
        ("what is right of red_disc", "= blue_plus", [False]),  # nothing to look at
        ("what is right of red_square", "p5 p6 = empty", [True, True, False]),  # nothing is no answer
        ("what is down then right of red_disc", "p0 p4 p5 = red_square", [True, True, True, True]),
        ("what is down then right of red_disc", "p0 p1 p5 = red_square", [True, False, False, True]),
        ("how many disc", "p0 p4 p15 = 3", [True, True, True, True]),
        ("how many disc", "p0 p4 = 2", [True, True, True]),  # passes: what it misses is not looked at
        ("how many disc", "p0 p4 = 3", [True, True, False]),
        ("how many disc", "p0 p4 p5 = 3", [True, True, False, True]),  # a square
        ("how many disc", "p0 p0 = 2", [True, False, True]),  # twice the same
        ("how many red or disc", "p0 p4 p5 p15 = 4", [True] * 5),
        ("how far red_disc to blue_disc", "p15 p0 = 6", [False, False, True]),  # the wrong way round
        ("how far red_disc to blue_disc", "p0 p15 = 5", [True, True, False]),
        ("how far red_disc to blue_disc", "p0 p15 p4 = 6", [True, True, False, False]),
        ("what is 2nd", "p0 p1 = blue_plus", [True, True, True]),
        ("what is 2nd", "p1 p4 = green_disc", [False, True, True]),  # skips the first
        ("what is 2nd", "p0 p4 = green_disc", [True, False, True]),  # skips the second
        ("what is 2nd", "p1 p0 = red_disc", [False, False, True]),  # backwards
        ("what is 2nd", "p0 p2 = blue_plus", [True, False, False]),  # an empty cell
        ("what is 2nd", "p0 = red_disc", [True, False]),
    ],
)
def test_claims_by_hand(asked: str, said: str, holds: list[bool]) -> None:
    answer = scenes.parse_answer(said)
    assert answer is not None
    assert scenes.claims(Question.parse(asked), answer, ROOM) == holds


def test_the_odd_one_is_looked_for_everywhere() -> None:
    scene = scene_of(p0="red_disc", p3="red_plus", p9="blue_disc", p10="red_disc", p12="red_plus")
    assert scenes.claims(Question("odd"), Answer((9,), "blue_disc"), scene) == [True, True]
    assert scenes.claims(Question("odd"), Answer((0,), "red_disc"), scene) == [False, True]
    assert scenes.claims(Question("odd"), Answer((9,), "red_disc"), scene) == [True, False]


def test_what_is_corrupted_fails_but_for_counts_that_miss_something() -> None:
    """Another word, another cell, a cell more: nothing passes. A cell less passes where the count is one less too."""
    draw = random.Random(1)
    for question, scene in EVERY:
        right, counts = gold(question, scene), question.type in ("count", "either")
        family = KINDS[1:] if right.word in KINDS else [str(n) for n in range(9)]
        wrong = Answer(right.cells, draw.choice([word for word in family if word != right.word]))
        assert not all(scenes.claims(question, wrong, scene))
        for place in range(len(right.cells)):
            before, after = right.cells[:place], right.cells[place + 1 :]
            other = draw.choice([cell for cell in range(CELLS) if cell != right.cells[place]])
            for cells in ((*before, other, *after), (*before, other, *right.cells[place:]), (*before, *after)):
                assert not all(scenes.claims(question, Answer(cells, right.word), scene)), (question, cells)
            missing = Answer((*before, *after), str(len(right.cells) - 1))
            assert all(scenes.claims(question, missing, scene)) == counts


def test_naming_and_finding_have_no_trace_to_look_at() -> None:
    with pytest.raises(ValueError, match="no trace is asked for by name"):
        scenes.claims(Question("name", ("p4",)), Answer((), "green_disc"), ROOM)


# --- captions and changes --------------------------------------------------------------------------


def test_captions_are_drawn_again() -> None:
    assert scenes.caption(ROOM) == "p0 red_disc p1 blue_plus p4 green_disc p5 red_square p15 blue_disc"
    for _, scene in EVERY:
        assert scenes.redraw(scenes.caption(scene)) == scene
    assert scenes.redraw("p0 red_disc p0 blue_plus") == scene_of(p0="blue_plus"), "later words over earlier ones"


@pytest.mark.parametrize("text", ["", "p0", "p0 red", "red_disc p0", "p16 red_disc", "p0 red_disc p1", "p0 red_disc ="])
def test_what_is_no_caption_is_not_drawn(text: str) -> None:
    assert scenes.redraw(text) is None


def apply(scene: Scene, told: str) -> Scene:
    """A change done as it is told, in other words than the world's own."""
    place, what, *rest = told.split()
    cells, cell = list(scene), int(place[1:])
    if what == "moved":
        cells[int(rest[0][1:])] = cells[cell]
    assert bool(cells[cell]) == (what != "new")
    cells[cell] = KINDS.index(rest[0]) if what in ("into", "new") else 0
    return tuple(cells)


def test_changes_are_told_as_they_were_made() -> None:
    draw, kinds = random.Random(2), set()
    for _, scene in EVERY:
        after, told = scenes.change(scene, draw)
        kinds.add(told.split()[1])
        assert after != scene and after == apply(scene, told), told
        assert any(after)
    assert kinds == {"into", "gone", "new", "moved"}


def test_a_full_an_almost_empty_and_an_empty_scene_can_be_changed() -> None:
    full = tuple(range(1, 17))
    assert {scenes.change(full, random.Random(i))[1].split()[1] for i in range(9)} == {"into"}
    assert {scenes.change(scene_of(p3="red_disc"), random.Random(i))[1].split()[1] for i in range(9)} == {"into"}
    assert {scenes.change(scene_of(), random.Random(i))[1].split()[1] for i in range(9)} == {"new"}
