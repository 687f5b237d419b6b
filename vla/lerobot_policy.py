"""Policies of LeRobot: ACT, diffusion policy, SmolVLA, pi0 and pi0.5, with what each of them can do.

| policy | acts | learns by |
|---|---|---|
| ACT | one chunk, the same every time | imitation of demonstrations alone |
| diffusion policy | denoises from noise | imitation, and objectives over forward decisions (NFT, weighted imitation) |
| SmolVLA, pi0, pi0.5 | flow from noise (ODE) | the same |

Forward decisions draw (t, e) once for all policies compared; a chunk's score is -|target - prediction|^2 / 2. Nobody
knows the probability of a chunk that an ODE or a whole chain of denoising ended in, so none of them is "exact", and
objectives that need that are refused.

Written against the code of lerobot 0.4.4, whose own ACT and diffusion policy were run through it with random weights;
on equal (t, e) the latter's loss is the one here. 0.6.1, in which pi0 and pi0.5 were followed, has the same signatures;
it was read and not run. SmolVLA, pi0 and pi0.5 are untried: they were run as stand-ins with their signatures only, and
no published weights were loaded. ``pip install 'autotelic[lerobot]'`` takes 0.6, on Python 3.12 and later; 0.4.4, for
3.11, asks for older transformers and cannot load weights beside these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..envs.simulator import IMAGES, View
from ..errors import UsageError
from ..trainers.lora import has_lora
from ..types import Decisions, Evaluation
from .chunk_policy import ChunkPolicy, Seen

Kind = Literal["act", "diffusion", "smolvla", "pi0", "pi05"]
KINDS: tuple[Kind, ...] = ("act", "diffusion", "smolvla", "pi0", "pi05")
FLOWS = ("smolvla", "pi0", "pi05")
Process = Callable[[Any], Any]
STATE, WORLD, ACTION = "observation.state", "observation.environment_state", "action"


class LeRobotPolicy(ChunkPolicy):
    """A ``PreTrainedPolicy`` of LeRobot behind the contract of robot policies here.

    A payload stores "clean" [S, H, A], the planned steps in the policy's own normalised units. The first C steps of a
    plan are executed at most, and those that were are learned from.

    The first numbers of a state are LeRobot's "observation.state", the others "observation.environment_state".
    Actions are expected in [-1, 1] behind ``postprocess``, and cut to it.

    Args:
        policy: ACTPolicy, DiffusionPolicy, SmolVLAPolicy, PI0Policy or PI05Policy, of one observation step.
        preprocess, postprocess: LeRobot's processor pipelines (normalisation, tokens); None leaves things as they are.
        chunk: C; None takes the policy's ``n_action_steps``.
        view: how frames are taken; None takes the camera's height, and several cameras by their names.
        forward_draws: forward decisions per chunk.

    Raises:
        UsageError: a kind of policy, or a setting of it, that is not known here.
    """

    demonstrations: Decisions = "forward"

    def __init__(
        self,
        policy: Any,
        preprocess: Process | None = None,
        postprocess: Process | None = None,
        *,
        chunk: int | None = None,
        view: View | None = None,
        forward_draws: int = 4,
        **options: Any,
    ) -> None:
        config = policy.config
        self.kind = cast(Kind, _kind(policy))
        self.planned = int(config.horizon if self.kind == "diffusion" else config.chunk_size)
        chunk = int(config.n_action_steps) if chunk is None else chunk
        if not 1 <= chunk <= self.planned:
            raise UsageError(f"{type(policy).__name__} plans {self.planned} steps: chunk is {chunk}")
        # LeRobot fills in what is called empty.
        self.cameras = [name for name in config.image_features or {} if "empty_camera" not in name]
        self.sizes = {
            name: int(feature.shape[0])
            for name, feature in ((STATE, config.robot_state_feature), (WORLD, config.env_state_feature))
            if feature is not None
        }
        shape = config.image_features[self.cameras[0]].shape if self.cameras else (3, 0, 0)
        self.picture = (int(shape[1]), int(shape[2]))
        names = tuple(camera.removeprefix(IMAGES) for camera in self.cameras) if len(self.cameras) > 1 else ()
        looks = (view or View(self.picture[0], cameras=names)) if self.cameras else None
        super().__init__(
            policy,
            chunk=chunk,
            action_size=int(config.action_feature.shape[0]),
            decisions=1,
            dims=self.planned * int(config.action_feature.shape[0]),
            sees="frames" if self.cameras else "states",
            view=looks,
            **options,
        )
        self.preprocess, self.postprocess = preprocess or _same, postprocess or _same
        self.capabilities = frozenset({"imitation"} if self.kind == "act" else {"imitation", "forward"})
        self.forward_draws = forward_draws
        policy.eval()

    @property
    def name(self) -> str:
        return f"{type(self).__name__}({type(self.module).__name__})"

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> LeRobotPolicy:
        """A policy with its processors, from a folder or a hub repository.

        Raises:
            UsageError: lerobot is not installed, or nothing is there.
        """
        try:
            from lerobot.configs.policies import PreTrainedConfig
            from lerobot.policies.factory import get_policy_class, make_pre_post_processors
        except ImportError as error:
            raise UsageError(
                f"LeRobot's policies need lerobot ({error}): pip install 'autotelic[lerobot]', on Python 3.12 or later"
            ) from None
        from ..rewards.models.weights import loading

        with loading(name):
            config = PreTrainedConfig.from_pretrained(name)
            policy = get_policy_class(config.type).from_pretrained(name, config=config)
            processes = make_pre_post_processors(config, pretrained_path=name)
        made = cls(policy, *processes, **options)
        made.pretrained = True
        return made

    def in_common(self) -> Sequence[Any]:
        return (self.preprocess, self.postprocess)

    def save_pretrained(self, folder: str | Path) -> None:
        """A folder that LeRobot and ``from_pretrained`` read: weights, config and processors, with the statistics by
        which these normalise. Of a policy with adapters, the adapters alone."""
        if has_lora(self.module):
            super().save_pretrained(folder)
            return
        cast(Any, self.module).save_pretrained(folder)
        for process in (self.preprocess, self.postprocess):
            if process is not _same:
                cast(Any, process).save_pretrained(folder)

    # the three methods

    def decide(
        self, seen: Seen, randomness: Sequence[Any] | None, temperature: float
    ) -> tuple[Tensor, Mapping[str, Tensor], Tensor | None]:
        """Temperature scales the noise that a plan starts from. Greedy plans start from zero."""
        batch = self._batch(seen)
        shape = (self.planned, self._width)
        noise = torch.zeros(len(seen), *shape)
        if randomness is not None:
            noise = temperature * torch.stack([torch.randn(shape, generator=random) for random in randomness])
        noise = noise.to(self.device)
        if self.kind == "act":
            plan = self.module.predict_action_chunk(batch)  # type: ignore[operator]
        elif self.kind in FLOWS:
            plan = self.module.predict_action_chunk(batch, noise=noise)  # type: ignore[operator]
        else:
            seeds = [0] * len(seen)
            if randomness is not None:  # a whole chain of denoising draws further noise, each row its own
                seeds = [int(torch.randint(2**31, (), generator=random)) for random in randomness]
            own = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
            inner: Any = self.module.diffusion
            plan = inner.conditional_sample(len(seen), self._context(batch), generator=own, noise=noise)
        first = 0 if self.kind != "diffusion" else self._config.n_obs_steps - 1
        executed = self.postprocess(plan[:, first : first + self.chunk])
        return executed.float().clamp(-1, 1), {"clean": plan.float()}, None

    def imitate(self, seen: Seen, actions: Tensor) -> Mapping[str, Tensor]:
        last = actions[:, -1:].expand(-1, self.planned - self.chunk, -1)
        return {"clean": self._batch(seen, torch.cat([actions, last], 1))[ACTION]}

    def redraw(self, stored: Mapping[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
        """Times in equal shares of 0..1, one in each, and noises."""
        count, draws = len(stored["clean"]), self.forward_draws
        shares = torch.rand(count, draws, generator=random) + torch.arange(draws)
        noise = torch.randn(count, draws, self.planned, self._width, generator=random)
        return {"clean": stored["clean"], "time": shares / draws, "noise": noise}

    def score(self, seen: Seen, stored: Mapping[str, Tensor]) -> Evaluation:
        """[N, draws] of forward decisions."""
        if "noise" not in stored:
            raise ValueError(f"{self.name} has no log-probabilities of what it sampled")
        clean, noise, draws = stored["clean"], stored["noise"], stored["noise"].shape[1]
        rows = torch.arange(len(seen)).repeat_interleave(draws)
        many = seen.select(rows)
        clean, known = clean.repeat_interleave(draws, 0), self._known(seen, stored).repeat_interleave(draws, 0)
        off = self._misses(self._batch(many), clean, noise.flatten(0, 1), stored["time"].flatten())
        return Evaluation(-0.5 * (off * known[..., None]).sum((1, 2)).view(len(seen), draws))

    def imitation_loss(self, seen: Seen, stored: Mapping[str, Tensor]) -> Tensor:
        """LeRobot's own loss for ACT; for the others the mean square of what ``score`` sums, on fresh (t, e)."""
        clean, known = stored["clean"], self._known(seen, stored)
        if self.kind == "act":
            batch = self._batch(seen) | {ACTION: clean, "action_is_pad": ~known}
            self.module.train()
            try:
                loss: Tensor = self.module(batch)[0]
            finally:
                self.module.eval()
            return loss
        if "noise" not in stored:
            drawn = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
            fresh = self.redraw({"clean": clean.cpu()}, drawn)
            stored = {**stored, **{name: part.to(self.device) for name, part in fresh.items()}}
        found = self.score(seen, stored).log_probs
        return -2 * found.mean(1).sum() / (known.sum() * self.action_size)

    def _known(self, seen: Seen, stored: Mapping[str, Tensor]) -> Tensor:
        """[N, H] bool, the planned steps that were executed or shown."""
        return F.pad(self.executed(seen, stored), (0, self.planned - self.chunk))

    # LeRobot's side

    @property
    def _config(self) -> Any:
        return cast(Any, self.module).config

    @property
    def _width(self) -> int:
        """Numbers per step of the noise: flow policies pad actions."""
        return int(self._config.max_action_dim) if self.kind in FLOWS else self.action_size

    def _batch(self, seen: Seen, actions: Tensor | None = None) -> dict[str, Any]:
        """What LeRobot's policies read, through their own preprocessing."""
        given, wanted = seen.states.shape[1], sum(self.sizes.values())
        if given != wanted:
            told = ", ".join(f"{name} of {size}" for name, size in self.sizes.items()) or "no state"
            raise ValueError(f"{self.name} wants {told}; it was given states of {given} numbers")
        batch: dict[str, Any] = {"task": list(seen.instructions)}
        batch |= dict(zip(self.sizes, torch.split(seen.states.float(), list(self.sizes.values()), 1), strict=True))
        for camera, film in self._films(seen.frames).items():
            pictures = film.permute(0, 3, 1, 2).float() / 255
            if pictures.shape[2:] != self.picture:
                pictures = F.interpolate(pictures, self.picture, mode="bilinear", antialias=True)
            batch[camera] = pictures
        if actions is not None:
            batch[ACTION] = actions
        made: dict[str, Any] = self.preprocess(batch)
        return made

    def _films(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Frames by LeRobot's names of the cameras; a lone camera may have any name."""
        named = {camera: camera.removeprefix(IMAGES) for camera in self.cameras}
        if all(name in frames for name in named.values()):
            return {camera: frames[name] for camera, name in named.items()}
        if len(self.cameras) == len(frames) == 1:
            return dict(zip(self.cameras, frames.values(), strict=True))
        wanted = ", ".join(named.values())
        raise ValueError(f"{self.name} looks through {wanted}; it was given {', '.join(frames) or 'no frames'}")

    def _context(self, batch: Mapping[str, Any]) -> Tensor:
        """What diffusion policy conditions on, with its axis of one observation step."""
        told = {name: batch[name][:, None] for name in self.sizes}
        if self.cameras:
            told["observation.images"] = torch.stack([batch[camera] for camera in self.cameras], 1)[:, None]
        found: Tensor = cast(Any, self.module).diffusion._prepare_global_conditioning(told)
        return found

    def _misses(self, batch: dict[str, Any], clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """[N, H, A] squared differences of target and prediction at times [N] in 0..1, 1 being noise alone."""
        policy: Any = self.module
        if self.kind in FLOWS:
            look = policy.prepare_images if self.kind == "smolvla" else policy._preprocess_images
            told = (batch["observation.language.tokens"], batch["observation.language.attention_mask"])
            state = () if self.kind == "pi05" else (policy.prepare_state(batch),)  # pi0.5 reads it among the words
            actions = policy.prepare_action({ACTION: clean})
            off: Tensor = policy.model.forward(*look(batch), *told, *state, actions, noise, time)
            return off.narrow(-1, 0, self.action_size)
        inner = policy.diffusion
        levels = inner.noise_scheduler.config.num_train_timesteps
        step = (time * levels).long().clamp(max=levels - 1)
        noisy = inner.noise_scheduler.add_noise(clean, noise, step)
        found = inner.unet(noisy, step, global_cond=self._context(batch))
        wanted = noise if policy.config.prediction_type == "epsilon" else clean
        return cast(Tensor, (found - wanted) ** 2)


def _kind(policy: Any) -> str:
    """Which policy it is, if its settings can be followed here."""
    kind, config = getattr(policy, "name", None), policy.config
    if kind not in KINDS:
        raise UsageError(f"LeRobot's policy {kind!r} is not known here: {', '.join(KINDS)} are")
    if getattr(config, "n_obs_steps", 1) != 1:
        raise UsageError(f"{kind} looks at {config.n_obs_steps} observations: policies here see one, n_obs_steps=1")
    if getattr(config, "adapt_to_pi_aloha", False):
        raise UsageError(f"{kind}: adapt_to_pi_aloha turns joints of one robot, which is not known here")
    return str(kind)


def _same(thing: Any) -> Any:
    return thing
