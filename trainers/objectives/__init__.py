"""Objectives: losses on the small tensors of a batch and an evaluation.

They add up: ``PPOClip(clip_high=0.28) + 0.01 * KLPenalty("reference") - 0.001 * Entropy()``.
"""

from .base import Aggregate, Level, Metrics, Sum, Term, mean
from .imitation import WeightedImitation
from .nft import NFT, ForwardNFT
from .pairwise import PairwiseRegression
from .policy_gradient import PPOClip, Reinforce
from .preference import DPO
from .regularisers import Entropy, KLPenalty
from .value import ValueLoss

__all__ = [
    "DPO",
    "NFT",
    "Aggregate",
    "Entropy",
    "ForwardNFT",
    "KLPenalty",
    "Level",
    "Metrics",
    "PPOClip",
    "PairwiseRegression",
    "Reinforce",
    "Sum",
    "Term",
    "ValueLoss",
    "WeightedImitation",
    "mean",
]
