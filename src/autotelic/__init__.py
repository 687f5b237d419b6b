"""autotelic: vision-language models, robot policies and diffusion models that improve themselves.

They act, something judges what they did, they learn from the judgement, and a gate decides what may stay. From Python
a run is a ``Trainer``; the names below are what one's own rewards, policies, environments and recipes are made of.
They are imported when they are asked for, so that ``import autotelic`` and the command line answer at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "trainer": ("Trainer",),
    "plugins": ("register",),
    "errors": ("UsageError",),
    "types": ("Batch", "Evaluation", "Rollout", "Task", "Verdict"),
    "rewards.reward": ("Reward",),
    "envs.simulator": ("EnvSpec", "Feature"),
    "trainers.actors": ("Actor", "Game", "SystemWrapper", "TrainingWrapper"),
    "trainers.advantages": ("GroupRelative", "ReinforcePlusPlus"),
    "trainers.runs.callbacks": ("Callback",),
    "trainers.contracts": ("Advantage", "Curriculum", "Learner", "Shaping"),
    "trainers.curricula": ("SEC", "Uniform"),
    "trainers.gates": ("BestSoFar", "Canary", "Gate", "NonInferiority"),
    "trainers.learner": ("AnchorSet", "Optimisation", "PolicyLearner"),
    "trainers.loop": ("Experiment", "Stage", "train"),
    "trainers.objectives": (
        "DPO",
        "NFT",
        "Entropy",
        "ForwardNFT",
        "KLPenalty",
        "PPOClip",
        "PairwiseRegression",
        "Reinforce",
        "Term",
        "WeightedImitation",
    ),
    "trainers.policy": ("TorchPolicy",),
    "trainers.runs.run_folder": ("RunFolder",),
    "vlm.policy": ("TokenPolicy",),
    "vlm.setting": ("LanguageConfig",),
    "vla.chunk_policy": ("ChunkPolicy",),
    "vla.setting": ("RobotConfig",),
    "diffusion.pipelines": ("PipelineAdapter",),
    "diffusion.policy": ("DenoisingPolicy",),
    "diffusion.setting": ("DiffusionConfig",),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from .diffusion.pipelines import PipelineAdapter as PipelineAdapter
    from .diffusion.policy import DenoisingPolicy as DenoisingPolicy
    from .diffusion.setting import DiffusionConfig as DiffusionConfig
    from .envs.simulator import EnvSpec as EnvSpec
    from .envs.simulator import Feature as Feature
    from .errors import UsageError as UsageError
    from .plugins import register as register
    from .rewards.reward import Reward as Reward
    from .trainer import Trainer as Trainer
    from .trainers.actors import Actor as Actor
    from .trainers.actors import Game as Game
    from .trainers.actors import SystemWrapper as SystemWrapper
    from .trainers.actors import TrainingWrapper as TrainingWrapper
    from .trainers.contracts import Advantage as Advantage
    from .trainers.contracts import Curriculum as Curriculum
    from .trainers.contracts import Learner as Learner
    from .trainers.gates import Gate as Gate
    from .trainers.learner import Optimisation as Optimisation
    from .trainers.learner import PolicyLearner as PolicyLearner
    from .trainers.loop import Experiment as Experiment
    from .trainers.loop import Stage as Stage
    from .trainers.loop import train as train
    from .trainers.objectives import PPOClip as PPOClip
    from .trainers.objectives import Term as Term
    from .trainers.policy import TorchPolicy as TorchPolicy
    from .trainers.runs.callbacks import Callback as Callback
    from .trainers.runs.run_folder import RunFolder as RunFolder
    from .types import Batch as Batch
    from .types import Evaluation as Evaluation
    from .types import Rollout as Rollout
    from .types import Task as Task
    from .vla.chunk_policy import ChunkPolicy as ChunkPolicy
    from .vla.setting import RobotConfig as RobotConfig
    from .vlm.policy import TokenPolicy as TokenPolicy
    from .vlm.setting import LanguageConfig as LanguageConfig


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
