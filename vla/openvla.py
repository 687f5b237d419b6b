"""Vision-language models of transformers whose last tokens are actions, in the way of OpenVLA.

The model reads a picture and an instruction and says C * A tokens, one per number of the chunk, step by step. Bins,
their centres, the order of the tokens and the prompt are OpenVLA's (arXiv 2406.09246; checked against the code of
openvla/openvla: prismatic/vla/action_tokenizer.py and modeling_prismatic.py). Log-probabilities are over the action
tokens alone. Any image-text-to-text model will do; one that was never taught actions starts with actions at random.

``OpenVLAPolicy.from_pretrained("openvla/openvla-7b", statistics="bridge_orig")`` reads OpenVLA's own folders without
the code that they bring (``vla/prismatic.py``). Those weights were not loaded here; random weights of several families
of transformers are what the tests run.

Two ways of reading a chunk:

- *autoregressive*: token after token. A batch of pictures is read once, instructions padded on the left, and each
  further token costs one pass over one position: K passes for a chunk, however many robots there are.
- *parallel*, as OpenVLA-OFT has it (arXiv 2502.19645): one pass for the whole chunk. Behind the prompt stand K
  placeholders whose embeddings are zero, and the end token; attention is not causal; the answer to token k is read
  where an autoregressive model would be read, one place before its placeholder. Given the picture, tokens are then
  independent, their log-probabilities are exact, and acting and learning are the same pass. Faithful: placeholders,
  their zeros, the end token and the place of answers, checked by reading modeling_prismatic.py as forks of
  openvla-oft carry it. Its attention is in a fork of transformers that was not read, so that who looks at whom in the
  prompt is a choice here (``bidirectional``). Different: tokens alone (the continuous L1 head gives no
  probability, so that nothing but imitation could learn from it), one picture, no proprioception, no FiLM. It was not
  run beside the published code, nor with its weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from inspect import signature
from pathlib import Path
from string import Formatter
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..envs.action_scale import ActionScale
from ..envs.simulator import View
from ..errors import UsageError, unknown
from ..json_files import as_written, read_object
from ..rewards.models.weights import loading
from ..trainers.lora import CONFIG, Targets, add_lora, load_lora, save_pretrained
from ..trainers.peak import recomputed_share
from ..types import Evaluation
from ..untrusted import plain_of
from .chunk_policy import ChunkPolicy, Seen

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
SETTINGS = "action_policy.json"
Decoding = Literal["autoregressive", "parallel"]


class OpenVLAPolicy(ChunkPolicy):
    """A vision-language model that says actions.

    A payload stores "tokens" [S, C * A], the bin of each number, step after step. Bin 0 is the lowest value and the
    highest token id.

    Args:
        model: takes input ids and pixels, gives logits, and has transformers' ``generate``.
        processor: makes both from text and pictures.
        chunk: C; action_size: A.
        bins: tokens per number: the last ids below ``vocabulary`` that are not special.
        vocabulary: where they end; None takes the model's, less the padding of its embeddings (``pad_to_multiple_of``).
        prompt: with "{instruction}". It goes through the processor's chat template if there is one.
        ending: ids behind the prompt; OpenVLA's own has Llama's lonely space there, [29871].
        scale: what -1 and 1 of the tokens mean in the units in which the environment takes actions, which are cut to
            [-1, 1]; see :func:`statistics_of`. None: the same.
        view: how frames are taken; the processor resizes them to what the model wants.
        decoding: "autoregressive" or "parallel", see the module.
        bidirectional: in parallel decoding, who looks at what stands behind it: "all" tokens, or the placeholders of
            "actions" alone, while the prompt is read as ever.
        sample_rows: pictures read at once while acting.
        gradient_checkpointing: share of the layers that are recomputed in the backward pass, 0 to 1; None: 1 above a
            billion weights, else 0.
        options: of every ``ChunkPolicy``; ``micro_batch_rows`` is 16 if nobody says.
    """

    stepwise = True
    frames_stay = True  # its processor makes pixels of them, which go to the device

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        chunk: int,
        action_size: int,
        bins: int = 256,
        vocabulary: int | None = None,
        prompt: str = PROMPT,
        ending: Sequence[int] = (),
        scale: ActionScale | None = None,
        view: View | None = None,
        decoding: Decoding = "autoregressive",
        bidirectional: Literal["all", "actions"] = "all",
        sample_rows: int = 64,
        gradient_checkpointing: float | None = None,
        **options: Any,
    ) -> None:
        view = View(size=224) if view is None else view
        decisions = chunk * action_size
        options = {"micro_batch_rows": 16} | options | {"decisions": decisions, "sees": "frames", "view": view}
        super().__init__(model, chunk=chunk, action_size=action_size, **options)
        self.capabilities = frozenset({"exact", "entropy", "kl"})
        self.processor, self.prompt, self.ending = processor, prompt, tuple(ending)
        self.bins, self.scale, self.sample_rows = bins, scale, sample_rows
        self.decoding, self.bidirectional = decoding, bidirectional
        self.plain = plain_of(processor)
        if {field for _, field, _, _ in Formatter().parse(prompt) if field is not None} != {"instruction"}:
            raise UsageError(f'{self.name}: the prompt {prompt!r} wants a place for the "{{instruction}}" alone')
        if scale is not None and len(scale.low) != action_size:
            raise UsageError(f"{self.name}: actions have {action_size} numbers, the scale has {len(scale.low)}")
        self.vocabulary = _vocabulary(model) if vocabulary is None else vocabulary
        self.action_ids = torch.tensor(_action_ids(model.config, processor, self.vocabulary, bins))
        if share := recomputed_share(model, gradient_checkpointing):
            model.activation_checkpointing_enable({"use_reentrant": False})
            _spread(model, share)
        model.eval()

    # between numbers and tokens

    def tokens_of(self, actions: Tensor) -> Tensor:
        """[..., A] actions -> the bin of each number."""
        values = actions.cpu() if self.scale is None else torch.from_numpy(self.scale.normalised(actions.cpu().numpy()))
        edges = torch.linspace(-1, 1, self.bins)
        return (torch.bucketize(values.clamp(-1, 1).contiguous(), edges, right=True) - 1).clamp(0, self.bins - 1)

    def actions_of(self, tokens: Tensor) -> Tensor:
        """[..., A] bins -> actions in [-1, 1]. There is one centre less than bins: the last two share theirs."""
        edges = torch.linspace(-1, 1, self.bins)
        values = ((edges[:-1] + edges[1:]) / 2)[tokens.cpu().clamp(max=self.bins - 2)]
        return values if self.scale is None else torch.from_numpy(self.scale.original(values.numpy())).clamp(-1, 1)

    # the three methods

    def decide(
        self, seen: Seen, randomness: Sequence[Any] | None, temperature: float
    ) -> tuple[Tensor, Mapping[str, Tensor], Tensor | None]:
        tokens = torch.zeros(len(seen), self.per_chunk, dtype=torch.long)
        logs = torch.zeros(len(seen), self.per_chunk)
        drawn = None
        if randomness is not None:
            drawn = torch.stack([torch.rand(self.per_chunk, generator=random) for random in randomness])
        for rows in torch.split(torch.arange(len(seen)), self.sample_rows):
            order, inputs = self._inputs(seen.select(rows))
            rows = rows[order]
            uniform = None if drawn is None else drawn[rows]
            if self.decoding == "parallel":
                tokens[rows], logs[rows] = _chosen(self.read(inputs, None), uniform, temperature)
                continue
            mine = _Chooser(self.action_ids, uniform, temperature)
            self.module.generate(  # type: ignore[operator]
                **inputs,
                max_new_tokens=self.per_chunk,
                min_new_tokens=self.per_chunk,
                do_sample=False,
                use_cache=True,
                logits_processor=[mine],
            )
            tokens[rows], logs[rows] = torch.stack(mine.tokens, 1), torch.stack(mine.log_probs, 1)
        actions = self.actions_of(tokens.view(-1, self.chunk, self.action_size))
        return actions, {"tokens": tokens}, logs

    def score(self, seen: Seen, stored: Mapping[str, Tensor]) -> Evaluation:
        return self.compare(seen, stored, {})

    def compare(self, seen: Seen, stored: Mapping[str, Tensor], others: Mapping[str, Any]) -> Evaluation:
        tokens, warmth = stored["tokens"], stored["temperature"][:, None, None]
        logs = (self.logits(seen, tokens) / warmth).log_softmax(-1)
        kl = {}
        for name, other in others.items():
            with torch.no_grad():
                theirs = (other.logits(seen, tokens) / warmth).log_softmax(-1)
            kl[name] = (logs.exp() * (logs - theirs)).sum(-1)
        said = logs.gather(-1, tokens[..., None])[..., 0]
        return Evaluation(said, -(logs.exp() * logs).sum(-1), kl=kl)

    def imitate(self, seen: Seen, actions: Tensor) -> Mapping[str, Tensor]:
        return {"tokens": self.tokens_of(actions).flatten(1)}

    def logits(self, seen: Seen, tokens: Tensor) -> Tensor:
        """[N, K, bins] of the action tokens, each given those before it; in parallel decoding given none."""
        order, inputs = self._inputs(seen)
        with self.recomputing():
            found = self.read(inputs, tokens[order.to(tokens.device)])
        return found[order.argsort().to(self.device)]

    # reading

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Layers that are to be recomputed are, where there is a gradient.

        transformers does so in training mode only; what lies below the layers (dropout) stays as in sampling.
        """
        layers = [part for part in self.module.modules() if getattr(part, "gradient_checkpointing", False)]
        for layer in layers:
            layer.training = torch.is_grad_enabled()
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def read(self, inputs: Mapping[str, Any], tokens: Tensor | None) -> Tensor:
        """Logits [N, K, bins] in one pass over inputs [N, ...] and the tokens [N, K] that were said.

        The head is asked at the places that decide and nowhere else. In parallel decoding nobody reads tokens.
        """
        ids, count = self.action_ids.to(self.device), self.per_chunk
        behind = 0
        if self.decoding == "parallel":
            end = _end_token(self.processor, self.module.config)
            said = torch.full((len(inputs["input_ids"]), count + 1), end, device=self.device)
            inputs, behind = self._looking_around(_continued(inputs, said)), 2
        else:
            assert tokens is not None
            inputs = _placed(self.module, _continued(inputs, ids[tokens.to(self.device)[:, :-1]]))
        kept: dict[str, Any] = {"logits_to_keep": count + behind} if self._keeps_logits else {}
        with self._blanked(count if behind else 0):
            logits = self.module(**inputs, **kept, use_cache=False).logits
        first = logits.shape[1] - count - behind
        return cast(Tensor, logits[:, first : first + count].index_select(-1, ids).float())

    @cached_property
    def _keeps_logits(self) -> bool:
        return "logits_to_keep" in signature(cast(Any, self.module).forward).parameters

    @contextmanager
    def _blanked(self, count: int) -> Iterator[None]:
        """Embeddings of zero for so many tokens before the last, for a while."""

        def zeros(_: Any, __: Any, embedded: Tensor) -> Tensor:
            blank = torch.zeros(embedded.shape[1], 1, dtype=torch.bool, device=embedded.device)
            blank[-count - 1 : -1] = True
            return embedded.masked_fill(blank, 0)

        if not count:
            yield
            return
        hook = cast(Any, self.module).get_input_embeddings().register_forward_hook(zeros)
        try:
            yield
        finally:
            hook.remove()

    def _looking_around(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with a mask [N, 1, L, L] in which the last K + 1 tokens, or all, look at what is behind them."""
        kind = getattr(cast(Any, self.module).config.get_text_config(), "_attn_implementation", None)
        if kind not in ("sdpa", "eager"):
            raise UsageError(f"parallel decoding needs attn_implementation sdpa or eager, and the model has {kind}")
        placed = _placed(self.module, inputs, masked=True)
        real = inputs["attention_mask"].bool()
        length = real.shape[1]
        looks = torch.ones(length, length, dtype=torch.bool, device=real.device)
        if self.bidirectional == "actions":
            looks = looks.tril()
            looks[-self.per_chunk - 1 :] = True
        mask = looks & real[:, None, None, :]
        mask |= torch.eye(length, dtype=torch.bool, device=real.device)  # padding looks at itself
        if kind == "eager":
            dtype = next(self.module.parameters()).dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=real.device).masked_fill(~mask, torch.finfo(dtype).min)
        return placed | {"attention_mask": mask}

    def _inputs(self, seen: Seen) -> tuple[Tensor, dict[str, Any]]:
        """An order [N] of the rows, those of an instruction together, and what the model reads of them in it.

        Instructions are padded on the left where their lengths differ.
        """
        if len(seen.frames) != 1:
            raise ValueError(f"{self.name} sees frames of one camera, and was given {', '.join(seen.frames) or 'none'}")
        frames = next(iter(seen.frames.values())).cpu().numpy()
        alike: dict[str, list[int]] = {}
        for row, instruction in enumerate(seen.instructions):
            alike.setdefault(self._text(instruction), []).append(row)
        parts = [self._processed(text, [_image(frames[row]) for row in rows]) for text, rows in alike.items()]
        dtype = next(self.module.parameters()).dtype
        inputs = {
            name: value.to(self.device, dtype if value.is_floating_point() else None)
            for name, value in _joined(parts).items()
        }
        return torch.tensor([row for rows in alike.values() for row in rows]), inputs

    def _text(self, instruction: str) -> str:
        question = self.prompt.format(instruction=self.plain(instruction.lower()))
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            told = [{"role": "user", "content": content}]
            return str(self.processor.apply_chat_template(told, add_generation_prompt=True))
        return str(getattr(self.processor, "image_token", "")) + question

    def _processed(self, text: str, pictures: Sequence[Any]) -> dict[str, Tensor]:
        """What the processor makes of one text and several pictures."""
        try:
            made = self.processor(text=[text] * len(pictures), images=[[p] for p in pictures], return_tensors="pt")
        except (ValueError, TypeError, AttributeError, IndexError):
            # Processors such as OpenVLA's own take a flat list of pictures.
            made = self.processor(text=[text] * len(pictures), images=list(pictures), return_tensors="pt")
        inputs = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        return _continued(inputs, torch.tensor(self.ending).expand(len(pictures), -1)) if self.ending else inputs

    def in_common(self) -> Sequence[Any]:
        return (self.processor,)

    # folders

    def save_pretrained(self, folder: str | Path) -> None:
        """Model (or its adapters), processor and settings in a folder that ``from_pretrained`` reads."""
        folder = Path(folder)
        save_pretrained(self.module, folder)
        self.processor.save_pretrained(folder)
        scale = None if self.scale is None else [np.asarray(part).tolist() for part in vars(self.scale).values()]
        settings: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("chunk", "action_size", "bins", "vocabulary", "prompt", "ending", "decoding", "bidirectional")
        }
        settings |= {"scale": scale, "view": None if self.view is None else asdict(self.view)}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2))

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        dtype: torch.dtype | str = "auto",
        device_map: Any = None,
        trust_remote_code: bool = False,
        statistics: str | None = None,
        lora_rank: int | None = None,
        lora_targets: Targets = "all-linear",
        **options: Any,
    ) -> OpenVLAPolicy:
        """A policy from a folder or a hub repository.

        Args:
            trust_remote_code: run Python files that come with the weights. Read them first.
            statistics: of which data set the actions are, for models that list some (``norm_stats``); it sets
                ``scale`` and ``action_size``. None is the only one; with several and an ``action_size``, actions are
                in the environment's own units.
            lora_rank: freeze the model and train adapters of this rank on ``lora_targets``.
            options: of the policy; a folder written by ``save_pretrained`` knows them. ``chunk`` is 1 if nobody says.

        Raises:
            UsageError: nothing there, code that nobody allowed to run, or settings that are missing; one line.
        """
        model, processor = _load(name, dtype, device_map, trust_remote_code)
        settings = _settings(name) | options
        if getattr(model.config, "model_type", "") == "openvla":
            settings = {"ending": [29871]} | settings
        listed = getattr(model.config, "norm_stats", None)
        own = listed and "scale" not in settings and not (len(listed) > 1 and "action_size" in settings)
        if statistics is not None or own:
            settings["scale"] = statistics_of(listed or {}, statistics)
            settings.setdefault("action_size", len(settings["scale"].low))
        if "action_size" not in settings:
            raise UsageError(f"{name} does not say how many numbers an action has: give action_size")
        if lora_rank is not None:
            add_lora(model, lora_rank, lora_targets)
        policy = cls(model, processor, **({"chunk": 1} | settings))
        policy.pretrained = True
        return policy


def _chosen(logits: Tensor, uniform: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens [...] of logits [..., bins], and their log-probabilities, on the CPU.

    Sampling is by inversion of given uniform numbers [...]; None takes the most probable.
    """
    logs = (logits.float() / temperature).log_softmax(-1).cpu()
    if uniform is None:
        tokens = logs.argmax(-1)
    else:
        reached = torch.searchsorted(logs.double().exp().cumsum(-1), uniform[..., None].double())
        tokens = reached[..., 0].clamp(max=logs.shape[-1] - 1)
    return tokens, logs.gather(-1, tokens[..., None])[..., 0]


class _Chooser:
    """Chooses among the action tokens while a model generates; all others become impossible."""

    def __init__(self, ids: Tensor, uniform: Tensor | None, temperature: float) -> None:
        self.ids, self.uniform, self.temperature = ids, uniform, temperature
        self.tokens: list[Tensor] = []
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ids = self.ids.to(scores.device)
        uniform = None if self.uniform is None else self.uniform[:, len(self.tokens)]
        tokens, logs = _chosen(scores.index_select(-1, ids), uniform, self.temperature)
        self.tokens.append(tokens)
        self.log_probs.append(logs)
        return torch.full_like(scores, -torch.inf).scatter(-1, ids[tokens.to(ids.device)][:, None], 0.0)


def statistics_of(listed: Mapping[str, Any], name: str | None = None) -> ActionScale:
    """The scale of one data set of a model's ``norm_stats``: q01 and q99 of each number, where its mask allows.

    Without quantiles min and max are taken, as OpenVLA-OFT's bounds are. A number that never moved becomes 0.

    Raises:
        UsageError: no such data set, several and no name, or no bounds in it.
    """
    if name is None and len(listed) == 1:
        name = next(iter(listed))
    if name is None:
        shown = ", ".join(sorted(listed)[:8])
        raise UsageError(f"the model knows actions of {len(listed)} data sets: give statistics, one of {shown}")
    if name not in listed:
        raise unknown("statistics", name, listed)
    with as_written(f"the statistics of {name} are none"):
        found = listed[name].get("action") or {}
        for low, high in (("q01", "q99"), ("min", "max")):
            if low in found and high in found:
                return ActionScale.between(found[low], found[high], found.get("mask"))
    has = ", ".join(found) or "nothing"
    raise UsageError(f"the statistics of {name} say {has} of its actions; needed are q01 and q99, or min and max")


def _vocabulary(model: Any) -> int:
    size = int(model.config.get_text_config().vocab_size) - int(getattr(model.config, "pad_to_multiple_of", 0) or 0)
    return min(size, int(model.get_input_embeddings().weight.shape[0]))


def _action_ids(config: Any, processor: Any, vocabulary: int, bins: int) -> list[int]:
    """The last ids that nothing else uses, from the highest down."""
    reader = getattr(processor, "tokenizer", processor)
    taken = {int(i) for i in getattr(reader, "all_special_ids", [])}
    added = getattr(reader, "added_tokens_decoder", {})
    taken |= {int(i) for i, token in added.items() if getattr(token, "special", False)}
    for part in (config, config.get_text_config()):
        taken |= {v for k, v in vars(part).items() if k.endswith(("_token_id", "_token_index")) and isinstance(v, int)}
    free = [i for i in range(vocabulary - 1, -1, -1) if i not in taken][:bins]
    if len(free) < bins or bins < 2:
        raise UsageError(f"{bins} bins: the vocabulary has {len(free)} tokens for actions, and two are the least")
    return free


def _continued(inputs: Mapping[str, Any], ids: Tensor) -> dict[str, Any]:
    """The inputs with these ids [N, K] behind them; what goes along with ids (masks, types) grows too."""
    shape, longer = inputs["input_ids"].shape, dict(inputs)
    for name, value in inputs.items():
        if name != "input_ids" and isinstance(value, Tensor) and value.shape == shape:
            fill = 1 if name == "attention_mask" else 0
            longer[name] = torch.cat([value, value.new_full(ids.shape, fill)], -1)
    longer["input_ids"] = torch.cat([inputs["input_ids"], ids], -1)
    return longer


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Inputs of several instructions as one batch, tokens padded on the left."""
    longest = max(part["input_ids"].shape[1] for part in parts)
    joined = {}
    for name in parts[0]:
        values = []
        for part in parts:
            missing = longest - part["input_ids"].shape[1]
            along = part[name].shape == part["input_ids"].shape
            values.append(nn.functional.pad(part[name], (missing, 0)) if along else part[name])
        joined[name] = torch.cat(values)
    return joined


def _placed(model: Any, inputs: Mapping[str, Any], *, masked: bool = False) -> dict[str, Any]:
    """The inputs with positions that leave padding out of account.

    Args:
        masked: the mask will be one of every pair of tokens, of which families whose positions have several axes could
            not make positions, as they otherwise do themselves.
    """
    of_several_axes = getattr(getattr(model, "model", model), "get_rope_index", None)
    if of_several_axes is not None:
        known = {n: v for n, v in inputs.items() if n in signature(of_several_axes).parameters}
        return dict(inputs) | ({"position_ids": of_several_axes(**known)[0]} if masked else {})
    if "position_ids" not in signature(model.forward).parameters:
        return dict(inputs)
    return dict(inputs) | {"position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


def _spread(model: Any, share: float) -> None:
    """Recompute a share of the layers that can be recomputed, evenly spread."""
    layers = [part for part in model.modules() if getattr(part, "gradient_checkpointing", False)]
    for place, layer in enumerate(layers):
        layer.gradient_checkpointing = int((place + 1) * share) > int(place * share)


def _end_token(processor: Any, config: Any) -> int:
    """The token that ends what a model says."""
    end = getattr(getattr(processor, "tokenizer", processor), "eos_token_id", None)
    if end is None:
        end = config.get_text_config().eos_token_id
    if not isinstance(end, int):
        raise UsageError("parallel decoding puts the end token behind a chunk, and the tokenizer has none")
    return end


def _image(frame: Any) -> Any:
    from PIL import Image

    return Image.fromarray(frame)


def _settings(name: str) -> dict[str, Any]:
    path = Path(name) / SETTINGS
    if not path.is_file():
        return {}
    settings = read_object(path, "view", "scale")
    with as_written(f"{path} holds no settings"):
        settings["view"] = None if settings["view"] is None else View(**settings["view"])
        settings["scale"] = None if settings["scale"] is None else ActionScale.between(*settings["scale"])
    return settings


def _load(name: str, dtype: torch.dtype | str, device_map: Any, trusted: bool) -> tuple[Any, Any]:
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

    adapters = Path(name) / CONFIG
    source = read_object(adapters, "base_model_name_or_path")["base_model_name_or_path"] if adapters.is_file() else name
    with loading(source):
        config, _ = PreTrainedConfig.get_config_dict(source)
        if not config:
            raise UsageError(f"{source} holds no model: it has no config.json")
    kind, own = config.get("model_type"), config.get("auto_map", {})
    if kind == "openvla":
        return _load_openvla(source, name, dtype, device_map)
    foreign = kind not in CONFIG_MAPPING
    if foreign and not own:
        raise UsageError(f"{source}: transformers knows no model type {kind!r}")
    if foreign and not trusted:
        raise UsageError(f"{source} brings code of its own to run: read it, then say trust_remote_code=True")
    given: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trusted}
    given |= {} if device_map is None else {"device_map": device_map}
    with loading(source):
        build: Callable[..., Any] = AutoModelForImageTextToText.from_pretrained
        older = own.get("AutoModelForVision2Seq")  # an auto class that transformers no longer has; OpenVLA names it
        if foreign and older is not None and "AutoModelForImageTextToText" not in own:
            from transformers.dynamic_module_utils import get_class_from_dynamic_module

            found: Any = get_class_from_dynamic_module(older, source)
            build = found.from_pretrained
        model = _whole(build, source, name, given)
        reader: Any = AutoProcessor
        return model, reader.from_pretrained(name, trust_remote_code=trusted)


def _whole(build: Callable[..., Any], source: str, name: str, given: Mapping[str, Any]) -> Any:
    """The model of a folder, with all of its weights, and the adapters of ``name`` where there are some."""
    model, told = build(source, output_loading_info=True, **given)
    if told["missing_keys"]:
        lost = sorted(told["missing_keys"])
        raise UsageError(f"{source} lacks {len(lost)} weights of its model, such as {lost[0]}: it would act at random")
    if (Path(name) / CONFIG).is_file():
        load_lora(model, name)
    return model


def _load_openvla(source: str, name: str, dtype: torch.dtype | str, device_map: Any) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    from .prismatic import PrismaticProcessor, PrismaticVLA

    given: dict[str, Any] = {"dtype": dtype} | ({} if device_map is None else {"device_map": device_map})
    reader: Any = AutoTokenizer
    with loading(source):
        model = _whole(PrismaticVLA.from_pretrained, source, name, given)
        return model, PrismaticProcessor.for_model(model, reader.from_pretrained(name))
