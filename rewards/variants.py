"""Rewards under a second name: the same class with other settings."""

from __future__ import annotations

from .image.hub import CLIPScore
from .image.pictures import JPEGSize
from .models.judge import PairwiseJudge
from .text.verifiers import SetMatch


class Incompressible(JPEGSize):
    """Bytes of a picture's JPEG file, in hundreds: noise and detail score highest."""

    def __init__(self) -> None:
        super().__init__(target="incompressible")


class SigLIPScore(CLIPScore):
    """The probability that a prompt and a picture belong together, by SigLIP, in 0..1 (arXiv 2303.15343)."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__("google/siglip-base-patch16-224", prefix="", probability=True, device=device)


class SetExact(SetMatch):
    """1.0 if a list of answers is the reference's, without regard to order, spelling or repetition, else 0.0."""

    def __init__(self) -> None:
        super().__init__(partial=False)


class GroupPairwise(PairwiseJudge):
    """The share of its group that an output is better than, as a model says; quality is what it is asked about."""

    def __init__(self) -> None:
        super().__init__("quality", against="group")
