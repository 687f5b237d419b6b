"""A robot policy in three methods: decide, score, imitate.

Every few environment steps a policy is shown what the robot sees and answers with a chunk of actions. A chunk is a
segment; a decision is the finest part of it with a known probability (a token, a step's Gaussian, a denoising step).
``ChunkPolicy`` makes of the three methods everything that actors, objectives, gates and checkpoints ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError, of_ones_own
from ..trainers.lora import has_lora, save_lora
from ..trainers.policy import Cost, References, TorchPolicy, collate, stack
from ..trainers.randomness import seed_of
from ..types import Batch, Decisions, Evaluation, Rollout, Task

if TYPE_CHECKING:
    from ..envs.simulator import View
    from .network import Trunk

OWN = frozenset({"states", "temperature", "instructions", "seed", "executed"})
"""Payload entries that come from the episode (observation, instruction, randomness, what was executed) and not from
``decide``, besides frames."""

FRAMES = "frames."
"""Entries of a payload that hold frames; the camera's name follows."""

LAST = "last."
"""Entries of a payload about the state after the last chunk, [1, ...] each; the name of what chunks have follows."""


def is_own(name: str) -> bool:
    """Whether a payload entry comes from the episode, and not from ``decide``."""
    return name in OWN or name.startswith((FRAMES, LAST))


def frames_in(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The frames of a payload by camera."""
    return {name.removeprefix(FRAMES): value for name, value in payload.items() if name.startswith(FRAMES)}


@dataclass(frozen=True, eq=False)
class Seen:
    """What N decisions are taken on.

    Attributes:
        instructions: N sentences.
        states: [N, D] float; for a policy that sees frames, what the robot feels of itself alone.
        frames: camera -> [N, H, W, 3] uint8; nothing where they are not seen.
        places: [N, 2] long, the episode and the chunk within it, for a policy of ``whole_episodes``; None while acting.
    """

    instructions: Sequence[str]
    states: Tensor
    frames: Mapping[str, Tensor] = field(default_factory=dict)
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def select(self, rows: Any) -> Seen:
        """Of some decisions: [n] long, or a slice."""
        chosen = torch.arange(len(self))[rows]
        instructions = [self.instructions[row] for row in chosen.tolist()]
        frames = {camera: film[chosen.to(film.device)] for camera, film in self.frames.items()}
        places = None if self.places is None else self.places[chosen.to(self.places.device)]
        return Seen(instructions, self.states[chosen.to(self.states.device)], frames, places)

    def to(self, device: torch.device, frames: bool = True) -> Seen:
        """States on a device, and frames with them unless these stay where they are."""
        films = {camera: film.to(device) if frames else film for camera, film in self.frames.items()}
        return replace(self, states=self.states.to(device), frames=films)


@dataclass(frozen=True, eq=False)
class Choice:
    """A chunk for each of N episodes.

    Attributes:
        actions: [N, C, A] in [-1, 1]; NaN where the policy has none.
        stored: what ``score`` needs to find them again, tensors [N, ...].
        log_probs: [N, K]; None where the policy has none.
    """

    actions: Tensor
    stored: Mapping[str, Tensor]
    log_probs: Tensor | None


class ChunkPolicy(TorchPolicy):
    """The base of robot policies. A policy of one's own writes ``decide``, ``score`` and ``imitate``.

    Args:
        module: everything trainable.
        chunk: C actions per decision; action_size: A.
        decisions: K per chunk; dims: scalars of one.
        sees: "states", or "frames": then it is given frames, taken as ``view`` says, and of the state only what the
            robot feels of itself.
        micro_batch_rows: chunks evaluated at once in learning.

    A rollout's payload: "states" [S, D], "frames.CAMERA" [S, H, W, 3] uint8 of each camera where they are seen,
    "executed" [S, C] bool, whatever the policy stores [S, ...], "temperature" [1] and "seed" [1]; of a policy with
    values also what is seen after the last chunk, "last.states" [1, D] and "last.frames.CAMERA" or "last.NAME"
    [1, ...].

    Steps of a chunk that nobody executed (an episode ended before them), or that no demonstration shows, are not
    learned from: a chunk without a step that was executed is masked, and so are the decisions of the other steps of a
    chunk that was begun, where these are told apart (``stepwise``). ``score`` and ``imitation_loss`` find "executed" in
    ``stored``.

    Attributes that a subclass may set:
        capabilities: what it can do, see ``types.Policy``. "forward" asks for ``redraw`` and ``forward_draws``, "kl"
            for ``compare``, "values" for ``values``.
        forward_draws: forward decisions per chunk.
        demonstrations: the decisions that ``imitate`` makes: "forward" if nobody knows how an expert's actions would
            have been sampled.
        keeps_frames: frames stay in the payload; False where what is stored makes up for them.
        normalises: it has an input normalisation, which ``normalise`` sets.
        pretrained: it was trained before, and recipes do not clone it unless they are asked to.
        frames_stay: frames are given to it where they are, since it makes pixels of them before it moves these.
        whole_episodes: what it says of a chunk hangs on the chunks before it, so that an episode is evaluated as a
            whole; otherwise long episodes are evaluated in pieces of ``micro_batch_rows`` chunks.
        stepwise: decision k of a chunk is about its step k * C // K, so that each step has decisions of its own.
    """

    stepwise: bool = False
    forward_draws: int = 0
    demonstrations: Decisions = "sampled"
    keeps_frames: bool = True
    normalises: bool = False
    pretrained: bool = False
    frames_stay: bool = False
    whole_episodes: bool = False

    def __init__(
        self,
        module: nn.Module,
        *,
        chunk: int,
        action_size: int,
        decisions: int,
        dims: int = 1,
        sees: Literal["states", "frames"] = "states",
        view: View | None = None,
        micro_batch_rows: int = 16384,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(module, micro_batch_rows=micro_batch_rows, autocast=autocast)
        self.chunk, self.action_size, self.per_chunk, self.dims = chunk, action_size, decisions, dims
        self.sees, self.view = sees, view
        if sees == "frames" and view is None:
            raise UsageError(f"{self.name} sees frames: give it a view that says how they are taken")

    # the three methods of a policy

    def decide(
        self, seen: Seen, randomness: Sequence[Any] | None, temperature: float
    ) -> tuple[Tensor, Mapping[str, Tensor], Tensor | None]:
        """A chunk for each of N episodes.

        Args:
            randomness: N sources of random numbers, each an episode's own (``torch.Generator``, or whatever
                ``begin`` returned); None acts greedily.
            temperature: of sampling; learning finds it again as ``stored["temperature"]`` [N].

        Returns:
            actions [N, C, A] in [-1, 1]; tensors [N, ...] to be stored; log-probabilities [N, K], or None to have
            ``score`` asked for them.
        """
        raise NotImplementedError

    def score(self, seen: Seen, stored: Mapping[str, Tensor]) -> Evaluation:
        """Log-probabilities [N, K] (and entropies, if any) of what was stored, with graph."""
        raise NotImplementedError

    def imitate(self, seen: Seen, actions: Tensor) -> Mapping[str, Tensor]:
        """What ``decide`` would have stored, had it chosen these actions [N, C, A]."""
        raise NotImplementedError(f"{self.name} cannot imitate")

    # what some policies add

    def begin(self, randoms: Sequence[torch.Generator], chunks: Sequence[int]) -> Sequence[Any]:
        """What the decisions of each of B episodes, of up to so many chunks, draw their random numbers from."""
        return randoms

    def compare(self, seen: Seen, stored: Mapping[str, Tensor], others: Mapping[str, Any]) -> Evaluation:
        """``score``, with the exact divergence [N, K] to other policies of the same kind."""
        if others:
            raise ValueError(f"{self.name} knows no exact divergence, which {', '.join(others)} is compared by")
        return self.score(seen, stored)

    def values(self, seen: Seen, stored: Mapping[str, Tensor]) -> Tensor:
        """What N states are worth, [N] with graph; of what was stored only what ``glimpse`` gives may be used."""
        raise NotImplementedError(f"{self.name} has no values")

    def glimpse(self, seen: Seen) -> Mapping[str, Tensor]:
        """What ``values`` needs of N states beside them and their frames: tensors [N, ...], stored as in ``decide``."""
        return {}

    def redraw(self, stored: Mapping[str, Tensor], random: torch.Generator) -> Mapping[str, Tensor]:
        """What ``score`` needs for forward decisions on S chunks: tensors [S, ...], drawn once for all policies."""
        raise NotImplementedError(f"{self.name} has no forward decisions")

    def imitation_loss(self, seen: Seen, stored: Mapping[str, Tensor]) -> Tensor:
        """What cloning minimises on N chunks of demonstrations: minus the mean log-probability of what they show."""
        logs = self.score(seen, stored).log_probs
        shown = self.decided(self.executed(seen, stored)).to(logs.device)
        return -(torch.where(shown, logs, 0.0).sum() / shown.sum())

    def normalise(self, states: Tensor) -> None:
        """Set the input normalisation, if there is one, from states [N, D] that are to be imitated."""

    def add_critic(self, trunk: Trunk) -> None:
        """Get the capability "values" by a head on the network, if there is a way to; nothing otherwise."""

    def start_undecided(self) -> None:
        """Prefer no action, before learning begins where nothing was imitated."""

    def set_log_std(self, log_std: float) -> None:
        """Set the log of a Gaussian's standard deviation, in units of the action.

        Raises:
            UsageError: it is no Gaussian.
        """
        raise UsageError(f"{self.name} has no standard deviation to set: --log-std-init is for the head gaussian")

    # what follows from them

    @property
    def name(self) -> str:
        return type(self).__name__

    def decision_dims(self, rollout: Rollout) -> int:
        return self.dims

    @torch.no_grad()
    def choose(self, seen: Seen, randomness: Sequence[Any] | None, temperature: float = 1.0) -> Choice:
        """``decide``, checked, its tensors on the CPU.

        A row whose actions or log-probabilities are not finite has NaN for actions, and zeros for the rest: whoever
        executes actions ends its episode.

        Raises:
            ValueError: something of the wrong shape or type, in one line that names the policy.
            UsageError: an observation that is not finite, or a policy of the user's own raised.
        """
        if not bool(seen.states.isfinite().all()):
            row = int((~seen.states.isfinite()).any(1).nonzero()[0])
            raise UsageError(f"{self.name} was given an observation of NaN or infinity, for {seen.instructions[row]!r}")
        seen = seen.to(self.device, frames=not self.frames_stay)
        with self.mixed(), of_ones_own(f"the policy {self.name}"):
            actions, stored, log_probs = self.decide(seen, randomness, temperature)
            self._check(len(seen), actions, stored)
            if randomness is None:
                log_probs = torch.zeros(len(seen), self.per_chunk)
            elif log_probs is None and self.capabilities & {"exact", "composite"}:
                told = {"temperature": torch.full((len(seen),), temperature, device=self.device)}
                log_probs = self.score(seen, {**stored, **told}).log_probs
        actions, kept = actions.float().cpu(), {name: tensor.cpu() for name, tensor in stored.items()}
        whole = actions.isfinite().flatten(1).all(1)
        if log_probs is not None:
            self._check_size("log_probs", log_probs, (len(seen), self.per_chunk))
            log_probs = log_probs.float().cpu()
            whole &= log_probs.isfinite().all(1)
        if not bool(whole.all()):
            actions, kept = _filled(actions, ~whole, torch.nan), {n: _filled(t, ~whole, 0) for n, t in kept.items()}
            log_probs = None if log_probs is None else _filled(log_probs, ~whole, 0)
        return Choice(actions, kept, log_probs)

    def rollout(
        self,
        task: Task,
        output: Any,
        seen: Seen,
        stored: Mapping[str, Tensor],
        log_probs: Tensor | None,
        *,
        temperature: float = 1.0,
        seed: int = 0,
        executed: Tensor | None = None,
        last: Seen | None = None,
        truncated: bool = False,
    ) -> Rollout:
        """A rollout of S chunks, on which this was seen and stored.

        Args:
            seed: keys its forward decisions.
            executed: [S, C] bool, the steps that were; None is all of them.
            last: the one state after the last chunk, for a policy with values.
            truncated: as of ``Rollout``.
        """
        if executed is None:
            executed = torch.ones(len(seen), self.chunk, dtype=torch.bool)
        payload = {"states": seen.states, **stored, "temperature": torch.tensor([temperature])}
        payload |= {"seed": torch.tensor([seed]), "executed": executed}
        if self.keeps_frames:
            payload |= {FRAMES + camera: film for camera, film in seen.frames.items()}
        payload |= {} if last is None else {LAST + name: tensor for name, tensor in self._at_last(last).items()}
        segments = torch.arange(len(seen)).repeat_interleave(self.per_chunk)
        decided = self.decided(executed).flatten()
        return Rollout(task, output, payload, log_probs, decided, segments, truncated=truncated)

    @torch.no_grad()
    def _at_last(self, last: Seen) -> dict[str, Tensor]:
        frames = {FRAMES + camera: film for camera, film in last.frames.items()} if self.keeps_frames else {}
        with self.mixed():
            kept = {
                name: tensor.cpu()
                for name, tensor in self.glimpse(last.to(self.device, frames=not self.frames_stay)).items()
            }
        return {"states": last.states, **frames, **kept}

    def executed(self, seen: Seen, stored: Mapping[str, Tensor]) -> Tensor:
        """[N, C] bool, the steps of N chunks that were executed or shown: all where ``stored`` does not say."""
        if "executed" in stored:
            return stored["executed"]
        return torch.ones(len(seen), self.chunk, dtype=torch.bool, device=seen.states.device)

    def decided(self, executed: Tensor) -> Tensor:
        """[N, K] bool, decisions that had an effect, of the steps [N, C] that were executed."""
        if self.stepwise:
            return executed.repeat_interleave(self.per_chunk // self.chunk, 1)
        return executed.any(1, keepdim=True).expand(-1, self.per_chunk)

    def encode(self, tasks: Sequence[Task], outputs: Sequence[Any]) -> list[Rollout]:
        """Demonstrations (``observations`` [N+1, D], ``actions`` [N, A], ``images`` where they are seen) as rollouts.

        Every step starts a chunk, so chunks overlap; the last ones repeat the final action, in steps that do not count
        as executed.

        Raises:
            UsageError: actions of another size.
            ValueError: no frames where they are seen.
        """
        return [self._encode(task, demonstration) for task, demonstration in zip(tasks, outputs, strict=True)]

    @torch.no_grad()
    def _encode(self, task: Task, demonstration: Any) -> Rollout:
        actions = torch.as_tensor(demonstration.actions, dtype=torch.float32)
        steps = len(actions)
        if actions.shape[1:] != (self.action_size,):
            raise UsageError(
                f"{self.name} makes actions of size {self.action_size}, the demonstration of {task.id} has "
                f"shape {list(actions.shape)}"
            )
        index = torch.arange(steps)[:, None] + torch.arange(self.chunk)
        shown, index = index < steps, index.clamp(max=steps - 1)
        observations = self.felt(task, np.asarray(demonstration.observations[:steps], np.float32))
        images = demonstration.images if self.sees == "frames" else {}
        if self.sees == "frames" and not images:
            raise ValueError(f"{self.name} sees frames, and the demonstration of {task.id} has none")
        frames = {camera: np.asarray(film[:steps], np.uint8) for camera, film in images.items()}
        seen = Seen([str(task.prompt)] * steps, torch.as_tensor(observations), self.looked_at(frames))
        with self.mixed(), of_ones_own(f"the policy {self.name}"):
            stored = self.imitate(seen.to(self.device, frames=not self.frames_stay), actions[index].to(self.device))
        self._check_stored(steps, stored)
        kept = {name: tensor.cpu() for name, tensor in stored.items()}
        return self.rollout(task, demonstration, seen, kept, None, seed=seed_of("encode", task.id), executed=shown)

    def felt(self, task: Task, observations: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
        """What this policy is given of observations [N, D] in a task's environment."""
        if self.sees == "states":
            return observations
        from ..envs.simulator import spec_of

        return observations[:, spec_of(str(task.extra["environment"])).proprioception]

    def looked_at(self, frames: Mapping[str, np.ndarray[Any, np.dtype[np.uint8]]]) -> dict[str, Tensor]:
        """What this policy is given of frames: those of its view's cameras, or all where it names none.

        Raises:
            ValueError: a camera of its view is missing.
        """
        if self.sees == "states" or self.view is None:
            return {}
        cameras = self.view.cameras or tuple(frames)
        missing = [camera for camera in cameras if camera not in frames]
        if missing:
            raise ValueError(f"{self.name} looks through camera {missing[0]!r}, and was given {', '.join(frames)}")
        return {camera: torch.from_numpy(frames[camera]) for camera in cameras}

    # learning

    def collate(self, rollouts: Sequence[Rollout], decisions: Decisions = "sampled") -> Batch:
        """The decisions that were sampled, or forward decisions on the actions that came out."""
        if not rollouts:
            raise ValueError("there are no rollouts to collate")
        if self.demonstrations == "forward" and all(r.log_probs is None for r in rollouts):
            decisions = "forward"
        if decisions == "forward":
            rollouts = [self._redrawn(rollout) for rollout in rollouts]
        elif self.demonstrations == "forward" and any(r.log_probs is None for r in rollouts):
            raise ValueError(f"{self.name}: demonstrations have forward decisions only, collate them apart")
        payload: dict[str, Any] = dict(stack([rollout.payload for rollout in rollouts]))
        payload["instructions"] = [str((r.train_task or r.task).prompt) for r in rollouts]
        batch = collate(rollouts, [self.decision_dims(rollout) for rollout in rollouts], payload)
        return replace(batch, log_probs={}) if decisions == "forward" else batch

    def _redrawn(self, rollout: Rollout) -> Rollout:
        """The rollout with forward decisions; the same whenever it is collated."""
        if "forward" not in self.capabilities:
            raise ValueError(f"{self.name} has no forward decisions")
        payload = rollout.payload
        stored = {name: tensor for name, tensor in payload.items() if not is_own(name)}
        drawn = self.redraw(stored, torch.Generator().manual_seed(int(payload["seed"])))
        kept = {name: tensor for name, tensor in payload.items() if is_own(name)}
        mask = payload["executed"].any(1).repeat_interleave(self.forward_draws)
        segments = torch.arange(len(payload["states"])).repeat_interleave(self.forward_draws)
        return replace(rollout, payload={**kept, **drawn}, mask=mask, segments=segments, log_probs=None)

    def costs(self, batch: Batch) -> list[Cost]:
        """Chunks of each rollout."""
        return [Cost(count) for count in self._valid(batch).sum(1).tolist()]

    def pieces(self, batch: Batch) -> list[Tensor]:
        """Chunks of any episodes, ``micro_batch_rows`` at a time; whole episodes where their chunks hang together."""
        if self.whole_episodes:
            return super().pieces(batch)
        places = self._valid(batch).nonzero()
        if len(places) <= self.micro_batch_rows:
            return [torch.arange(len(batch))]
        return list(torch.split(places, self.micro_batch_rows))

    @staticmethod
    def _valid(batch: Batch) -> Tensor:
        """[B, S] bool, the chunks in which something was decided."""
        size, chunks = batch.payload["states"].shape[:2]
        return batch.mask.view(size, chunks, -1).any(-1)

    def _forward(self, batch: Batch, needs: frozenset[str], references: References) -> Evaluation:
        if self.frames_stay:
            films = {name: film for name, film in batch.payload.items() if name.startswith((FRAMES, LAST + FRAMES))}
            kept = {name: part for name, part in batch.payload.items() if name not in films}
            batch = replace(batch, payload=kept).to(self.device)
            batch = replace(batch, payload={**batch.payload, **films})
        return super()._forward(batch, needs, references)

    def evaluate_actions(
        self, batch: Batch, needs: Iterable[str] = (), references: References | None = None
    ) -> Evaluation:
        """As in every policy; what follows a last chunk is looked at once per episode, however they are cut."""
        names = frozenset(needs)
        if "last_values" not in names or self.pieces(batch)[0].ndim == 1:
            return super().evaluate_actions(batch, names, references)
        now = super().evaluate_actions(batch, names - {"last_values"}, references)
        with torch.no_grad():
            parts = torch.split(torch.arange(len(batch)), self.micro_batch_rows)
            found = torch.cat([self._after(batch.select(rows)) for rows in parts])
        return replace(now, last_values=found.to(batch.mask.device))

    def backward(self, batch: Batch, cotangents: Evaluation) -> None:
        after = cotangents.last_values
        if after is None or self.pieces(batch)[0].ndim == 1:
            super().backward(batch, cotangents)
            return
        super().backward(batch, replace(cotangents, last_values=None))
        if bool(after.any()):
            for rows in torch.split(torch.arange(len(batch)), self.micro_batch_rows):
                found = self._after(batch.select(rows))
                torch.autograd.backward([found], [after[rows].to(found)])

    def _after(self, batch: Batch) -> Tensor:
        """[B] what the states after the last chunks are worth."""
        with self.mixed():
            return self._worth(*self._last_rows(batch.to(self.device).payload)).float()

    def forward_decisions(self, batch: Batch, needs: frozenset[str], references: References) -> Evaluation:
        payload, valid = batch.payload, self._valid(batch)
        size, chunks = valid.shape
        others = {n.partition(":")[2]: None for n in needs if n.startswith("kl:")}
        if not bool(valid.any()):  # episodes that were over before they began, and nothing else
            nothing = torch.zeros(batch.mask.shape, device=batch.mask.device)
            entropy = nothing if "entropy" in needs else None
            values = nothing.new_zeros(size, chunks) if "values" in needs else None
            last = nothing.new_zeros(size) if "last_values" in needs else None
            return Evaluation(nothing, entropy, values, last, dict.fromkeys(others, nothing))
        rows = self.rows(payload, valid, placed=self.whole_episodes)
        with of_ones_own(f"the policy {self.name}"):
            now = self.compare(*rows, {name: references[name] for name in others})
            values = _scattered(self._worth(*rows), valid) if "values" in needs else None
            last = self._worth(*self._last_rows(payload)) if "last_values" in needs else None
        self._check_size("score's log_probs", now.log_probs, (int(valid.sum()), batch.mask.shape[1] // chunks))
        now = now.map(lambda _, part: _scattered(part, valid).reshape(size, -1) * batch.mask)
        return replace(now, entropy=now.entropy if "entropy" in needs else None, values=values, last_values=last)

    def _worth(self, seen: Seen, stored: Mapping[str, Tensor]) -> Tensor:
        values = self.values(seen, stored)
        self._check_size("values", values, (len(seen),))
        return values

    @staticmethod
    def _last_rows(payload: Mapping[str, Any]) -> tuple[Seen, dict[str, Tensor]]:
        """What is seen, and was stored for ``values``, after the last chunk of each episode."""
        last = {name.removeprefix(LAST): t[:, 0] for name, t in payload.items() if name.startswith(LAST)}
        kept = {name: tensor for name, tensor in last.items() if not is_own(name)}
        return Seen(payload["instructions"], last["states"], frames_in(last)), kept

    @staticmethod
    def rows(payload: Mapping[str, Any], valid: Tensor, placed: bool = True) -> tuple[Seen, dict[str, Tensor]]:
        """What was seen and stored in the chunks [B, S] of a batch's payload that are valid.

        Args:
            placed: the rows of the payload are episodes, and not chunks of some.
        """
        chunks, places = valid.shape[1], valid.nonzero()
        told = [payload["instructions"][row] for row in places[:, 0].tolist()]
        frames = {camera: film[valid.to(film.device)] for camera, film in frames_in(payload).items()}
        stored = {name: tensor[valid] for name, tensor in payload.items() if not is_own(name)}
        stored["temperature"] = payload["temperature"].expand(-1, chunks)[valid]
        stored["executed"] = payload["executed"][valid]
        return Seen(told, payload["states"][valid], frames, places if placed else None), stored

    # weights

    def freeze_tower(self) -> None:
        """What looks at frames learns no more; nothing where that is the model's own affair."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Weights in a folder, as ``model.safetensors``; or the adapters alone, where there are some."""
        from safetensors.torch import save_model

        if has_lora(self.module):
            save_lora(self.module, folder)
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_model(self.module, str(Path(folder) / "model.safetensors"))

    # what was returned

    def _check(self, count: int, actions: Tensor, stored: Mapping[str, Tensor]) -> None:
        self._check_size("actions", actions, (count, self.chunk, self.action_size))
        self._check_stored(count, stored)

    def _check_stored(self, count: int, stored: Mapping[str, Tensor]) -> None:
        for name, tensor in stored.items():
            if is_own(name):
                raise ValueError(f"{self.name} stores {name!r}, a name that is taken: choose another")
            if not isinstance(tensor, Tensor) or tensor.shape[:1] != (count,):
                what = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ValueError(f"{self.name} stores {name!r} as {what}; expected a tensor [{count}, ...]")

    def _check_size(self, what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{self.name}: {what} are {type(tensor).__name__}; expected a tensor")
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{self.name}: {what} are {kind} {list(tensor.shape)}; expected float {list(shape)}")


def _filled(tensor: Tensor, rows: Tensor, value: float) -> Tensor:
    """A copy with some rows [N] bool of one value."""
    copied = tensor.clone()
    copied[rows] = value
    return copied


def _scattered(values: Tensor, valid: Tensor) -> Tensor:
    """[N, K] values of the valid places back into [B, S, K], zeros elsewhere."""
    full = values.new_zeros(*valid.shape, *values.shape[1:])
    full[valid] = values
    return full
