"""Pretraining of the small vision-language model: to see, to name and find, then to answer as a few demonstrations."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ...cache import cache_folder
from ...envs.toys import scenes
from ...envs.toys.scenes import CELLS, KINDS, Question, Scene, View
from ...fitting import fit
from ...trainers.randomness import generator, seed_of
from .glimpse import END, IMAGE, NUMBERS, GlimpseConfig, GlimpseModel, causal
from .glimpse_backbone import GlimpseRenderer


@dataclass(frozen=True)
class Item:
    """Something to imitate.

    Attributes:
        prompt: the question, or what a role is asked.
        picture: [32, 32, 3] in 0..255.
        answer: what to say, trace included.
        given: words said before it, which are read and not imitated.
        scene: what the picture shows, where a question about it may be held out.
    """

    prompt: str
    picture: Any
    answer: str
    given: str = ""
    scene: Scene = ()


@dataclass(frozen=True)
class Schooling:
    """How long each lesson takes, in gradient steps; ``roles`` is the share of checking and trying again
    in the last, ``grain`` the noise of the pictures' pixels and ``noise`` what is added anew at every look."""

    seeing: int = 300
    naming: int = 250
    answering: int = 2000
    roles: float = 0.125
    batch: int = 64
    lr: float = 1.5e-3
    weight_decay: float = 0.1
    noise: float = 0.1
    grain: float = scenes.NOISE
    seed: int = 0


def new_model(seed: int) -> GlimpseModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("glimpse", seed))
        return GlimpseModel(GlimpseConfig())


def learn_to_see(model: GlimpseModel, how: Schooling, *, count: int = 1800) -> float:
    """What is in each cell, from pictures with the kinds as labels; returns the last batch's accuracy."""
    draw = random.Random(f"see {how.seed}")
    found = [
        [draw.choice(range(1, len(KINDS))) if draw.random() < 0.5 else 0 for _ in range(CELLS)] for _ in range(count)
    ]
    pixels = torch.from_numpy(scenes.render([tuple(s) for s in found], f"see {how.seed}", how.grain))
    labels = torch.tensor(found)
    wanted = [model.see, model.seen, model.words]
    model.config.frozen_vision = False
    hit = 0.0

    def loss(step: int) -> Tensor:
        nonlocal hit
        rows = torch.randint(count, (32,), generator=generator("see", how.seed, step))
        log_probs = model.kinds(model.look(_noisy(pixels[rows], how, step)))
        hit = (log_probs.argmax(-1) == labels[rows]).float().mean().item()
        return F.nll_loss(log_probs.flatten(0, 1), labels[rows].flatten())

    _fit([p for part in wanted for p in part.parameters()], loss, how, how.seeing, 3e-3, "learning to see")
    model.config.frozen_vision = True
    for part in (model.see, model.seen):
        part.requires_grad_(False)
    return hit


def naming_items(count: int, seed: int, noise: float = scenes.NOISE) -> list[Item]:
    """What is in a cell, and where a kind is, in random scenes."""
    draw = random.Random(f"name {seed}")
    drawn: list[tuple[Question, Scene]] = []
    while len(drawn) < count:
        many = draw.randint(2, 12)
        scene = [0] * CELLS
        for cell in draw.sample(range(CELLS), many):
            scene[cell] = draw.randint(1, len(KINDS) - 1)
        if draw.random() < 0.5:
            question = Question("name", (f"p{draw.randrange(CELLS)}",))
        else:
            question = Question("find", (KINDS[draw.choice([k for k in scene if k])],))
        if scenes.answer(question, tuple(scene)) is not None:
            drawn.append((question, tuple(scene)))
    pictures = scenes.render([scene for _, scene in drawn], f"name {seed}", noise)
    answers = (scenes.answer(*one) for one in drawn)
    return [Item(str(q), picture, str(a)) for (q, _), picture, a in zip(drawn, pictures, answers, strict=True)]


def learn_answers(
    model: GlimpseModel,
    items: Sequence[Item],
    how: Schooling,
    steps: int,
    *,
    also: Sequence[Item] = (),
    share: float = 0.25,
    split: int = 0,
) -> float:
    """Imitate answers, each time in another view that ``split`` does not hold out; returns the last loss.

    ``also`` gets ``share`` of every batch.
    """
    renderer = GlimpseRenderer()
    draw = random.Random(f"answers {how.seed}")
    extra = round(share * how.batch) if also else 0

    def loss(step: int) -> Tensor:
        total = torch.zeros(())
        # Apart, as other roles have long answers and a batch is as long as its longest.
        for some, count, which in ((items, how.batch - extra, "questions"), (also, extra, "roles")):
            viewed = [in_view(item, draw, split) for item in draw.choices(some, k=count)] if count else []
            if chosen := [item for item in viewed if item is not None]:
                noisy = partial(_noisy, how=how, step=(which, step))
                total = total + count / how.batch * imitation_loss(model, renderer, chosen, noisy)
        return total

    return _fit([p for p in model.parameters() if p.requires_grad], loss, how, steps, how.lr, "learning to answer")


def in_view(item: Item, draw: random.Random, split: int) -> Item | None:
    """An item in a random view of its picture that asks nothing held out, None where none was found; captions and
    changes come in views already."""
    if item.prompt.startswith(("describe", "change")):
        return item
    text, check, said = item.prompt.partition(" check ")
    first, again, _ = item.given.partition(f" {END}")
    question = Question.parse(text)
    view = scenes.seen_view(question, item.scene, split, draw)
    if view is None:
        return None
    said, first, answer = (scenes.in_order(question, view.text(trace)) for trace in (said, first, item.answer))
    given = f"{first} {END} again" if again else ""
    seen = view.scene(item.scene) if item.scene else ()
    return Item(f"{view.text(text)}{check}{said}", view.picture(item.picture), answer, given, seen)


VIEWS = 48
"""Views of each demonstration: as many as turning, mirroring and permuting channels give."""


def all_views(items: Sequence[Item], seed: int, split: int) -> list[Item]:
    """Items as they are, then ``VIEWS`` - 1 times in a random view; without those for which no view was found."""
    draw = random.Random(f"replay {seed}")
    viewed = [in_view(item, draw, split) for _ in range(VIEWS - 1) for item in items]
    return [*items, *(item for item in viewed if item is not None)]


def demonstrated(count: int, seed: int, split: int, noise: float = scenes.NOISE) -> tuple[list[Item], list[Scene]]:
    """Traced answers to questions of every type in turn, and the scenes that they are about."""
    found = []
    for i, kind in enumerate(scenes.TYPES):
        share = count // len(scenes.TYPES) + (i < count % len(scenes.TYPES))
        found += scenes.questions(kind, share, f"demonstrations {seed}", split=split)
    shown = [scene for _, scene in found]
    pictures = scenes.render(shown, f"demonstrations {seed}", noise)
    answers = (str(scenes.answer(*one)) for one in found)
    items = [Item(str(q), picture, a, "", s) for (q, s), picture, a in zip(found, pictures, answers, strict=True)]
    return items, shown


def corrupted(answer: str, draw: random.Random) -> str:
    """An answer with one mistake: another word, another cell, a cell too many or too few."""
    *cells, _, word = answer.split()
    kind = draw.choice(("word", "cell", "more", "less")) if cells else "word"
    if kind == "word":
        family = [w for w in (KINDS[1:] if word in KINDS else NUMBERS[:8]) if w != word]
        word = draw.choice(family)
    elif kind == "less":
        cells.pop(draw.randrange(len(cells)))
    else:
        other = f"p{draw.randrange(CELLS)}"
        place = draw.randrange(len(cells))
        cells[place : place + (kind == "cell")] = [other]
    if word in NUMBERS and kind in ("more", "less") and draw.random() < 0.5:
        word = str(min(max(int(word) + (1 if kind == "more" else -1), 0), 12))
    changed = " ".join([*cells, "=", word])
    return changed if changed != answer else corrupted(answer, draw)


def role_items(
    demos: Sequence[Item], shown: Sequence[Scene], seed: int, *, copies: int = 8, noise: float = scenes.NOISE
) -> list[Item]:
    """The other roles, from the demonstrations alone: check an answer, answer again after a first attempt, describe a
    picture, tell what was changed in it."""
    draw = random.Random(f"roles {seed}")
    items = []
    for item, scene in zip(demos, shown, strict=True):
        for copy in range(copies):
            wrong = corrupted(item.answer, draw)
            said, verdict = (item.answer, "= yes") if draw.random() < 0.5 else (wrong, "= no")
            items.append(Item(f"{item.prompt} check {said}", item.picture, verdict, "", scene))
            first = item.answer if draw.random() < 0.3 else wrong
            items.append(Item(item.prompt, item.picture, item.answer, f"{first} {END} again", scene))
            view = View.draw(Question("name"), draw)
            seen = view.scene(scene)
            items.append(Item("describe", view.picture(item.picture), scenes.caption(seen)))
            after, told = scenes.change(seen, draw)
            picture = scenes.render([after], f"{seed} {item.prompt} {copy}", noise)[0]
            items.append(Item(f"change from {scenes.caption(seen)}", picture, f"= {told}"))
    return items


def imitation_loss(
    model: GlimpseModel, renderer: GlimpseRenderer, items: Sequence[Item], change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Cross-entropy of the answers' tokens."""
    prompts = [renderer.words(f"{' '.join([IMAGE] * CELLS)} {item.prompt}") for item in items]
    given = [renderer.words(item.given) for item in items]
    answers = [[*before, *renderer.tokens(item.answer).tolist()] for before, item in zip(given, items, strict=True)]
    ids, tokens = (pad_sequence([torch.tensor(x) for x in each], batch_first=True) for each in (prompts, answers))
    mask, held = ids != 0, tokens != 0
    learned = held & (torch.arange(tokens.shape[1]) >= torch.tensor([len(before) for before in given])[:, None])
    pixels = change(torch.from_numpy(np.stack([item.picture for item in items])))
    hidden, memory = model.read(ids, pixels, mask)
    first = hidden[torch.arange(len(items)), mask.sum(-1) - 1, None]
    places = torch.arange(tokens.shape[1] - 1).expand(len(items), -1)
    later, _ = model.read_on(memory, tokens[:, :-1], causal(mask, held[:, :-1]), places)
    logits = model.head(torch.cat([first, later], 1)[learned])
    return F.cross_entropy(logits, tokens[learned])


def _noisy(pixels: Tensor, how: Schooling, step: object) -> Tensor:
    noise = torch.randn(pixels.shape, generator=generator("noise", how.seed, step))
    return pixels.float() + 64.0 * how.noise * noise


def _fit(
    parameters: Sequence[torch.nn.Parameter],
    loss: Callable[[int], Tensor],
    how: Schooling,
    steps: int,
    lr: float,
    told: str,
) -> float:
    """Warm-up over 20 steps, and linear decay to a tenth."""
    rates = [lr * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / steps) for step in range(steps)]
    return fit(parameters, loss, rates, weight_decay=how.weight_decay, max_grad_norm=1.0, fused=True, told=told)


# the default model

VERSION = 4
"""To be raised when the lessons, the world or the model change: cached models are then made anew."""


def default_model(seed: int, split: int, count: int, noise: float = scenes.NOISE) -> Path:
    """A folder with the small model as it starts: taught to see, name and find, and to answer from ``count``
    demonstrations, in pictures of so much noise. Made in three CPU minutes at first use, then kept."""
    grain = "" if noise == scenes.NOISE else f"-noise-{noise:g}"
    place = cache_folder() / f"glimpse-{VERSION}-{seed}-{split}-{count}{grain}"
    if (place / "config.json").is_file():
        return place
    print(f"making the small vision-language model (seed {seed}, {count} demonstrations), once: three CPU minutes")
    how = Schooling(seed=seed, grain=noise)
    model = new_model(seed).train()
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("dropout", seed))
        learn_to_see(model, how)
        learn_answers(model, naming_items(4000, seed, noise), how, how.naming)
        if count:
            demos, shown = demonstrated(count, seed, split, noise)
            roles = role_items(demos, shown, seed, noise=noise)
            learn_answers(model, demos, how, how.answering, also=roles, share=how.roles, split=split)
    quiet()
    with TemporaryDirectory(dir=place.parent) as temporary:
        model.eval().save_pretrained(temporary)
        with contextlib.suppress(OSError):  # another process was faster
            Path(temporary).rename(place)
            Path(temporary).mkdir()
    return place


def quiet() -> None:
    """No progress bars of transformers about a megabyte."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
