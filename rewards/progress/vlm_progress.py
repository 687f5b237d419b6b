"""Vision-language models as judges of progress, without training: GVL, TOPReward, VLAC.

    model = TOPReward(VLM("Qwen/Qwen3-VL-8B-Instruct", device="cuda"))
    audit_progress(model, episodes).verdict

All see frames uint8 [T, H, W, 3] and an instruction, and ask through one ``Speaker`` (``vlm.py``), which batches,
remembers and counts. Answers that cannot be read are counted in ``unread`` and never end a run; what stands in for
them is said at each judge. Audit a judge on your own episodes before you train on it: none of these was measured here
with its published weights.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from string import Formatter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...families import families_of
from ...numbers import Floats
from ..models.exhibits import Prompt, check_fields
from ..models.vlm import VLM, Speaker, Token, Written

Frames = NDArray[np.uint8]

GVL_TASK = (
    "A robot was told: {instruction}. You will see frames of its attempt, out of order. Say of each how much of the "
    "task is done, in percent: 0 % as in the first scene, 100 % when all is done."
)
GVL_FIRST = "The first scene, of which 0 % is done:"
GVL_ANSWER = 'Answer with one line per frame, in the order shown, as in "Frame 1: 40 %".'
TOP_QUESTION = (
    "These frames show a robot in order of time. Statement: at the end of them the robot has completed the task "
    '"{instruction}". Is the statement True or False? The answer is:'
)
VLAC_QUESTION = (
    "First picture: {first} Second picture: {second} A robot was told: {instruction}. How much nearer to the goal is "
    "the second picture than the first, in percent of what was left? Answer with one number from -100 to +100, "
    "negative if it is farther away."
)


class GVL:
    """Percentages of shuffled frames (arXiv 2411.04549): a model that cannot see the order must look at the frames.

    All frames of an episode go into one question, in an order drawn from the episode's content; the first one comes
    before them as the scene of which 0 % is done; the percentages are written in one answer, each after those before
    it. Checked against the prompts of public reimplementations (order of parts, anchoring, one line per frame); the
    words are this project's, and examples in context are left out. How many frames the paper takes was not checked.

    A frame without a percentage in 0..100, or with two, is unread and gets its value from its neighbours in time;
    when none can be read the episode counts as no progress.

    Args:
        speaker: who is asked, or a model's name.
        frames: at most so many, evenly spaced with first and last.
        task: the question's beginning, with the field {instruction}.

    Attributes:
        unread: frames without a readable percentage so far.
    """

    kind: Literal["terminal"] = "terminal"
    sees: Literal["frames"] = "frames"

    def __init__(self, speaker: Speaker | str | None = None, *, frames: int = 20, task: str = GVL_TASK) -> None:
        check_fields(task, ("instruction",), every=True)
        self.speaker, self.frames, self.task = _speaker(speaker), _at_least(frames, 2), task
        self.families, self.unread = families_of(self.speaker), 0

    def __call__(self, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None) -> Floats:
        """The value of the last frame of each clip [T_i, H, W, 3], 0..1."""
        return np.array([trace[-1] for trace in self.traces(observations, instructions)], np.float32)

    def trace(self, clip: Frames, instruction: str) -> Floats:
        """Values [T] of the frames of a clip, 0..1; frames that were not asked about lie on the line between."""
        return self.traces([clip], [instruction])[0]

    def traces(self, clips: Sequence[Frames], instructions: Sequence[str]) -> list[Floats]:
        """As ``trace``, of several clips in batches."""
        asked = [_spaced(len(_checked(clip)), self.frames) for clip in clips]
        orders = [_shuffle(clip, places[1:]) for clip, places in zip(clips, asked, strict=True)]
        questions = [
            self._question(clip, order, text) for clip, order, text in zip(clips, orders, instructions, strict=True)
        ]
        tokens = 12 * (self.frames + 1)  # of "Frame 12: 100 %" and a line break, generously
        answers = self.speaker.write(questions, tokens)
        return [
            self._read(answer.text, order, len(clip))
            for answer, order, clip in zip(answers, orders, clips, strict=True)
        ]

    def _question(self, clip: Frames, order: Sequence[int], instruction: str) -> Prompt:
        parts: list[str | Image.Image] = [self.task.format(instruction=instruction), GVL_FIRST, _picture(clip[0])]
        for number, place in enumerate(order, 1):
            parts += [f"Frame {number}:", _picture(clip[place])]
        return (*parts, GVL_ANSWER)

    def _read(self, text: str, order: Sequence[int], length: int) -> Floats:
        said: dict[int, list[float]] = {}
        for number, percent in re.findall(r"frame\s*(\d+)\b[^\d%\n]*?(-?\d+(?:\.\d+)?)\s*%", text, re.IGNORECASE):
            said.setdefault(int(number), []).append(float(percent))
        values = {0: 0.0}
        for number, place in enumerate(order, 1):
            found = said.get(number, [])
            if len(found) == 1 and 0 <= found[0] <= 100:
                values[place] = found[0] / 100
            else:
                self.unread += 1
        places = sorted(values)
        return np.interp(np.arange(length), places, [values[place] for place in places]).astype(np.float32)


class TOPReward:
    """The probability that a model calls the task done after the clip so far (arXiv 2602.19313).

    The value of a clip is log P("True") after its frames and a statement that the task was completed. Checked against
    LeRobot's port: one forward pass, the log-probability of the one token, frames in order of time, and values that
    are scaled per episode from their least to their greatest (all 1 where they are equal), over prefixes of growing
    length. That scaling says nothing of one episode against another, so it serves ``trace`` alone; the estimate of a
    whole episode is P("True") itself. Unlike the port this one asks inside the model's chat template, with pictures
    rather than a video, and counts every spelling of the word that is one token. The paper's body was not read.

    Args:
        speaker: who is asked, or a model's name.
        frames: at most so many of a clip are shown, evenly spaced with first and last.
        prefixes: lengths at which ``trace`` asks; 15 in the port.
        question: with the field {instruction}.
    """

    kind: Literal["terminal"] = "terminal"
    sees: Literal["frames"] = "frames"

    def __init__(
        self,
        speaker: Speaker | str | None = None,
        *,
        frames: int = 16,
        prefixes: int = 15,
        question: str = TOP_QUESTION,
    ) -> None:
        check_fields(question, ("instruction",), every=True)
        self.speaker, self.question = _speaker(speaker), question
        self.frames, self.prefixes = _at_least(frames, 1), _at_least(prefixes, 2)
        self.families = families_of(self.speaker)

    def __call__(self, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None) -> Floats:
        """P("True") after each clip [T_i, H, W, 3], 0..1."""
        return np.exp(self._logs(observations, instructions)).astype(np.float32)

    def trace(self, clip: Frames, instruction: str) -> Floats:
        """Values [T] of the clip up to each frame, scaled to 0..1 over the clip."""
        lengths = [place + 1 for place in _spaced(len(_checked(clip)), self.prefixes)]
        logs = self._logs([clip[:length] for length in lengths], [instruction] * len(lengths))
        span = logs.max() - logs.min()
        values = (logs - logs.min()) / span if span > 0 else np.ones_like(logs)
        return np.interp(np.arange(1, len(clip) + 1), lengths, values).astype(np.float32)

    def _logs(self, clips: Sequence[Frames], instructions: Sequence[str]) -> NDArray[np.float64]:
        prompts: list[Prompt] = []
        for clip, text in zip(clips, instructions, strict=True):
            shown = [_picture(clip[place]) for place in _spaced(len(_checked(clip)), self.frames)]
            prompts.append((*shown, self.question.format(instruction=text)))
        return np.array(self.speaker.log_probability(prompts, "true"), np.float64)


class VLAC:
    """A signed pair critic: how much nearer to the goal is one frame than another (VLAC; used by arXiv 2512.14666).

    The answer is a number in -100..100, divided by 100. Checked against VLAC's code: earlier picture first, a
    positive number when the second is nearer, and digits that are weighted by probability among those at least a
    tenth as likely as the first (``weighted``; the code replaces each digit by its mean, here whole numbers are
    averaged place by place). An answer that holds no number, or one outside, counts as no advance.

    VLAC's own weights were trained on one wording, which is not that of the default question: give theirs, with the
    fields {first}, {second} and {instruction}. They need a conversion to transformers' own InternVL or code from
    their hub, which this project does not run; they were not tried here.

    Args:
        speaker: who is asked, or a model's name.
        weighted: read the answer as a mean over likely digits.
        question: {first} and {second} are where the pictures stand.

    Attributes:
        unread: answers without a readable number so far.
    """

    kind: Literal["pairwise"] = "pairwise"
    sees: Literal["frames"] = "frames"

    def __init__(
        self, speaker: Speaker | str | None = None, *, weighted: bool = True, question: str = VLAC_QUESTION
    ) -> None:
        check_fields(question, ("first", "second", "instruction"), every=True)
        self.speaker, self.weighted, self.question = _speaker(speaker), weighted, question
        self.families, self.unread = families_of(self.speaker), 0

    def __call__(self, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None) -> Floats:
        """Advances [N] in -1..1 from references to observations, uint8 [N, H, W, 3] each."""
        if references is None:
            raise ValueError("VLAC compares: it needs references")
        pairs = zip(_checked(references), _checked(observations), instructions, strict=True)
        answers = self.speaker.write([self._prompt(*pair) for pair in pairs], 8)
        return np.array([self._number(answer) for answer in answers], np.float32)

    def _prompt(self, first: Frames, second: Frames, instruction: str) -> Prompt:
        shown: dict[str, str | Image.Image] = {
            "first": _picture(first),
            "second": _picture(second),
            "instruction": instruction,
        }
        parts: list[str | Image.Image] = []
        for text, field, _, _ in Formatter().parse(self.question):
            for part in (text, shown[field] if field else ""):
                if isinstance(part, str) and parts and isinstance(parts[-1], str):
                    parts[-1] += part
                elif part != "":
                    parts.append(part)
        return tuple(parts)

    def _number(self, answer: Written) -> float:
        found = re.search(r"[-+\u2212]?\s*\d+(?:\.\d+)?", answer.text)
        if found is None or not -100 <= (value := _float(found[0])) <= 100:
            self.unread += 1
            return 0.0
        if self.weighted and answer.tokens and "." not in found[0]:
            value = float(np.clip(_mean_number(answer.tokens, value), -100, 100))
        return value / 100


def _mean_number(tokens: Sequence[Token], said: float) -> float:
    """The mean of the number that the first run of figures spells, over the likely figures in each place.

    Alternatives with another number of figures say nothing about this place and are left out.
    """
    figures: list[tuple[float, int]] = []
    for token in tokens:
        word = token.text.strip().lstrip("+-\u2212")
        if not word.isdigit():
            if figures:
                break
            continue
        likely = [(text.strip().lstrip("+-\u2212"), chance) for text, chance in token.alternatives]
        likely = [(text, chance) for text, chance in likely if text.isdigit() and len(text) == len(word)]
        weight = sum(chance for _, chance in likely)
        mean = sum(float(text) * chance for text, chance in likely) / weight if weight > 0 else float(word)
        figures.append((mean, len(word)))
    size = 0.0
    for mean, width in figures:
        size = size * 10**width + mean
    if not figures:
        return said
    return -size if said < 0 else size


def _float(text: str) -> float:
    return float(text.replace("\u2212", "-").replace(" ", ""))


def _speaker(speaker: Speaker | str | None) -> Speaker:
    if speaker is None:
        return VLM()
    return VLM(speaker) if isinstance(speaker, str) else speaker


def _at_least(count: int, least: int) -> int:
    if count < least:
        raise ValueError(f"a judge is shown {count} frames; at least {least} are needed")
    return count


def _checked(frames: Any) -> Frames:
    if getattr(frames, "dtype", None) != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        what = f"{getattr(frames, 'dtype', type(frames).__name__)} {list(getattr(frames, 'shape', ()))}"
        raise ValueError(f"a judge sees frames, uint8 [T, H, W, 3], and was given {what}")
    seen: Frames = frames
    return seen


def _spaced(length: int, count: int) -> list[int]:
    """At most ``count`` places in 0..length-1, evenly spaced, the last among them, and the first if there are two."""
    if count == 1:
        return [length - 1]
    places = np.linspace(0, length - 1, min(count, length)).round().astype(int)
    return [int(place) for place in np.unique(places)]


def _shuffle(clip: Frames, places: Sequence[int]) -> list[int]:
    """The same order for the same frames, whenever and wherever they are asked about."""
    key = int.from_bytes(hashlib.sha256(clip.tobytes()).digest()[:8], "big")
    return [places[i] for i in np.random.default_rng(key).permutation(len(places))]


def _picture(frame: Frames) -> Image.Image:
    return Image.fromarray(frame)
