"""The world of shapes: its renders pixel by pixel, its split, and the two families that judge its pictures."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autotelic.cache import cache_folder
from autotelic.envs.toys import shapes as world
from autotelic.envs.toys.shapes import ATTRIBUTES, LABELS, SCENES, Scene, caption
from autotelic.errors import UsageError
from autotelic.rewards.image import shapes
from autotelic.rewards.image.images import as_uint8
from autotelic.rewards.image.shapes import (
    ROUNDING,
    AttributeClassifier,
    AttributeReward,
    NearestRender,
    attribute_classifier,
    per_prompt_diversity,
    train_classifier,
)
from autotelic.trainers.scoring import score
from autotelic.types import Rollout

CAPTIONS = tuple(LABELS)


def pixel(picture: Tensor, row: int, column: int) -> list[int]:
    return [round(255 * float(value)) for value in picture[:, row, column]]


# the world


def test_captions_are_distinct_and_are_read_back() -> None:
    assert len(SCENES) == len(set(CAPTIONS)) == 288 == 6 * 3 * 4 * 4
    assert CAPTIONS[0] == "a red square at the top left on a white background"
    assert all(world.parse(caption(scene)) == scene for scene in SCENES)
    assert [world.index(scene) for scene in SCENES] == list(range(288))
    assert LABELS["a blue post at the top right on a black background"] == (2, 2, 2, 1)


def test_objects_stand_out_from_backgrounds() -> None:
    for colour, background in itertools.product(world.COLOURS.values(), world.BACKGROUNDS.values()):
        assert math.dist(colour, background) / math.sqrt(3) / 255 > 0.3, (colour, background)


def test_a_square_pixel_by_pixel() -> None:
    """Around (4, 4), jitter 18 is 8 wide, so it covers whole pixels 0..7. Jitter 0 is 5 wide, 1.5..6.5, so it covers a
    quarter of pixel (1, 1) and half of (1, 3). Jitter 13 is 6.5 wide around (5, 5), 1.75..8.25: a sixteenth of (1, 1)
    and a quarter of (1, 3)."""
    scene = Scene("red", "square", "white", "top left")
    sharp = world.render(scene, 18)
    rows, columns = torch.nonzero(sharp[1] < 1, as_tuple=True)
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(8)) and len(rows) == 64
    assert pixel(sharp, 0, 7) == [220, 40, 40] and pixel(sharp, 0, 8) == [255, 255, 255]
    smooth = world.render(scene, 0)
    assert pixel(smooth, 1, 1) == pixel(smooth, 6, 6) == [246, 201, 201]  # 255 - 35 / 4, 255 - 215 / 4
    assert pixel(smooth, 1, 3) == [238, 148, 148]  # 237.5 and 147.5, to even
    assert pixel(smooth, 3, 3) == [220, 40, 40] and pixel(smooth, 0, 3) == [255, 255, 255]
    middle = world.render(scene, 13)
    assert pixel(middle, 1, 1) == pixel(middle, 8, 8) == [253, 242, 242]  # 255 - 35 / 16, 255 - 215 / 16
    assert pixel(middle, 1, 3) == [246, 201, 201]


def test_a_bar_pixel_by_pixel() -> None:
    """Around (5, 5), jitter 22 covers whole pixels, rows 3..6 of columns 1..8. Jitter 13 reaches from 3.375 to 6.625
    down and from 1.75 to 8.25 across. Of pixel row 3's samples at 3.125, 3.375, 3.625 and 3.875 three are inside, one
    of them on the edge; of column 1's one."""
    scene = Scene("blue", "bar", "black", "top left")
    rows, columns = torch.nonzero(world.render(scene, 22)[2], as_tuple=True)
    assert set(rows.tolist()) == {3, 4, 5, 6} and set(columns.tolist()) == set(range(1, 9)) and len(rows) == 32
    picture = world.render(scene, 13)
    assert pixel(picture, 3, 4) == pixel(picture, 6, 4) == [22, 45, 176]  # 12 / 16 of (30, 60, 235)
    assert pixel(picture, 3, 1) == pixel(picture, 6, 8) == [6, 11, 44]  # 3 / 16
    assert pixel(picture, 4, 2) == [30, 60, 235] and pixel(picture, 2, 4) == pixel(picture, 4, 9) == [0, 0, 0]
    # at 32 pixels, of row 6's samples, 3.0625 and on by eighths, one is inside, of column 3's, 1.5625 and on, two
    large = world.render(scene, 13, 32)
    assert pixel(large, 6, 8) == [8, 15, 59]  # 4 / 16
    assert pixel(large, 6, 3) == [4, 8, 29]  # 2 / 16


def test_a_post_pixel_by_pixel() -> None:
    """Jitter 1: around row 4 and column 5, 1.5..6.5 down and 3.75..6.25 across. Half of pixel row 1 is inside and a
    quarter of column 3."""
    picture = world.render(Scene("yellow", "post", "grey", "top left"), 1)
    assert pixel(picture, 1, 3) == pixel(picture, 6, 6) == [171, 168, 142]  # 160 + 2 / 16 of (90, 65, -140)
    assert pixel(picture, 3, 3) == pixel(picture, 3, 6) == [182, 176, 125]  # 4 / 16
    assert pixel(picture, 1, 4) == [205, 192, 90]  # 8 / 16: 192.5, to even
    assert pixel(picture, 3, 4) == [250, 225, 20] and pixel(picture, 7, 4) == [160, 160, 160]
    assert torch.equal(picture, world.render(Scene("yellow", "bar", "grey", "top left"), 3).mT)


def test_places_are_shifts_by_whole_pixels_that_nothing_leaves() -> None:
    """A roll would bring back on the other side what left the picture."""
    for shape, (row, position), size in itertools.product(
        ATTRIBUTES["shape"], enumerate(ATTRIBUTES["position"]), range(3)
    ):
        first = world.render(Scene("cyan", shape, "beige", "top left"), 9 * size)
        renders = world.templates()[world.index(Scene("cyan", shape, "beige", position)), 9 * size : 9 * size + 9]
        for place, picture in enumerate(renders):
            down, across = 6 * (row // 2) + place // 3, 6 * (row % 2) + place % 3
            assert torch.equal(picture, first.roll((down, across), (1, 2))), (shape, position, size, place)


def test_larger_pictures_show_the_same() -> None:
    scene = Scene("green", "square", "white", "bottom left")
    large = world.render(scene, 26, 32)
    assert large.shape == (3, 32, 32)
    small = torch.nn.functional.avg_pool2d(large, 2)  # 8 wide around (12, 6): whole pixels at both sizes
    assert torch.allclose(small, world.render(scene, 26, 16))


def test_templates_are_all_renders_and_all_differ() -> None:
    renders = world.templates()
    assert renders.shape == (288, 27, 3, 16, 16)
    for place, jitter in ((0, 0), (100, 13), (287, 26)):
        assert torch.equal(renders[place, jitter], world.render(SCENES[place], jitter))
    whole = (renders * 255).round()
    assert torch.equal(whole / 255, renders)
    assert len(whole.to(torch.uint8).flatten(2).flatten(0, 1).unique(dim=0)) == 288 * 27


def test_samples_are_true_renders_with_every_jitter() -> None:
    drawn = world.sample(torch.full((400,), 5), torch.Generator().manual_seed(0))
    assert len(drawn.flatten(1).unique(dim=0)) == 27
    assert all((world.templates()[5] == picture).flatten(1).all(1).any() for picture in drawn[:20])
    again = world.sample([SCENES[5]] * 400, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    assert world.sample([], torch.Generator()).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("seed", range(5))
def test_a_split_holds_out_combinations_but_no_pair_of_values(seed: int) -> None:
    seen, unseen = world.split(seed)
    assert (len(seen), len(unseen)) == (216, 72)
    assert set(seen) | set(unseen) == set(SCENES)
    assert world.split(seed) == (seen, unseen)
    for one, two in itertools.combinations(ATTRIBUTES, 2):
        for a, b in itertools.product(ATTRIBUTES[one], ATTRIBUTES[two]):
            total, kept = (sum(getattr(s, one) == a and getattr(s, two) == b for s in part) for part in (SCENES, seen))
            assert 3 * kept >= 2 * total, (a, b)


def test_another_seed_gives_another_split() -> None:
    assert len({world.split(seed)[1] for seed in range(5)}) == 5


def test_tasks_carry_caption_category_and_scene() -> None:
    (task,) = world.tasks([SCENES[7]], "unseen")
    assert (task.prompt, task.category, task.extra) == (CAPTIONS[7], "unseen", {"scene": 7})
    assert task.id == "shapes/a-red-square-at-the-bottom-right-on-a-grey-background"


def test_the_world_says_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="'a red cat' is no caption of this world; one is 'a red square at the top"):
        world.parse("a red cat")
    with pytest.raises(ValueError, match="shape 'cat' is none of square, bar, post"):
        Scene("red", "cat", "white", "top left")
    with pytest.raises(ValueError, match=r"jitter 27 is not in 0\.\.26"):
        world.render(SCENES[0], 27)
    with pytest.raises(ValueError, match="a picture's side is 16 or 32 pixels, not 24"):
        world.templates(24)


# the learned family


@pytest.fixture(scope="module")
def jitters() -> tuple[list[int], list[int]]:
    order = torch.randperm(27, generator=torch.Generator().manual_seed(3)).tolist()
    return order[:20], order[20:]


@pytest.fixture(scope="module")
def classifier(jitters: tuple[list[int], list[int]]) -> AttributeClassifier:
    return train_classifier(world.templates()[:, jitters[0]], LABELS, steps=250, batch=64)


def test_the_classifier_reads_sizes_and_places_that_it_never_saw(
    classifier: AttributeClassifier, jitters: tuple[list[int], list[int]]
) -> None:
    pictures = world.templates()[:, jitters[1]]
    wanted = torch.tensor(list(LABELS.values())).repeat_interleave(pictures.shape[1], 0)
    read = torch.stack([part.argmax(-1) for part in classifier(pictures.flatten(0, 1))], 1)
    accuracy = (read == wanted).float().mean(0)
    assert len(accuracy) == 4 and accuracy.min() > 0.97, accuracy


def test_training_depends_on_its_seed_alone() -> None:
    def weights(seed: int) -> Tensor:
        return train_classifier(world.templates(), LABELS, seed=seed, steps=2, batch=8).heads.weight

    first = weights(0)
    torch.rand(3)
    assert torch.equal(first, weights(0)) and not torch.equal(first, weights(1))


def test_trained_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def train(templates: Tensor, labels: shapes.Labels, *, seed: int) -> AttributeClassifier:
        seeds.append(seed)
        return train_classifier(templates, labels, seed=seed, steps=1, batch=4)

    monkeypatch.setenv("AUTOTELIC_CACHE", str(tmp_path / "deep" / "cache"))
    monkeypatch.setattr(shapes, "train_classifier", train)
    first, second = (attribute_classifier(world.templates(), LABELS) for _ in range(2))
    assert seeds == [0]
    pictures = world.templates()[:3, 0]
    for a, b in zip(first(pictures), second(pictures), strict=True):
        assert torch.equal(a, b)
    assert not any(parameter.requires_grad for parameter in second.parameters())
    attribute_classifier(world.templates(), LABELS, seed=1)
    attribute_classifier(1 - world.templates(), LABELS)  # another world
    assert seeds == [0, 1, 0]
    assert (
        len(list(cache_folder().glob("attributes-*-16px-seed*.safetensors")))
        == 3
        == len(list(cache_folder().iterdir()))
    )
    for path in cache_folder().iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(UsageError, match="holds no weights of this classifier: delete it, and it is trained again"):
        attribute_classifier(world.templates(), LABELS)


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUTOTELIC_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot make the cache folder .*: set AUTOTELIC_CACHE"):
        cache_folder()
    monkeypatch.delenv("AUTOTELIC_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "autotelic"


class Fixed(AttributeClassifier):
    """Two attributes of two values; the second one's first value is all but certain. The mean pixel moves the first."""

    def __init__(self) -> None:
        super().__init__([2, 2], 4)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        light = images.mean((1, 2, 3))
        sure = torch.tensor([[1 - math.exp(-7), math.exp(-7)]]).log().expand(len(images), 2)
        return torch.stack([light.log(), (1 - light).log()], 1), sure


PAIR = {"light": (0, 0), "dark and odd": (1, 1)}


def test_attributes_add_up_log_probabilities_down_to_the_floor() -> None:
    """A mean pixel of 0.2: log 0.2 + log(1 - e^-7); and log 0.8 + max(-7, -5)."""
    picture = torch.full((3, 4, 4), 0.2)
    scores = AttributeReward(Fixed(), PAIR)([picture, picture], ["light", "dark and odd"], tasks=None)
    assert scores == pytest.approx([math.log(0.2) + math.log(1 - math.exp(-7)), math.log(0.8) - 5], abs=1e-5)


def test_gradient_reaches_the_pixels() -> None:
    """d log m / d pixel = 1 / (48 m), d log(1 - m) / d pixel = -1 / (48 (1 - m))."""
    pictures = torch.full((2, 3, 4, 4), 0.2, requires_grad=True)
    reward = AttributeReward(Fixed(), PAIR, differentiable=True)
    scores = reward(pictures, ["light", "dark and odd"])
    assert isinstance(scores, Tensor) and scores.shape == (2,)
    (gradient,) = torch.autograd.grad(scores.sum(), pictures)
    assert torch.allclose(gradient[0], torch.tensor(1 / 48 / 0.2)) and torch.allclose(
        gradient[1], torch.tensor(-1 / 48 / 0.8)
    )


def test_gradient_of_the_real_classifier_is_a_slope(classifier: AttributeClassifier) -> None:
    """Between a square and a bar, where a step along a random way changes what is seen."""
    generator = torch.Generator().manual_seed(0)
    pictures = 0.9 * world.templates()[[[0, 16], [200, 216]], 5].mean(1) + 0.05
    way = torch.randn(pictures.shape, generator=generator) / 100
    reward = AttributeReward(classifier, LABELS, differentiable=True)
    prompts = [CAPTIONS[0], CAPTIONS[200]]
    leaf = pictures.clone().requires_grad_()
    slope = (torch.autograd.grad(torch.as_tensor(reward(leaf, prompts)).sum(), leaf)[0] * way).sum()
    ahead, behind = (torch.as_tensor(reward(pictures + sign * way / 10, prompts)).sum() for sign in (1, -1))
    assert abs(float(slope)) > 0.01
    assert float(slope) == pytest.approx(float(ahead - behind) * 5, rel=0.05)


def test_the_black_box_sees_eight_bits(classifier: AttributeClassifier) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = (world.templates()[::40, 0] + 0.3 * torch.randn((8, 3, 16, 16), generator=generator)).clamp(0, 1)
    prompts = CAPTIONS[::40]
    black, white = AttributeReward(classifier, LABELS), AttributeReward(classifier, LABELS, differentiable=True)
    rounded = torch.from_numpy(as_uint8(pictures)).permute(0, 3, 1, 2) / 255
    assert black(pictures, prompts) == pytest.approx(torch.as_tensor(white(rounded, prompts)).tolist(), abs=1e-5)
    assert black(pictures, prompts) != pytest.approx(torch.as_tensor(white(pictures, prompts)).tolist(), abs=1e-5)
    assert not black.differentiable and white.differentiable
    assert pickle.loads(pickle.dumps(black))(pictures, prompts) == black(pictures, prompts)


def test_true_pictures_score_high_and_wrong_captions_low(classifier: AttributeClassifier) -> None:
    reward = AttributeReward(classifier, LABELS)
    pictures, other = world.templates()[::9, 2], [*CAPTIONS[9::9], CAPTIONS[0]]
    right, wrong = (torch.as_tensor(reward(pictures, prompts)) for prompts in (CAPTIONS[::9], other))
    assert right.median() > -0.2 and wrong.max() < right.median() and (wrong >= -20).all()


# the family that learns nothing


@pytest.fixture(scope="module")
def judge() -> NearestRender:
    return NearestRender(world.templates(), CAPTIONS)


def test_every_true_render_is_correct(judge: NearestRender) -> None:
    places = torch.arange(288).repeat_interleave(4)
    jitters = torch.arange(len(places)) * 7 % 27
    correct, distance = judge.verdicts(world.templates()[places, jitters], [CAPTIONS[i] for i in places])
    assert correct.all() and distance.max() == 0
    correct, distance = judge.verdicts(world.templates()[1:, 3], CAPTIONS[:-1])
    assert not correct.any() and distance.min() > 0


@pytest.mark.parametrize("noise", [0.2, 0.6])
def test_the_fast_judge_agrees_with_the_plain_loop(judge: NearestRender, noise: float) -> None:
    generator = torch.Generator().manual_seed(1)
    renders = world.templates()
    places = torch.randint(288, (6,), generator=generator)
    pictures = (renders[places, 8] + noise * torch.randn((6, 3, 16, 16), generator=generator)).clamp(0, 1)
    correct, distance = judge.verdicts(pictures, [CAPTIONS[i] for i in places])
    for row, picture in enumerate((pictures * 255).round().double() / 255):
        errors = (renders.double() - picture).square().mean((-1, -2, -3))
        assert bool(correct[row]) == (int(errors.argmin()) // 27 == int(places[row]))
        assert float(distance[row]) == pytest.approx(float(errors[places[row]].min()), rel=1e-5)


def test_scores_of_the_nearest_render_by_hand() -> None:
    """A grey of 51 / 255 is 0.04 from black and 0.64 from white."""
    renders = torch.stack([torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)])
    pictures = torch.tensor([0.2, 0.2, 1.0])[:, None, None, None].expand(3, 3, 2, 2)
    prompts = ["black", "white", "white"]
    scores = NearestRender(renders, ["black", "white"])(outputs=pictures, prompts=prompts, tasks=None)
    assert scores["correct"] == scores["total"] == [1.0, 0.0, 1.0]
    assert scores["distance"] == pytest.approx([0.04, 0.64, 0.0])
    fidelity = [-math.log(0.04 + ROUNDING), -math.log(0.64 + ROUNDING), math.log(12 * 255**2)]
    assert scores["fidelity"] == pytest.approx(fidelity, rel=1e-5)
    faithful = NearestRender(renders, ["black", "white"], total="fidelity")
    assert faithful(outputs=pictures, prompts=prompts)["total"] == scores["fidelity"]


def test_the_judge_scores_rollouts(judge: NearestRender) -> None:
    empty = torch.zeros(0)
    rollouts = [
        Rollout(task, world.templates()[place, 0], {}, None, empty.bool(), empty.long())
        for task, place in zip(world.tasks(SCENES[:2]), (0, 2), strict=True)
    ]
    means = score(rollouts, judge)
    assert [rollout.scores["total"] for rollout in rollouts] == [1.0, 0.0]
    assert means["reward"] == means["reward/correct"] == 0.5


def test_diversity_by_hand() -> None:
    """0 and 1 deviate by sqrt(1/2) with the divisor G - 1; the second prompt's pictures are alike."""
    pictures = torch.zeros(2, 2, 3, 4, 4)
    pictures[0, 1] = 1
    assert per_prompt_diversity(pictures) == pytest.approx(math.sqrt(0.5) / 2)
    with pytest.raises(
        ValueError, match=r"images have shape \(2, 1, 3, 4, 4\), not \[P, G, 3, H, W\] with two or more"
    ):
        per_prompt_diversity(pictures[:, :1])


def test_bad_input_is_named(judge: NearestRender) -> None:
    learned = AttributeReward(AttributeClassifier([6, 3, 4, 4], 16), LABELS)
    picture = torch.zeros(1, 3, 16, 16)
    ways: Sequence[AttributeReward | NearestRender] = (learned, judge)
    for reward in ways:
        with pytest.raises(
            ValueError, match="the prompt of sample 0, 'a cat', is no caption of this world; one is 'a red"
        ):
            reward(picture, ["a cat"])
        with pytest.raises(ValueError, match="1 images for 2 prompts"):
            reward(picture, CAPTIONS[:2])
    with pytest.raises(ValueError, match="images are 8 x 8 pixels, the attribute classifier reads 16 x 16"):
        learned(picture[..., :8, :8], CAPTIONS[:1])
    with pytest.raises(ValueError, match=r"images have shape \(3, 8, 8\), the true renders \(3, 16, 16\)"):
        judge(picture[..., :8, :8], CAPTIONS[:1])
    for build in (partial(NearestRender, captions=CAPTIONS[:5]), partial(train_classifier, labels=PAIR)):
        with pytest.raises(ValueError, match=r"templates have shape \(288, 27, 3, 16, 16\), not \[S, J, 3, H, W\]"):
            build(world.templates())
    with pytest.raises(ValueError, match="total 'distance' is neither 'correct' nor 'fidelity'"):
        NearestRender(world.templates(), CAPTIONS, total="distance")  # type: ignore[arg-type]
