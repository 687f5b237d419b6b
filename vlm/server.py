"""Rollouts from a server that speaks the OpenAI protocol (vLLM, SGLang), trained by a policy of this house.

    actor = ServerActor(policy, "http://localhost:8000", "my-model", sync=push)
    Stage(actor=actor, learners={"policy": PolicyLearner(policy, PPOClip(importance_cap=2.0), ...)}, ...)

The server samples, the policy learns. What stands between the two is measured, not hoped for: the server's prompt
is compared with the policy's where the server tells its ids, and completions whose tokens cannot be told are scored
but masked, so that nobody learns from tokens that were never sampled.

Log-probabilities are the server's. They differ from the policy's by rounding, by kernels and by the age of the
server's weights. An objective with ``importance_cap`` recomputes them under the policy as the clip's centre and weighs
by the ratio, at most so much. The server's weights are the user's affair: ``sync`` is called with the policy before
every round; without it the server goes on with those it was started with and the ratio grows from step to step.

Written against the public protocol and vLLM's ``return_token_ids``, tested with a small local server; not run against
vLLM or SGLang themselves.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from ..errors import UsageError
from ..images import as_pil
from ..trainers.actors import TrainingWrapper
from ..types import Key, Rollout, Task
from ..untrusted import mapped, whole
from .decoding import check_temperature
from .policy import TokenPolicy

_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that another try may mend."""
NEUTRAL: Mapping[str, Any] = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
}
"""Fields with which the policy's own distribution is drawn from; a server fills what is not sent from the model's
generation settings."""
LEAST = -1e9
"""Log-probability of a token: a smaller one is none that was sampled."""
OWN = frozenset({"model", "messages", "n", "max_tokens", "temperature", "logprobs", "seed"})
"""What the actor says itself."""
BENDING = frozenset(
    {
        *("logit_bias", "bad_words", "allowed_token_ids", "logits_processors", "logits_processor_args", "ignore_eos"),
        *("guided_choice", "guided_json", "guided_regex", "guided_grammar", "structured_outputs", "response_format"),
        *(
            "stop",
            "stop_token_ids",
            "use_beam_search",
            "best_of",
            "length_penalty",
            "tools",
            "tool_choice",
            "max_completion_tokens",
        ),
        *("regex", "ebnf", "json_schema", "custom_logit_processor", "truncate_prompt_tokens", "echo", "stream"),
    }
)
"""Fields that change what is drawn, or how it is told."""
_KEPT = 200  # letters of what a server said, in messages


class ServerError(RuntimeError):
    """A server did not answer, or not as the protocol says; the line names the server and the task."""


class _Retry(Exception):
    """Another try may mend it."""


@dataclass
class ServerActor(TrainingWrapper):
    """An actor whose completions in training come from ``POST URL/v1/chat/completions``, one request per task.

    Evaluation, gates and forks ask the policy here, not the server.

    Attributes:
        policy: learns from the rollouts; its renderer tells prompts and tokens, its ``horizon`` the most tokens.
        url: of the server, with or without /v1.
        model: what the server calls the model.
        sync: brings the policy's weights to the server; called before every ``act``.
        timeout: seconds without an answer after which a request is tried again.
        attempts: tries per request; between them ``wait`` seconds, doubled each time.
        workers: requests under way at once.
        tempered: the server's log-probabilities are those after the temperature (vLLM with
            --logprobs-mode processed_logprobs). Servers differ in this, so without it only temperature 1 is sampled.
        extra: further fields of the request. Every field of sampling is sent (``NEUTRAL``), so that no token is cut
            off or made rarer, whatever the model's own settings say, and vLLM is asked for token ids; what would
            change the distribution is refused.
        api_key: sent as a bearer token.
    """

    policy: TokenPolicy
    url: str
    model: str
    sync: Callable[[TokenPolicy], Any] | None = None
    timeout: float = 120.0
    attempts: int = 4
    wait: float = 1.0
    workers: int = 16
    tempered: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f'"{self.url}" is no address of a server: write http://HOST:PORT')
        if self.attempts < 1 or self.workers < 1 or self.timeout <= 0:
            raise UsageError("a server is asked with attempts and workers of 1 or more, and a timeout above 0 seconds")
        for name, value in self.extra.items():
            if name in OWN or (name in NEUTRAL and value != NEUTRAL[name]) or (name in BENDING and value):
                raise UsageError(
                    f"{name}={value!r} changes what a server draws, or is the actor's own to say: log-probabilities "
                    "would not be the policy's; leave it out of extra"
                )
        self._address = f"{self.url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"

    def attempt(  # type: ignore[override]  # what the server does not know is refused
        self,
        tasks: Sequence[Task],
        n: int,
        *,
        key: Key = (0,),
        greedy: bool = False,
        temperature: float = 1.0,
    ) -> list[Rollout]:
        """n completions per task, in task order. ``key`` and the task's id make the seed that the server is sent.

        Raises:
            ServerError: every try failed; the other tasks of the call are lost with it.
            UsageError: a temperature whose log-probabilities the server does not tell (see ``tempered``).
        """
        check_temperature(temperature)
        if temperature != 1.0 and not greedy and not self.tempered:
            raise UsageError(
                f"temperature {temperature:g}: start the server so that log-probabilities are those after the "
                "temperature and say tempered=True, or sample at 1"
            )
        if self.sync is not None:
            self.sync(self.policy)
        bodies = [self._body(task, n, key, greedy, temperature) for task in tasks]
        with ThreadPoolExecutor(min(self.workers, max(1, len(tasks)))) as pool:
            answers = list(pool.map(self._ask, tasks, bodies))
        rollouts = []
        for task, answer in zip(tasks, answers, strict=True):
            self._check_prompt(task, answer)
            for choice in answer["choices"]:
                rollouts.append(self._rollout(task, choice, 1.0 if greedy else temperature))
        return rollouts

    # asking

    def _body(self, task: Task, n: int, key: Key, greedy: bool, temperature: float) -> dict[str, Any]:
        seed = hashlib.blake2b(repr((key, task.id)).encode(), digest_size=4).digest()
        messages = messages_of(task, self.policy.renderer.plain)
        begun = messages[-1]["role"] == "assistant"
        return {
            **NEUTRAL,
            "return_token_ids": True,
            **({"add_generation_prompt": False, "continue_final_message": True} if begun else {}),
            **self.extra,
            "model": self.model,
            "messages": messages,
            "n": n,
            "max_tokens": task.horizon or self.policy.horizon,
            "temperature": 0.0 if greedy else temperature,
            "logprobs": True,
            "seed": int.from_bytes(seed, "little") >> 1,
        }

    def _ask(self, task: Task, body: Mapping[str, Any]) -> dict[str, Any]:
        wait, said = self.wait, ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(wait)
                wait *= 2
            try:
                return self._once(body)
            except _Retry as error:
                said = str(error)
            except ServerError as error:
                raise ServerError(f"{self.url}, task {task.id}: {error}") from error
        raise ServerError(f"{self.url}, task {task.id}: {said} ({self.attempts} tries)")

    def _once(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """One request; what it raises says only what went wrong."""
        headers = {"Content-Type": "application/json"}
        headers |= {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            line = f"HTTP {error.code}: {error.read(4 * _KEPT).decode(errors='replace').strip()[:_KEPT]}"
            raise (_Retry if error.code in _PASSING else ServerError)(line) from error
        except TimeoutError as error:
            raise _Retry(f"no answer in {self.timeout:g} s") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            slow = isinstance(reason, TimeoutError)
            raise _Retry(f"no answer in {self.timeout:g} s" if slow else f"no connection ({reason})") from error
        return _checked(text, body["n"])

    # from answers to rollouts

    def _check_prompt(self, task: Task, answer: Mapping[str, Any]) -> None:
        theirs = answer.get("prompt_token_ids")
        if not theirs:
            return
        ours = self.policy.renderer.prompts([task])[0].ids.tolist()
        if list(theirs) != ours and not task.images:  # servers count an image's placeholders in their own ways
            raise ServerError(
                f"{self.url}, task {task.id}: the server reads the question in {len(theirs)} tokens and the policy in "
                f"{len(ours)} other ones: give both the same model folder, with its chat template"
            )

    def _rollout(self, task: Task, choice: Mapping[str, Any], temperature: float) -> Rollout:
        text = whole(choice["message"]["content"] or "")
        entries = choice["logprobs"]["content"]
        log_probs = [float(entry["logprob"]) for entry in entries]
        ended = choice.get("finish_reason") == "stop"
        ids = self._ids(choice, text, [str(entry.get("token", "")) for entry in entries])
        renderer, info = self.policy.renderer, {"truncated": not ended}
        foreign = renderer.vocabulary is not None and not all(0 <= i < renderer.vocabulary for i in ids or ())
        if not ids or foreign or set(ids) & set(self.policy.backbone.banned):
            ids, log_probs = renderer.tokens(text).tolist(), []
            info["untold"] = True
        elif ended and (not ids or ids[-1] not in renderer.ends):
            ids = [*ids, int(renderer.tokens("")[-1])]  # the server keeps its end to itself
        known = len(log_probs)
        mask = torch.arange(len(ids)) < known
        if self.policy.mask_truncated and not ended:
            mask = torch.zeros_like(mask)
        padded = torch.tensor([*log_probs, *[0.0] * (len(ids) - known)])
        payload = {
            "tokens": torch.tensor(ids, dtype=torch.long),
            "length": torch.tensor([len(ids)]),
            "temperature": torch.tensor([temperature]),
        }
        segments = torch.zeros(len(ids), dtype=torch.long)
        version = "" if self.sync is not None else f"{self.url} as it was started"
        return Rollout(task, text, payload, padded * mask, mask, segments, info=info, version=version)

    def _ids(self, choice: Mapping[str, Any], text: str, said: Sequence[str]) -> list[int] | None:
        """The sampled ids, one per log-probability: told by the server, or the text's own if they read the same."""
        told = choice.get("token_ids")
        if told is None and all(token.startswith("token_id:") for token in said):
            told = [
                int(number) if number.isdecimal() and len(number) < 10 else -1
                for number in (t.removeprefix("token_id:") for t in said)
            ]
        if told is not None:
            return told if len(told) == len(said) else None
        ids: Tensor = self.policy.renderer.tokens(text)
        with_end = len(said) == len(ids) and choice.get("finish_reason") == "stop"
        ids = ids if with_end else ids[:-1]
        plain = range(len(said) - 1 if with_end else len(said))
        if len(ids) != len(said) or any(not _reads(self.policy.renderer.text(ids[i : i + 1]), said[i]) for i in plain):
            return None
        return [int(i) for i in ids]


def _reads(own: str, said: str) -> bool:
    """Whether a token reads alike on both sides; halves of letters, which no side can write alone, do."""
    return own == said or "�" in own or said.startswith("bytes:")


def messages_of(task: Task, plain: Callable[[str], str] = whole) -> list[dict[str, Any]]:
    """A task's prompt as the protocol writes it, images as PNG in data URLs.

    Images take the places of blocks {"type": "image"}; without any, they stand before the first user's text.

    Args:
        plain: untrusted text -> what the server may read as control tokens if it likes.

    Raises:
        UsageError: an image that cannot be read, or another number of image blocks than images.
    """
    urls = [_data_url(as_pil(image, f"{task.id}: image {k + 1}")) for k, image in enumerate(task.images)]
    given = [{"role": "user", "content": task.prompt}] if isinstance(task.prompt, str) else task.prompt
    messages = [mapped(plain, message) for message in given]
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    places = sum(_is_place(block) for m in messages if not isinstance(m["content"], str) for block in m["content"])
    if places not in (0, len(urls)):
        raise UsageError(f"{task.id}: {places} image blocks in the messages, {len(urls)} images in the task")
    if places:
        left = iter(shown)
        for message in messages:
            if not isinstance(message["content"], str):
                message["content"] = [next(left) if _is_place(block) else block for block in message["content"]]
    elif urls:
        first = next((m for m in messages if m["role"] == "user"), messages[0])
        content = first["content"]
        first["content"] = shown + ([{"type": "text", "text": content}] if isinstance(content, str) else list(content))
    return messages


def _is_place(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("type") == "image"


def _data_url(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _check_ids(told: Any) -> None:
    if told is not None and not (isinstance(told, list) and all(type(number) is int for number in told)):
        raise ServerError(f"the server tells ids that are no whole numbers: {str(told)[:_KEPT]}")


def _checked(text: bytes, n: int) -> dict[str, Any]:
    """An answer as the protocol has it: n choices, each with a text and a log-probability per token."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError) as error:
        start = text[:_KEPT].decode(errors="replace")
        raise _Retry(f"the answer is no JSON: {start!r}") from error
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        raise _Retry(f"the answer has no choices: {str(answer)[:_KEPT]}")
    if len(choices) != n:
        raise _Retry(f"{len(choices)} completions where {n} were asked for")
    for choice in choices:
        try:
            entries = choice["logprobs"]["content"]
            fine = all(LEAST < float(entry["logprob"]) <= 1e-3 for entry in entries)
            fine = fine and isinstance(choice["message"]["content"], str | None)
        except (KeyError, TypeError, ValueError, OverflowError):
            fine = False
        if not fine:
            raise ServerError(
                "a completion comes without the log-probability of every token: the server must answer logprobs=true"
            )
        _check_ids(choice.get("token_ids"))
    _check_ids(answer.get("prompt_token_ids"))
    found: dict[str, Any] = answer
    return found
