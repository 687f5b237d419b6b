"""What is right, in evaluation and gate: the verifiers that training is rewarded by, where it has any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..families import GROUND_TRUTH
from ..rewards.text.verifiers import Exact
from ..trainers.scoring import total_scores
from ..types import Task

EXACT = Exact()
