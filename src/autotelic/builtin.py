"""Built-in names: what a name on the command line stands for, as "module:attribute", imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping

REWARDS: Mapping[str, Mapping[str, str]] = {
    "image": {
        "jpeg": "autotelic.rewards.image.pictures:JPEGSize",
        "incompressible": "autotelic.rewards.variants:Incompressible",
        "colourfulness": "autotelic.rewards.image.pictures:Colourfulness",
        "sharpness": "autotelic.rewards.image.pictures:Sharpness",
        "text": "autotelic.rewards.image.pictures:TextMatch",
        "aesthetic": "autotelic.rewards.image.hub:LaionAesthetic",
        "clip": "autotelic.rewards.image.hub:CLIPScore",
        "siglip": "autotelic.rewards.variants:SigLIPScore",
        "pickscore": "autotelic.rewards.image.hub:PickScore",
        "hps": "autotelic.rewards.image.hub:HPSv2",
        "imagereward": "autotelic.rewards.image.hub:ImageReward",
        "yes_no": "autotelic.rewards.models.judge:YesNoJudge",
        "pairwise": "autotelic.rewards.variants:GroupPairwise",
        "rubric": "autotelic.rewards.models.rubric:RubricJudge",
    },
    "text": {
        "exact": "autotelic.rewards.text.verifiers:Exact",
        "numeric": "autotelic.rewards.text.verifiers:Numeric",
        "math": "autotelic.rewards.text.verifiers:Mathematics",
        "digits": "autotelic.rewards.text.digits:Digits",
        "choice": "autotelic.rewards.text.verifiers:Choice",
        "set": "autotelic.rewards.text.verifiers:SetMatch",
        "set_exact": "autotelic.rewards.variants:SetExact",
        "boxes": "autotelic.rewards.text.verifiers:BoxIoU",
        "format": "autotelic.rewards.text.verifiers:Format",
        "truncated": "autotelic.rewards.text.verifiers:Truncated",
        "code": "autotelic.rewards.text.code_tests:CodeTests",
        "majority": "autotelic.rewards.text.consensus:MajorityVote",
        "self_consistency": "autotelic.rewards.text.consensus:SelfConsistency",
        "crowd": "autotelic.rewards.text.consensus:CrowdVote",
        "novelty": "autotelic.rewards.text.consensus:MajorityNovelty",
        "views": "autotelic.rewards.text.consensus:ViewConsistency",
    },
    "anything": {"random": "autotelic.rewards.chance:Random"},
}
"""What a reward scores -> the rewards' names."""

PUBLISHED = ("grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce_pp", "nft", "copg", "ipo")
"""Objectives that bring an advantage or a way to find pairs along."""

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")
"""Those of accelerate."""

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "reward": {name: place for rewards in REWARDS.values() for name, place in rewards.items()},
    "progress": {
        "time": "autotelic.rewards.progress.controls:Clock",
        "travel": "autotelic.rewards.progress.controls:Travel",
        "constant": "autotelic.rewards.progress.controls:Constant",
        "clip": "autotelic.rewards.progress.clip_progress:CLIPProgress",
        "gvl": "autotelic.rewards.progress.vlm_progress:GVL",
        "topreward": "autotelic.rewards.progress.vlm_progress:TOPReward",
        "vlac": "autotelic.rewards.progress.vlm_progress:VLAC",
    },
    "pipeline": {
        "StableDiffusionPipeline": "autotelic.diffusion.pipelines:StableDiffusionAdapter",
        "StableDiffusionXLPipeline": "autotelic.diffusion.pipelines:StableDiffusionXLAdapter",
        "StableDiffusion3Pipeline": "autotelic.diffusion.pipelines:StableDiffusion3Adapter",
        "LatentConsistencyModelPipeline": "autotelic.diffusion.pipelines:StableDiffusionAdapter",
        "FluxPipeline": "autotelic.diffusion.pipelines:FluxAdapter",
        "QwenImagePipeline": "autotelic.diffusion.pipelines:QwenImageAdapter",
        "PixArtSigmaPipeline": "autotelic.diffusion.pipelines:PixArtAdapter",
        "SanaPipeline": "autotelic.diffusion.pipelines:SanaAdapter",
        "WanPipeline": "autotelic.diffusion.pipelines:WanAdapter",
        "ShapesPipeline": "autotelic.diffusion.small.shapes_pipeline:ShapesAdapter",
    },
    "renderer": {family: "autotelic.vlm.processing:IdeficsRenderer" for family in ("idefics2", "idefics3", "smolvlm")},
    "curriculum": {
        "uniform": "autotelic.trainers.curricula:Uniform",
        "sec": "autotelic.trainers.curricula:SEC",
    },
    "objective": {
        **{name: f"autotelic.trainers.published:{name}" for name in PUBLISHED},
        "ppo_clip": "autotelic.trainers.objectives:PPOClip",
        "reinforce": "autotelic.trainers.objectives:Reinforce",
    },
    "advantage": {
        "grpo": "autotelic.trainers.published:normalised",
        "dr_grpo": "autotelic.trainers.advantages:dr_grpo",
        "rloo": "autotelic.trainers.advantages:rloo",
        "reinforce_pp": "autotelic.trainers.advantages:ReinforcePlusPlus",
    },
    "tracker": {
        "tensorboard": "autotelic.trainers.runs.trackers:TensorBoard",
        **{name: f"autotelic.trainers.runs.trackers:{name}" for name in TRACKERS},
    },
    "gate": {
        "non_inferiority": "autotelic.trainers.gates:NonInferiority",
        "best": "autotelic.trainers.gates:BestSoFar",
        "canary": "autotelic.trainers.gates:Canary",
    },
}
"""Kind -> name -> where it is. The other kinds have registered names alone."""
