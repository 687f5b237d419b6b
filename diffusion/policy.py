"""The denoising policy: a diffusers pipeline whose steps are decisions.

A decision is one denoising step, a Gaussian over the next latent with known mean and standard deviation; its
log-probability is summed over the latent's scalars. So every objective of ``trainers`` runs on it. Two more kinds
of evaluation join:

* *forward decisions*: a picture is noised again at a few levels of the chain, drawn once and shared by all policies
  that are compared, and scored by l = -|target - prediction|^2 / 2;
* *outputs*: the pictures themselves, for rewards with gradient. The chain that was sampled is its own list of
  checkpoints: ``backward`` walks it from the picture towards the noise, one step in memory at a time.

Which part of the chain an output's gradient runs through stands in the batch's columns, see ``gradients.py``.
"""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import UsageError
from ..trainers.policy import Cost, References, TorchPolicy, collate
from ..trainers.precision import loss_scaled
from ..trainers.randomness import generator, seed_of
from ..trainers.weights import move
from ..types import Batch, Decisions, Evaluation, Graph, Key, Mode, Once, Rollout, Task
from .conditions import Conditions
from .faults import discarded, faults_of, is_sound
from .pipelines import PipelineAdapter
from .sampler import Sampler, half_square, wide


@dataclass(frozen=True, eq=False)
class Means:
    """What drawing kept: the row of each seed, and the means [N, ...] of each step, with graph."""

    rows: Mapping[int, int]
    means: Mapping[int, Tensor]


logger = logging.getLogger(__name__)

_numbers = itertools.count()
_told: set[int] = set()  # policies of which it is known that learning cannot have the shapes of drawing
_process = secrets.token_hex(4)  # so that rollouts of a former run are not taken for one's own


class DenoisingPolicy(TorchPolicy):
    """Draws pictures and learns from what is said of them.

    Args:
        adapter: the pipeline; what of its denoiser requires gradients is trained.
        sampler: the chain that is sampled and trained.
        guidance: scale of classifier-free guidance, in sampling and in training; 1 is none.
        evaluation_guidance: the same where it acts to be looked at; None is that of training.
        sample_rows: pictures drawn at once: rows of the denoiser (times 2 with guidance).
        micro_batch_rows: rows of the denoiser (times 2 with guidance) whose graph is held at once. Larger batches are
            evaluated without a graph and recomputed piece by piece in backward, with the same gradient.
        forward_draws: forward decisions per picture, at different levels of the chain.
        checkpointing: rebuild one step at a time for reward gradients; False holds the graph of all of them.
        autocast: dtype of mixed precision, or None.

    A rollout's payload: path [T + 1, ...] from noise to latents, seed [] of all its random numbers, guidance [] that it
    was drawn with, rows [] of the calls that drew it (0: any), and round [], a number that all rollouts of one call of
    ``act`` share.

    In half precision products of another number of rows are rounded otherwise, by a nat for a step of a large picture:
    more than a clip allows. So there chains are evaluated by calls of as many rows as drew them, the last one filled
    up, and the same weights give the same log-probabilities to the bit.

    What is not finite is nothing that one could learn from: such a rollout decides nothing, its path is 0, its output
    NaN, and ``info["fault"]`` says why.
    """

    capabilities = frozenset({"exact", "forward", "kl", "outputs"})

    def __init__(
        self,
        adapter: PipelineAdapter,
        sampler: Sampler,
        *,
        guidance: float = 1.0,
        evaluation_guidance: float | None = None,
        sample_rows: int = 1024,
        micro_batch_rows: int = 1024,
        forward_draws: int = 2,
        checkpointing: bool = True,
        autocast: torch.dtype | None = None,
    ) -> None:
        if min(sample_rows, micro_batch_rows, forward_draws) < 1:
            given = f"{sample_rows}, {micro_batch_rows} and {forward_draws}"
            raise UsageError(f"sample_rows, micro_batch_rows and forward_draws are 1 or more, not {given}")
        super().__init__(adapter.denoiser, micro_batch_rows=micro_batch_rows, autocast=autocast)
        self.adapter, self.sampler, self.guidance = adapter, sampler, guidance
        self.evaluation_guidance = guidance if evaluation_guidance is None else evaluation_guidance
        self.sample_rows, self.forward_draws, self.checkpointing = sample_rows, forward_draws, checkpointing
        self._own: dict[str, Tensor] | None = None  # a fork's trained weights; None: the module's
        self.conditions = Conditions(adapter)
        self._number = next(_numbers)

    # --- acting ----------------------------------------------------------------------------------

    @torch.no_grad()
    def act(
        self,
        tasks: Sequence[Task],
        n: int,
        *,
        key: Key = (0,),
        mode: Mode = "train",
        greedy: bool = False,
        window: int | None = None,
        same_latent: bool = False,
        keep_graph: bool = False,
    ) -> list[Rollout]:
        """n pictures per task; ``output`` is a float tensor [3, H, W] in 0..1, of a video [F, 3, H, W].

        Args:
            greedy: no noise but that of the start: the deterministic chain.
            window: noise in this many neighbouring steps only, the first of them drawn by ``key``.
            same_latent: the pictures of a task begin at the same noise. Up to the first step with noise they are then
                one, which is taken once for all of them that are drawn at once.
            keep_graph: the rollouts keep the graph of drawing them, where all of it fits, so that the first gradient
                step needs no forward pass; the gradient is the same.
        """
        chain = self.sampler.windowed(0, 0) if greedy else self.sampler
        if window is not None:
            places = max(1, int(chain.decides.sum()) - window + 1)
            first = int(torch.randint(places, (), generator=generator("window", *key)))
            chain = chain.windowed(first, first + window)
        shared = torch.tensor(seed_of("round", *key))
        pairs = [(task, seed_of(*key, task.id, sample)) for task in tasks for sample in range(n)]
        began = {task.id: seed_of(*key, task.id, "latent") for task in tasks} if same_latent else {}
        found: list[Rollout] = []
        fits = len(pairs) <= self.sample_rows and len(pairs) * int(chain.decides.sum()) <= self.micro_batch_rows
        keep = keep_graph and mode == "train" and fits
        guidance = self.guidance if mode == "train" else self.evaluation_guidance
        rows = self._shape_of(len(pairs))
        with self.mixed():  # as in learning, or the weights of now would seem to be others
            for part in _batched(pairs, _whole(self.sample_rows, rows)):
                found += self._draw(part, chain, shared, keep, guidance, rows, began)
        return found

    def _draw(
        self,
        pairs: Sequence[tuple[Task, int]],
        chain: Sampler,
        shared: Tensor,
        keep: bool,
        guidance: float,
        rows: int,
        began: Mapping[str, int],
    ) -> list[Rollout]:
        noise = torch.stack([self._noise(seed, chain.steps) for _, seed in pairs]).to(self.device)
        path = self._prefix([task for task, _ in pairs], chain, guidance, began) if began else None
        path = [noise[:, 0] * chain.levels.start] if path is None else path
        condition = self.conditions([task.prompt for task, _ in pairs])
        x, log_probs, means = path[-1], torch.zeros(len(pairs), chain.steps, dtype=torch.float64), {}
        for i in range(len(path) - 1, chain.steps):
            step, random = torch.full((len(pairs),), i, device=self.device), bool(chain.std[i] > 0)
            with torch.set_grad_enabled(keep and random):
                mean = chain.mean(step, x, self._predict(chain, step, x, condition, guidance, rows))
            x = mean.detach() + chain.std[i] * noise[:, i + 1]
            if random:
                log_probs[:, i] = chain.log_prob(step, x, mean.detach()).cpu()
                means[i] = mean
            path.append(x)
        pictures = self.adapter.decode(x).float().cpu()
        paths, version = torch.stack(path, 1).cpu(), self.version
        faults = faults_of([task.id for task, _ in pairs], paths, pictures)
        keep = keep and not any(faults)  # in a graph, one row's NaN is in the gradient of all
        graph = Once(Means({seed: row for row, (_, seed) in enumerate(pairs)}, means)) if keep else None
        found = []
        for row, (task, seed) in enumerate(pairs):
            payload = {"path": paths[row], "seed": torch.tensor(seed), "round": shared}
            payload |= {"guidance": torch.tensor(guidance, dtype=torch.float64), "rows": torch.tensor(rows)}
            mask, segments = chain.decides.clone(), torch.arange(chain.steps)
            drawn = Rollout(task, pictures[row], payload, log_probs[row], mask, segments, version=version, graph=graph)
            found.append(discarded(drawn, faults[row]) if faults[row] else drawn)
        return found

    def _prefix(self, tasks: Sequence[Task], chain: Sampler, guidance: float, began: Mapping[str, int]) -> list[Tensor]:
        """States [N, ...] of chains from each task's own noise to their first random step: one chain per task."""
        different = {task.id: task for task in tasks}
        noise = torch.stack([self._noise(began[name], 0)[0] for name in different]).to(self.device)
        condition = self.conditions([task.prompt for task in different.values()])
        x = noise * chain.levels.start
        path = [x]
        for i in range(int(chain.decides.long().argmax()) if chain.decides.any() else chain.steps):
            step = torch.full((len(x),), i, device=self.device)
            x = chain.mean(step, x, self._predict(chain, step, x, condition, guidance))
            path.append(x)
        places = {name: place for place, name in enumerate(different)}
        rows = torch.tensor([places[task.id] for task in tasks], device=self.device)
        return [state[rows] for state in path]

    def encode(self, tasks: Sequence[Task], outputs: Sequence[Any], key: Key = (0,)) -> list[Rollout]:
        """Pictures [3, H, W] in 0..1 as rollouts for forward decisions: nobody knows the chain that led to them."""
        found, shared = [], torch.tensor(seed_of("round", *key))
        with torch.no_grad():
            for i, (task, picture) in enumerate(zip(tasks, outputs, strict=True)):
                latents = self.adapter.encode_images(picture[None].to(self.device)).cpu()
                payload = {"path": latents, "seed": torch.tensor(seed_of("encode", *key, task.id, i)), "round": shared}
                mask = torch.ones(1, dtype=torch.bool)
                found.append(Rollout(task, picture, payload, None, mask, torch.zeros(1, dtype=torch.long)))
        return found

    def _shape_of(self, count: int) -> int:
        """Rows of each call of the denoiser that draws so many pictures; 0 where it makes no difference.

        As many as may be held at once in drawing and in learning, or a few less, so that few are filled up.
        """
        if self.autocast is None:
            return 0
        calls = -(-count // min(self.sample_rows, self.micro_batch_rows))
        return -(-count // calls)

    def _shape_in(self, batch: Batch) -> int:
        """Rows of the calls that drew a batch, as far as so many are held at once; 0 where it makes no difference."""
        drawn = batch.payload.get("rows")
        rows = 0 if drawn is None else int(drawn.max())
        if rows > self.micro_batch_rows and self._number not in _told:
            _told.add(self._number)
            logger.warning(
                "pictures were drawn by calls of %d rows, and %d are held in learning: in half precision their "
                "log-probabilities differ by rounding, which a narrow clip takes for learning",
                rows,
                self.micro_batch_rows,
            )
        return min(rows, self.micro_batch_rows)

    def _noise(self, seed: int, steps: int) -> Tensor:
        """[T + 1, ...] where a chain starts and what its steps add."""
        return torch.randn(steps + 1, *self.adapter.latent_shape, generator=torch.Generator().manual_seed(seed))

    # --- batches ---------------------------------------------------------------------------------

    def collate(self, rollouts: Sequence[Rollout], decisions: Decisions = "sampled") -> Batch:
        """The decisions that were sampled, or forward decisions on what came out; encoded pictures have only these."""
        forward = decisions == "forward" or all(r.log_probs is None for r in rollouts)
        latents = torch.stack([r.payload["path"][-1] for r in rollouts])
        size = [latents[0].numel()] * len(rollouts)
        payload: dict[str, Any] = {
            "rollouts": list(rollouts),
            "seed": torch.stack([r.payload["seed"] for r in rollouts]),
            "round": torch.stack([r.payload["round"] for r in rollouts]),
        }
        if not forward:
            self._check_lengths(rollouts)
            drawn = {name: torch.stack([r.payload[name] for r in rollouts]) for name in ("path", "guidance", "rows")}
            return collate(rollouts, size, payload | drawn)
        draws = [self._forward_draw(int(seed)) for seed in payload["seed"]]
        drawn = {
            "clean": latents,
            "level": torch.stack([d[0] for d in draws]),
            "noise": torch.stack([d[1] for d in draws]),
        }
        place = torch.arange(self.forward_draws)
        masks = [torch.full((self.forward_draws,), is_sound(r)) for r in rollouts]
        redone = [replace(r, mask=m, segments=place, log_probs=None) for r, m in zip(rollouts, masks, strict=True)]
        batch = collate(redone, size, payload | drawn)
        return replace(batch, log_probs={})

    def _check_lengths(self, rollouts: Sequence[Rollout]) -> None:
        for rollout in rollouts:
            if rollout.log_probs is None:
                raise ValueError(f"{rollout.task.id}: an encoded picture has forward decisions only, collate it apart")
            if len(rollout.mask) != self.sampler.steps:
                steps = f"{len(rollout.mask)} denoising steps, the policy's chain has {self.sampler.steps}"
                raise ValueError(f"{rollout.task.id} was drawn in {steps}: no step of one is a step of the other")

    def _forward_draw(self, seed: int) -> tuple[Tensor, Tensor]:
        """Levels [F] of the chain, without repetition while there are enough, and noises [F, ...]."""
        random = generator("forward", seed)
        rounds = -(-self.forward_draws // self.sampler.steps)
        levels = torch.cat([torch.randperm(self.sampler.steps, generator=random) for _ in range(rounds)])
        noise = torch.randn(self.forward_draws, *self.adapter.latent_shape, generator=random)
        return levels[: self.forward_draws], noise

    # --- evaluation ------------------------------------------------------------------------------

    def evaluate_actions(
        self, batch: Batch, needs: Iterable[str] = (), references: References | None = None
    ) -> Evaluation:
        """Detached [B, T] tensors, and ``outputs`` [B, 3, H, W] where they are needed.

        Where the data were sampled by the very weights of now and their graph does not fit, the log-probabilities
        are those that sampling recorded.
        """
        names, others = frozenset(needs), dict(references or {})
        fits = len(self._decisions(batch)[0]) <= self.micro_batch_rows
        if "outputs" not in names and fits:
            return super().evaluate_actions(batch, names, others)
        compared = bool(_policies(names))
        if "outputs" not in names and (compared or not self._sampled_now(batch)):
            return self._without_graph(batch, names, others)
        now = Evaluation(batch.log_probs.get("behaviour", torch.zeros(batch.mask.shape)).clone())
        if compared or (names - {"outputs", "forward"} and not self._sampled_now(batch)):
            now = self._without_graph(batch, names - {"outputs"}, others)
        if "outputs" in names:
            from .gradients import pictures

            now.outputs = pictures(self, batch)
        return replace(now, graph=Graph(batch, others))

    @torch.no_grad()
    def _without_graph(self, batch: Batch, names: frozenset[str], references: References) -> Evaluation:
        now = self._forward(batch, names, references).map(lambda _, t: t.to(batch.mask.device))
        return replace(now, graph=Graph(batch, references))

    def backward(self, batch: Batch, cotangents: Evaluation) -> None:
        """Add the gradient of <cotangents, evaluation>, at most ``micro_batch_rows`` denoiser calls in memory."""
        with loss_scaled(self.parameters(), self.autocast) as scale:
            self._backward(batch, cotangents if scale == 1 else cotangents.map(lambda _, tensor: scale * tensor))

    def _backward(self, batch: Batch, cotangents: Evaluation) -> None:
        if cotangents.outputs is not None:
            from .gradients import pull

            pull(self, batch, cotangents.outputs)
        given = {name: t for name, t in cotangents.tensors().items() if name != "outputs"}
        graph = cotangents.graph or Graph(batch)
        if graph.batch is batch and (kept := graph.kept.take()) is not None:
            super().backward(batch, replace(cotangents, outputs=None, graph=replace(graph, kept=Once(kept))))
            return
        live = torch.stack([t != 0 for t in given.values()]).any(0)
        moved = batch.to(self.device)
        for rows, steps in _chunks(self._decisions(batch, live), _whole(self.micro_batch_rows, self._shape_in(batch))):
            with self.mixed():
                part = self._evaluate(moved, rows, steps, frozenset(given) - {"log_probs"}, graph.references)
            pulled = {name: t for name, t in part.items() if t.requires_grad}
            torch.autograd.backward(
                list(pulled.values()), [given[name][rows, steps].to(t) for name, t in pulled.items()]
            )

    def costs(self, batch: Batch) -> list[Cost]:
        """Denoiser calls of each picture."""
        return [Cost(count) for count in batch.mask.sum(1).tolist()]

    def forward_decisions(self, batch: Batch, needs: frozenset[str], references: References) -> Evaluation:
        """[B, T] with graph, piece by piece; zeros where nothing was decided."""
        where = self._decisions(batch)
        names = ["log_probs", *(f"kl:{name}" for name in _policies(needs))]
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        # Without a graph nothing is gained by calls of more rows than drawing makes: they are slower, and take more.
        most = self.micro_batch_rows if torch.is_grad_enabled() else min(self.sample_rows, len(batch))
        size = _whole(most, self._shape_in(batch))
        for rows, steps in _chunks(where, size):
            for name, values in self._evaluate(batch, rows, steps, needs, references).items():
                found[name].append(values)
        spread = {}
        for name, parts in found.items():
            empty = torch.zeros(batch.mask.shape, dtype=wide(self.device), device=self.device)
            place = where[0].to(self.device), where[1].to(self.device)
            spread[name] = empty.index_put(place, torch.cat(parts)) if parts else empty
        kl = {name: spread[f"kl:{name}"] for name in _policies(needs)}
        return Evaluation(spread["log_probs"], kl=kl)

    def _evaluate(
        self, batch: Batch, rows: Tensor, steps: Tensor, needs: frozenset[str], references: References
    ) -> dict[str, Tensor]:
        """[N] log-probabilities and divergences of the decisions (rows, steps), with graph."""
        data, prompts = batch.payload, [batch.payload["rollouts"][int(i)] for i in rows]
        condition = self.conditions([(r.train_task or r.task).prompt for r in prompts])
        if "clean" in data:
            level = data["level"][rows, steps].cpu()
            clean, noise = data["clean"][rows], data["noise"][rows, steps]
            x, seen = self.sampler.noised(level, clean, noise), self.sampler.target(level, clean, noise)
            now = self._predict(self.sampler, level, x, condition)
            found = {"log_probs": -half_square(seen - now)}
            for name in _policies(needs):
                then = self._predicted_by(references[name], level, x, condition)
                found[f"kl:{name}"] = half_square(now - then)
            return found
        x, onto = data["path"][rows, steps], data["path"][rows, steps + 1]
        guidance, shape = _one_guidance(data["guidance"][rows]), self._shape_in(batch)
        mean = self._kept_means(batch, rows, steps)
        if mean is None:
            mean = self.sampler.mean(steps, x, self._predict(self.sampler, steps, x, condition, guidance, shape))
        found = {"log_probs": self.sampler.log_prob(steps, onto, mean)}
        for name in _policies(needs):
            theirs = self._predicted_by(references[name], steps, x, condition, guidance, shape)
            other = self.sampler.mean(steps, x, theirs)
            found[f"kl:{name}"] = self.sampler.kl(steps, mean, other)
        return found

    def _kept_means(self, batch: Batch, rows: Tensor, steps: Tensor) -> Tensor | None:
        """[N, ...] means with the graph that sampling kept, once; None where there is none or it is another's."""
        if not torch.is_grad_enabled() or not self._sampled_now(batch):
            return None
        graphs = dict.fromkeys(r.graph for r in batch.payload["rollouts"])
        graph = next(iter(graphs))
        drawing = graph.take() if graph is not None and len(graphs) == 1 else None
        if drawing is None:
            return None
        place, means = drawing.rows, drawing.means
        seeds = [int(seed) for seed in batch.payload["seed"]]
        drawn = torch.tensor([place[seeds[int(row)]] for row in rows])
        order = torch.cat([(steps == i).nonzero()[:, 0] for i in means])
        return torch.cat([mean[drawn[steps == i]] for i, mean in means.items()])[order.argsort()]

    @torch.no_grad()
    def _predicted_by(self, other: Any, step: Tensor, x: Tensor, condition: Mapping[str, Tensor], *how: Any) -> Tensor:
        prediction: Tensor = other._predict(self.sampler, step, x, condition, *how)
        return prediction

    def _decisions(self, batch: Batch, live: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows and steps [N] of what was decided (and is live)."""
        mask = batch.mask.cpu() if live is None else (batch.mask & live.to(batch.mask.device)).cpu()
        rows, steps = mask.nonzero().unbind(1)
        return rows, steps

    def _predict(
        self,
        chain: Sampler,
        step: Tensor,
        x: Tensor,
        condition: Mapping[str, Tensor],
        guidance: float | None = None,
        rows: int = 0,
    ) -> Tensor:
        """The model's output for x [N, ...] at steps [N], guided; None is the guidance of training.

        Args:
            rows: of each call of the denoiser, the last of which is filled up; 0 makes one call.
        """
        scale = self.guidance if guidance is None else guidance
        seen, timestep = x * chain.at("input_scale", step, x), chain.entries("timesteps", step, self.device)
        plain = scale == 1.0 or self.adapter.distilled
        found = []
        for first in range(0, len(x), rows or len(x)):
            mine = [_filled(t[first : first + (rows or len(x))], rows) for t in (seen, timestep, *condition.values())]
            told = dict(zip(condition, mine[2:], strict=True))
            unconditional = None if plain else self.conditions([None] * len(mine[0]))
            found.append(self.adapter.predict_guided(self._denoise, mine[0], mine[1], told, unconditional, scale))
        return torch.cat(found)[: len(x)] if rows else found[0]

    def _denoise(self, *inputs: Any, **named: Any) -> Any:
        if self._own is None:
            return self.module(*inputs, **named)
        return functional_call(self.module, self._own, inputs, named)

    # --- weights ---------------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """Changes with every change of the weights."""
        return f"{_process}.{self._number}.{sum(p._version for p in self.trained().values())}"

    def _sampled_now(self, batch: Batch) -> bool:
        """Whether these weights sampled the batch, in the context that is trained."""
        now = self.version
        own = all(r.version == now and r.train_task is None for r in batch.payload["rollouts"])
        return own and "clean" not in batch.payload

    def trained(self) -> dict[str, Tensor]:
        return super().trained() if self._own is None else self._own

    def fork(self, name: str) -> Self:
        """A frozen copy that is a set of trained weights on the same module: a second denoiser would not fit."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__ | {"_number": next(_numbers)}
        other._own = {k: v.detach().clone() for k, v in self.trained().items()}
        return other

    @contextmanager
    def worn(self) -> Iterator[None]:
        """While it lasts, the pipeline's own module has this policy's weights."""
        worn, mine = super().trained(), self.trained()
        held = {name: tensor.detach().clone() for name, tensor in worn.items()}
        try:
            move(worn, mine)
            yield
        finally:
            move(worn, held)

    def parameters(self) -> Iterable[nn.Parameter]:
        return () if self._own is not None else (p for p in self.module.parameters() if p.requires_grad)


def _whole(most: int, rows: int) -> int:
    """The most that fill calls of so many rows; 0 rows are any."""
    return max(rows, most - most % rows) if rows else most


def _filled(values: Tensor, rows: int) -> Tensor:
    """Values [N, ...] with the last one again as often as rows are lacking."""
    lacking = rows - len(values)
    return torch.cat([values, values[-1:].detach().expand(lacking, *values.shape[1:])]) if lacking > 0 else values


def _one_guidance(scales: Tensor) -> float:
    scale, *others = sorted(set(scales.tolist()))
    if others:
        raise ValueError(f"rollouts that were drawn with guidance {scale:g} and {others[0]:g} are evaluated apart")
    return float(scale)


def _policies(needs: Iterable[str]) -> list[str]:
    return sorted(need.removeprefix("kl:") for need in needs if need.startswith("kl:"))


def _batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _chunks(where: tuple[Tensor, Tensor], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows, steps = where
    for start in range(0, len(rows), size):
        yield rows[start : start + size], steps[start : start + size]
