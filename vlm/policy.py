"""A policy over tokens: answers are sampled and learned from on a prefix that is read once per question."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import unknown
from ..trainers.policy import Cost, References, TorchPolicy, collate, cut, free_cache, stack
from ..trainers.randomness import generator
from ..types import Batch, Decisions, Evaluation, Key, Mode, Once, Rollout, Task
from .backbone import Backbone, Prompt, State
from .decoding import Decoder, check_temperature, decode
from .memory import Memory
from .renderer import Renderer
from .static_decoding import StaticDecoder
from .token_scores import token_scores

log = logging.getLogger(__name__)

STACKED = ("tokens", "length", "temperature")
"""What every rollout's payload holds; a conversation's may hold images too."""


class TokenPolicy(TorchPolicy):
    """A language or vision-language model as a policy; a decision is a token.

    Rollouts carry ``payload`` "tokens" [T], "length" [1] and "temperature" [1]; ``output`` is the decoded text
    without special tokens. A completion that hit the limit says so in ``info["truncated"]``.

    Args:
        backbone: the model.
        renderer: turns tasks into prompts and tokens into text.
        sample_tokens: held at once in sampling, one completion at least: prompts, where completions share them once,
            and the most that is said after them.
        micro_batch_tokens: held at once in learning, counted alike.
        horizon: most tokens of a completion whose task does not say.
        mask_truncated: completions that hit the limit are sampled and scored, but not learned from.
        decoder: how tokens are sampled, "static", "merged", "eager" or "auto"; see ``decoding.Decoder``.
    """

    capabilities = frozenset({"exact", "entropy", "kl"})
    unit, padded = "tokens", True

    def __init__(
        self,
        backbone: Backbone,
        renderer: Renderer,
        *,
        sample_tokens: int = 2**16,
        micro_batch_tokens: int = 2**16,
        horizon: int = 32,
        mask_truncated: bool = False,
        autocast: torch.dtype | None = None,
        decoder: Decoder = "auto",
    ) -> None:
        super().__init__(backbone.module, autocast=autocast)
        if decoder not in get_args(Decoder):
            raise unknown("decoder", decoder, get_args(Decoder))
        self.static = None if decoder == "eager" else StaticDecoder(merged=decoder == "merged")
        self._static_on_cpu = decoder in ("static", "merged")
        self.backbone, self.renderer = backbone, renderer
        self.sample_tokens, self.micro_batch_tokens = sample_tokens, micro_batch_tokens
        self.horizon, self.mask_truncated = horizon, mask_truncated

    # acting

    def act(
        self,
        tasks: Sequence[Task],
        n: int,
        *,
        key: Key = (0,),
        mode: Mode = "train",
        greedy: bool = False,
        temperature: float = 1.0,
        keep_prefix: bool = False,
    ) -> list[Rollout]:
        """n completions per task, in task order; random numbers depend on (key, task id, sample) alone.

        Args:
            keep_prefix: the rollouts keep the graph of reading their prompts, where they are read at once, so that the
                first gradient step on them, if it is one piece, does not read them again; the gradient is the same.
                Other weights, other prompts and training mode read them again.
        """
        check_temperature(temperature)
        rollouts: list[Rollout] = []
        keep = keep_prefix and mode == "train" and not self.module.training
        with self.inference():
            for rows, prompts, samples in self.together(tasks, n):
                whole = keep and len(rows) * len(samples) == len(tasks) * n and self._one_piece(tasks, prompts, n)
                work = partial(self._complete, key=key, greedy=greedy, temperature=temperature)
                some = [tasks[row] for row in rows]
                rollouts += self.within_memory(work, some, prompts, samples, keep=whole)
        return rollouts

    def within_memory(
        self,
        work: Callable[..., list[Rollout]],
        tasks: Sequence[Task],
        prompts: Sequence[Prompt],
        samples: range,
        longest: int | None = None,
        **whole: Any,
    ) -> list[Rollout]:
        """What was meant to be sampled at once; where memory does not suffice, anew in parts, from now on.

        Args:
            work: makes rollouts of tasks, their prompts and samples.
            longest: as of :meth:`together`.
            whole: options of the work that do not hold for parts.
        """
        try:
            return work(tasks, prompts, samples, **whole)
        except torch.OutOfMemoryError:
            freed = self.release()
            if len(tasks) * len(samples) == 1 and not freed:
                raise
        free_cache()
        if freed:
            return self.within_memory(work, tasks, prompts, samples, longest, **whole)
        while (parts := list(self.together(tasks, len(samples), longest))) and len(parts) == 1:
            self.sample_tokens = max(1, self.sample_tokens // 2)
        log.warning("out of memory in sampling: sample_tokens is %d from now on", self.sample_tokens)
        rollouts: list[Rollout] = []
        for rows, some, part in parts:
            shifted = range(samples.start + part.start, samples.start + part.stop)
            rollouts += self.within_memory(work, [tasks[row] for row in rows], some, shifted, longest)
        return rollouts

    def together(
        self, tasks: Sequence[Task], n: int, longest: int | None = None
    ) -> Iterator[tuple[list[int], list[Prompt], range]]:
        """What is sampled at once: rows of the tasks, their prompts, and which of the n completions of each.

        Args:
            longest: most tokens after a prompt; None: the task's horizon, or the policy's.
        """

        def asked() -> Iterator[tuple[tuple[int, Prompt, int], Cost]]:
            for row, task in enumerate(tasks):
                (prompt,) = self.renderer.prompts([task])
                own = longest or task.horizon or self.horizon
                yield (row, prompt, own), self._cost(prompt, own, n)

        for part in cut(asked(), self.sample_tokens, padded=True):
            rows, prompts = [row for row, _, _ in part], [prompt for _, prompt, _ in part]
            several = n if len(part) > 1 else self._samples(prompts[0], part[0][2], n)
            for first in range(0, n, several):
                yield rows, prompts, range(first, min(n, first + several))

    def _one_piece(self, tasks: Sequence[Task], prompts: Sequence[Prompt], n: int) -> bool:
        """Whether learning on n completions of each, at their longest, is one piece: a graph of less serves nobody."""
        costs = [self._cost(p, t.horizon or self.horizon, n) for t, p in zip(tasks, prompts, strict=True)]
        return len(list(cut(enumerate(costs), self.micro_batch_tokens, padded=True))) == 1

    def _samples(self, prompt: Prompt, own: int, n: int) -> int:
        """How many of n completions of one prompt are held at once."""
        each = self._cost(prompt, own)
        return min(n, max(1, (self.sample_tokens - each.shared) // each.own))

    def _cost(self, prompt: Prompt, own: int, n: int = 1) -> Cost:
        """Of n completions of up to so many tokens."""
        length = len(prompt.ids)
        return Cost(n * own, length, prompt) if self.backbone.shares else Cost(n * (length + own))

    def _complete(
        self,
        tasks: Sequence[Task],
        prompts: Sequence[Prompt],
        samples: range,
        *,
        key: Key,
        greedy: bool,
        temperature: float,
        keep: bool = False,
    ) -> list[Rollout]:
        n = len(samples)
        limits = torch.tensor([task.horizon or self.horizon for task in tasks for _ in samples])
        noise = None if greedy else _uniform(tasks, samples, int(limits.max()), key)
        for prompt, limit in zip(prompts, limits[::n].tolist(), strict=True):
            self.renderer.check_room(prompt, limit)
        tokens, log_probs, lengths, prefix = self.sample(prompts, n, limits, noise, temperature, keep)
        graph = None if prefix is None else Once(prefix)
        rollouts = []
        for row, length in enumerate(lengths.tolist()):
            task, ids = tasks[row // n], tokens[row, :length].clone()
            truncated = int(ids[-1]) not in self.renderer.ends
            mask = torch.full((length,), not (truncated and self.mask_truncated))
            rollouts.append(
                Rollout(
                    task=task,
                    output=self.renderer.text(ids),
                    payload=_payload(ids, temperature),
                    log_probs=log_probs[row, :length] * mask,
                    mask=mask,
                    segments=torch.zeros(length, dtype=torch.long),
                    info={"truncated": truncated},
                    graph=graph,
                )
            )
        return rollouts

    def sample(
        self,
        prompts: Sequence[Prompt],
        n: int,
        limits: Tensor,
        noise: Tensor | None,
        temperature: float,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Prefix | None]:
        """Tokens and their log-probabilities [B, T], lengths [B], and what was read, of n completions per prompt.

        Rows that ended leave the batch. ``noise`` [B, T] uniform, or None for greedy; ``limits`` [B]; ``keep`` keeps
        the graph of reading the prompts.
        """
        with torch.set_grad_enabled(keep):
            keep = keep and self.backbone.shares
        with torch.set_grad_enabled(keep):
            hidden, state = self.backbone.read(prompts)
        prefix = Prefix(list(prompts), hidden, state, self.weights_version()) if keep else None
        index = torch.arange(len(prompts) * n) // n
        hidden, state = hidden[index.to(hidden.device)], self.backbone.rows(state, index)
        return *decode(self, hidden, state, limits, noise, temperature), prefix

    # making, copying and saving

    @classmethod
    def of(cls, model: Any, processor: Any, **options: Any) -> Self:
        """A policy of a transformers model that is loaded already and its processor, or tokenizer for text alone.

        Options: see ``loading.assemble``; what it does not name goes to the policy itself.
        """
        from .loading import assemble

        return assemble(cls, model, processor, **options)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> Self:
        """A policy of an image-text-to-text or causal model in a local folder or on a hub.

        Options: see ``loading.load``; what it does not name goes to ``of``.
        """
        from .loading import load

        model, processor, rest = load(str(name_or_path), **options)
        return cls.of(model, processor, **rest)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write adapters, or the model where it has none, and the processor, for ``from_pretrained``."""
        from .loading import save

        return save(self, Path(folder))

    def check_tasks(self, tasks: Sequence[Task]) -> None:
        """Refuse questions that could not be read, before a run begins; see ``Renderer.check_tasks``."""
        self.renderer.check_tasks(tasks, self.horizon)

    # what both acting and learning use

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def static_for(self, state: State) -> StaticDecoder | None:
        """What decodes in fixed shapes from what was read; None where it is done operator by operator."""
        if self.static is None or not (self._static_on_cpu or self.device.type == "cuda"):
            return None
        if not (isinstance(state, Memory) and getattr(self.backbone, "static", False)):
            self.static = None
            log.warning("%s cannot be decoded in fixed shapes: it is done eagerly", type(self.module).__name__)
        return self.static

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] in float32, banned ids at minus infinity."""
        logits = self.backbone.head(hidden).float()
        banned = torch.tensor(self.backbone.banned, dtype=torch.long, device=logits.device)
        return logits.index_fill(-1, banned, -torch.inf)

    # learning

    def encode(self, tasks: Sequence[Task], outputs: Sequence[Any]) -> list[Rollout]:
        """Texts as rollouts without log-probabilities, an end token after each."""
        rollouts = []
        for task, output in zip(tasks, outputs, strict=True):
            ids = self.renderer.tokens(str(output))
            ones = torch.ones(len(ids), dtype=torch.bool)
            segments = torch.zeros(len(ids), dtype=torch.long)
            rollouts.append(Rollout(task, str(output), _payload(ids, 1.0), None, ones, segments))
        return rollouts

    def collate(self, rollouts: Sequence[Rollout], decisions: Decisions = "sampled") -> Batch:
        """A batch whose payload also holds each row's ``prompt`` (one object per task), ``graph`` and ``stretches``."""
        if decisions == "forward":
            raise ValueError("TokenPolicy has no forward decisions")
        payload: dict[str, Any] = dict(stack([{name: r.payload[name] for name in STACKED} for r in rollouts]))
        prompts = self.renderer.prompts([r.train_task or r.task for r in rollouts])
        payload["prompt"], payload["graph"] = prompts, [r.graph for r in rollouts]
        for prompt, rollout in zip(prompts, rollouts, strict=True):
            self.renderer.check_room(prompt, int(rollout.payload["length"]))
        payload["stretches"] = [self.renderer.stretches(p, r.payload) for p, r in zip(prompts, rollouts, strict=True)]
        return collate(rollouts, [1] * len(rollouts), payload)

    def costs(self, batch: Batch) -> list[Cost]:
        """Tokens of each row; what follows a picture in a reply is read on a prompt of its own."""
        payload, found = batch.payload, []
        for prompt, length, stretches in zip(
            payload["prompt"], payload["length"][:, 0].tolist(), payload["stretches"], strict=True
        ):
            again = sum(len(longer.ids) for longer, _, _ in stretches[1:])
            found.append(self._cost(prompt, length + again))
        return found

    def release(self) -> bool:
        """Let go of the decoder's buffers, keys and graphs, which the next sampling makes anew."""
        if self.static is None or not self.static.holds:
            return False
        self.static.release()
        return True

    @property
    def held(self) -> int:
        return self.micro_batch_tokens

    @held.setter
    def held(self, most: int) -> None:
        self.micro_batch_tokens = most

    def forward_decisions(self, batch: Batch, needs: frozenset[str], references: References) -> Evaluation:
        rows, columns = batch.mask.nonzero(as_tuple=True)
        tokens, temperature = batch.payload["tokens"][rows, columns], batch.payload["temperature"][rows]
        names = [need[3:] for need in sorted(needs) if need.startswith("kl:")]
        with torch.no_grad():
            others = {name: (references[name], references[name].deciding(batch)) for name in names}
        hidden, entropy = self.deciding(batch), "entropy" in needs
        scores = token_scores(self, hidden, tokens, temperature, entropy=entropy, others=others)
        found = {
            name: values.new_zeros(batch.mask.shape).index_put((rows, columns), values)
            for name, values in scores.items()
        }
        return Evaluation(found["log_probs"], found.get("entropy"), kl={name: found[f"kl:{name}"] for name in names})

    def deciding(self, batch: Batch) -> Tensor:
        """[N, D] hidden that predict the decided tokens."""
        return self._hidden(batch.payload)[batch.mask.nonzero(as_tuple=True)]

    def _hidden(self, payload: Mapping[str, Any]) -> Tensor:
        """[B, T, D] hidden that predict each token, up to the last of any row; zeros in replies that show images."""
        tokens = payload["tokens"][:, : int(payload["length"].max())]
        parts = [(row, *stretch) for row, several in enumerate(payload["stretches"]) for stretch in several]
        if len(parts) == len(tokens):
            held = torch.arange(tokens.shape[1], device=tokens.device) < payload["length"]
            return self._following(payload["prompt"], tokens, held, payload["graph"])
        lengths = torch.tensor([end - start for _, _, start, end in parts], device=tokens.device)
        cut = pad_sequence([tokens[row, start:end] for row, _, start, end in parts], batch_first=True)
        held = torch.arange(cut.shape[1], device=tokens.device) < lengths[:, None]
        hidden = self._following([prompt for _, prompt, _, _ in parts], cut, held)
        rows = torch.cat([torch.full((end - start,), row) for row, _, start, end in parts])
        places = torch.cat([torch.arange(start, end) for _, _, start, end in parts])
        return hidden.new_zeros(*tokens.shape, hidden.shape[-1]).index_put((rows, places), hidden[held])

    def _following(
        self, prompts: Sequence[Prompt], tokens: Tensor, held: Tensor, graphs: Sequence[Once[Prefix] | None] = ()
    ) -> Tensor:
        """[B, T, D] hidden that predict each token after a prompt. Each prompt is read once, whoever shares it."""
        if not self.backbone.shares:
            return self.backbone.read_whole(prompts, tokens, held)
        first, state, read = self._read(list(dict.fromkeys(prompts)), graphs)
        place = {prompt: row for row, prompt in enumerate(read)}
        index = torch.tensor([place[prompt] for prompt in prompts])
        if tokens.shape[1] == 1:
            return first[index.to(first.device), None]
        index, order = index.sort(stable=True)  # so that equal numbers of copies need no gathering
        order = order.to(tokens.device)
        later, _ = self.backbone.read_on(self.backbone.rows(state, index), tokens[order, :-1], held[order, :-1])
        both = torch.cat([first[index.to(first.device), None], later], 1)
        return both[order.argsort()]

    def _read(self, prompts: list[Prompt], graphs: Sequence[Once[Prefix] | None]) -> tuple[Tensor, Any, list[Prompt]]:
        """What reading gives, and of which prompts: from the graph that sampling kept, where it is of these weights."""
        if torch.is_grad_enabled():
            for graph in dict.fromkeys(graph for graph in graphs if graph is not None):
                kept = graph.take()
                fresh = kept is not None and kept.version == self.weights_version() and not self.module.training
                if kept is not None and fresh and set(prompts) <= set(kept.prompts):
                    return kept.hidden, kept.state, kept.prompts
        return *self.backbone.read(prompts), prompts

    def weights_version(self) -> int:
        """Grows with every change of the weights."""
        return sum(weight._version for weight in self.module.parameters())


@dataclass(frozen=True, eq=False)
class Prefix:
    """What sampling read, with its graph, and the weights' version then."""

    prompts: list[Prompt]
    hidden: Tensor
    state: State
    version: int


def _payload(ids: Tensor, temperature: float) -> dict[str, Tensor]:
    """``length`` counts the environment's tokens too, unlike the mask."""
    return {"tokens": ids, "length": torch.tensor([len(ids)]), "temperature": torch.tensor([temperature])}


def _uniform(tasks: Sequence[Task], samples: range, longest: int, key: Key) -> Tensor:
    """[B, T] in 0..1, keyed by (key, task id, sample), so that other tasks do not matter."""
    rows = []
    for task in tasks:
        rows += [torch.rand(longest, generator=generator(*key, task.id, sample)) for sample in samples]
    return torch.stack(rows)
