"""CLIP and SigLIP as progress models, without training: how much a frame looks like a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UsageError
from ...numbers import Floats
from ..image.hub import CLIPScore

BASELINE = "a robot arm beside a table"


class CLIPProgress:
    """1 - |P (s - g)|^2 / 2 of a frame s and a goal's text g, with goal-baseline regularisation (arXiv 2310.12921).

    s and g are unit vectors; P = alpha d d' / |d|^2 + (1 - alpha) 1 with d = g - b keeps, at alpha 1, the direction
    alone in which the goal's text differs from a baseline's b; at alpha 0 the value is the cosine of s and g. Checked
    against the code (AlignmentResearch/vlmrm).

    What this gives lies in -1..1 and in practice in a narrow band. ``fit`` reads that band off demonstrations: 0 where
    their first frames lie, 1 where their last do, per instruction; ``blind`` names instructions whose last frames do
    not score above the first. Those, and everything before ``fit``, are mapped from -1..1 to 0..1.

    Args:
        name_or_path: a CLIP or SigLIP model of transformers.
        alpha: strength of the regularisation, 0..1.
        goal: the goal's text, with the field {instruction}.
        baseline: a text for the scene in which nothing has happened; {instruction} may stand in it too.
        batch_size: frames per forward pass.
        device, dtype: of the model, which is loaded at the first question.

    Raises:
        UsageError: the model cannot be loaded, or alpha lies outside 0..1.
    """

    kind: Literal["absolute"] = "absolute"
    sees: Literal["frames"] = "frames"

    def __init__(
        self,
        name_or_path: str = "openai/clip-vit-base-patch32",
        *,
        alpha: float = 0.5,
        goal: str = "{instruction}",
        baseline: str = BASELINE,
        batch_size: int = 64,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise UsageError(f"alpha is {alpha:g}, not in 0..1")
        self.towers = CLIPScore(name_or_path, prefix="", device=device, dtype=dtype)
        self.alpha, self.goal, self.baseline, self.batch_size = alpha, goal, baseline, batch_size
        self.bands: dict[str, tuple[float, float]] = {}
        self.blind: list[str] = []
        self.families = self.towers.families
        self._texts: dict[str, Tensor] = {}

    def fit(self, demonstrations: Sequence[Any]) -> None:
        """Read each instruction's band off its demonstrations (``frames`` [N+1, H, W, 3], ``instruction``)."""
        self.bands, self.blind = {}, []
        for text in dict.fromkeys(d.instruction for d in demonstrations):
            mine = [d for d in demonstrations if d.instruction == text]
            if any(getattr(d, "frames", None) is None for d in mine):
                raise ValueError(f"the demonstrations of {text!r} have no frames: record them")
            low = float(self.raw(np.stack([d.frames[0] for d in mine]), [text] * len(mine)).mean())
            high = float(self.raw(np.stack([d.frames[-1] for d in mine]), [text] * len(mine)).mean())
            if high > low:
                self.bands[text] = (low, high)
            else:
                self.blind.append(text)

    def __call__(self, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None) -> Floats:
        """Values [N] in 0..1 of frames uint8 [N, H, W, 3]."""
        raw = self.raw(observations, instructions)
        low, high = np.array([self.bands.get(text, (-1.0, 1.0)) for text in instructions], np.float32).T
        values: Floats = np.clip((raw - low) / (high - low), 0, 1).astype(np.float32)
        return values

    @torch.no_grad()
    def raw(self, frames: Any, instructions: Sequence[str]) -> Floats:
        """The formula's values [N], in -1..1."""
        if getattr(frames, "dtype", None) != np.uint8 or frames.ndim != 4:
            raise ValueError("CLIPProgress sees frames, uint8 [N, H, W, 3]")
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        seen = torch.cat([self._seen(some) for some in torch.split(pixels, self.batch_size)])
        goals = torch.stack([self._text(self.goal.format(instruction=text)) for text in instructions])
        bases = torch.stack([self._text(self.baseline.format(instruction=text)) for text in instructions])
        away, line = seen - goals, F.normalize(goals - bases, dim=-1)
        along = (away * line).sum(-1, keepdim=True) * line
        values = 1 - (self.alpha * along + (1 - self.alpha) * away).square().sum(-1) / 2
        result: Floats = values.numpy().astype(np.float32)
        return result

    def _seen(self, frames: Tensor) -> Tensor:
        """[n, D] unit vectors of frames uint8 [n, 3, H, W]."""
        model, _, pixels = self.towers.parts
        shown = pixels(frames.to(self.towers.device).float() / 255).to(self.towers.dtype)
        return F.normalize(model.get_image_features(pixel_values=shown).pooler_output.float(), dim=-1).cpu()

    def _text(self, text: str) -> Tensor:
        if text not in self._texts:
            self._texts[text] = self.towers.texts([text])[0].cpu()
        return self._texts[text]
