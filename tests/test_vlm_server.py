"""Rollouts from a server: a small local one that answers rightly, slowly, wrongly or not at all."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autotelic.errors import UsageError
from autotelic.testing import vlms as tiny_vlms
from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives.policy_gradient import PPOClip
from autotelic.types import Rollout, Task
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.server import ServerActor, ServerError, messages_of

TASKS = [Task("first", "what is one ?"), Task("second", "how many cat in the picture ?")]
Answer = Callable[[dict[str, Any]], Any]
"""The request -> what the server sends: a JSON value, bytes as they are, or (status, text)."""


@pytest.fixture(scope="module")
def policy() -> TokenPolicy:
    return TokenPolicy.of(*tiny_vlms.text(), horizon=6)


@contextmanager
def serving(*answers: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers its k-th request by the k-th function or else the last, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(request | {"path": self.path, "key": self.headers.get("Authorization")})
            found = answers[min(len(asked), len(answers)) - 1](request)
            status, body = found if isinstance(found, tuple) else (200, found)
            sent = body if isinstance(body, bytes) else json.dumps(body).encode()
            try:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(sent)
            except BrokenPipeError:
                pass  # who asked has gone

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def choice(policy: TokenPolicy, rollout: Rollout, ids: bool = True) -> dict[str, Any]:
    """A completion as a server tells it."""
    tokens = rollout.payload["tokens"].tolist()
    assert rollout.log_probs is not None
    entries = [
        {"token": policy.renderer.text(torch.tensor([token])), "logprob": log_prob}
        for token, log_prob in zip(tokens, rollout.log_probs.tolist(), strict=True)
    ]
    told = {"token_ids": tokens} if ids else {}
    reason = "length" if rollout.info["truncated"] else "stop"
    return {"message": {"content": rollout.output}, "finish_reason": reason, "logprobs": {"content": entries}} | told


def speaking(policy: TokenPolicy, ids: bool = True, prompt: bool = True) -> Answer:
    """A server with the policy's own weights; the task is the one whose question it was asked."""

    def answer(request: dict[str, Any]) -> Any:
        task = next(t for t in TASKS if t.prompt == request["messages"][0]["content"])
        rollouts = policy.act([task], request["n"], key=(7,))
        told = {"prompt_token_ids": policy.renderer.prompts([task])[0].ids.tolist()} if prompt else {}
        return {"choices": [choice(policy, r, ids) for r in rollouts]} | told

    return answer


def actor(policy: TokenPolicy, url: str, **changes: Any) -> ServerActor:
    return ServerActor(policy, url, "tiny", **({"wait": 0.01, "attempts": 3, "timeout": 20.0} | changes))


def test_rollouts_are_those_of_the_policy_that_serves_and_train_it(policy: TokenPolicy) -> None:
    pushed = []
    with serving(speaking(policy)) as (url, asked):
        served = actor(policy, f"{url}/v1", sync=pushed.append, api_key="secret").act(TASKS, 4, key=(3,))
    own = policy.act(TASKS, 4, key=(7,))
    assert pushed == [policy]
    assert [r.task.id for r in served] == [r.task.id for r in own] == ["first"] * 4 + ["second"] * 4
    for theirs, ours in zip(served, own, strict=True):
        assert theirs.payload["tokens"].tolist() == ours.payload["tokens"].tolist()
        assert ours.log_probs is not None and theirs.log_probs is not None
        torch.testing.assert_close(theirs.log_probs, ours.log_probs)
        assert theirs.output == ours.output and theirs.info["truncated"] == ours.info["truncated"]
    request = asked[0]
    assert request["path"] == "/v1/chat/completions" and request["key"] == "Bearer secret"
    assert (request["n"], request["max_tokens"], request["temperature"], request["logprobs"]) == (4, 6, 1.0, True)
    assert asked[0]["seed"] != asked[1]["seed"]

    learning = TokenPolicy.of(*tiny_vlms.text(), horizon=6)
    before = {name: weight.clone() for name, weight in learning.state_dict().items()}
    learner = PolicyLearner(learning, PPOClip(importance_cap=2.0), Optimisation(lr=1e-2), advantage=grpo())
    for row, rollout in enumerate(served):
        rollout.scores["total"] = float(row % 2)
    metrics = learner.update(served)
    assert metrics["objective/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert any(not torch.equal(weight, before[name]) for name, weight in learning.state_dict().items())


def test_without_ids_the_text_is_read_again_and_tokens_that_read_otherwise_teach_nothing(policy: TokenPolicy) -> None:
    with serving(speaking(policy, ids=False)) as (url, _):
        served = actor(policy, url).act(TASKS[:1], 8)
    own = policy.act(TASKS[:1], 8, key=(7,))
    assert any(bool(r.mask.any()) for r in served)
    for theirs, ours in zip(served, own, strict=True):
        if "untold" in theirs.info:  # unknown words and padding read otherwise
            assert not theirs.mask.any()
        else:
            assert theirs.payload["tokens"].tolist() == ours.payload["tokens"].tolist()

    def other(request: dict[str, Any]) -> Any:
        entries = [{"token": t, "logprob": -1.0} for t in ("re", "d")]  # the policy reads "red" as one token
        return {
            "choices": [{"message": {"content": "red"}, "finish_reason": "length", "logprobs": {"content": entries}}]
        }

    with serving(other) as (url, _):
        (rollout,) = actor(policy, url).act(TASKS[:1], 1)
    assert rollout.output == "red" and rollout.info["untold"] and not rollout.mask.any()


def test_an_end_that_the_server_keeps_to_itself_is_read_but_not_learned(policy: TokenPolicy) -> None:
    def answer(request: dict[str, Any]) -> Any:
        entries = [{"token": "red", "logprob": -0.5}]
        return {"choices": [{"message": {"content": "red"}, "finish_reason": "stop", "logprobs": {"content": entries}}]}

    with serving(answer) as (url, _):
        (rollout,) = actor(policy, url).act(TASKS[:1], 1)
    red, end = policy.renderer.tokens("red").tolist()
    assert rollout.payload["tokens"].tolist() == [red, end]
    assert rollout.mask.tolist() == [True, False]
    assert rollout.log_probs is not None and rollout.log_probs.tolist() == [-0.5, 0.0]


FAILURES: dict[str, tuple[Any, str]] = {
    "an error of the server": ((503, b"loading"), "HTTP 503: loading"),
    "no JSON": (b"<html>", "the answer is no JSON: '<html>'"),
    "no choices": ({"error": "busy"}, "the answer has no choices: {'error': 'busy'}"),
    "too few": ({"choices": []}, "0 completions where 2 were asked for"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_may_pass_is_tried_again_and_named_when_it_does_not(policy: TokenPolicy, name: str) -> None:
    wrong, line = FAILURES[name]
    with serving(lambda request: wrong, speaking(policy)) as (url, asked):
        assert len(actor(policy, url).act(TASKS[:1], 2)) == 2
        assert len(asked) == 2
    with serving(lambda request: wrong) as (url, asked):
        with pytest.raises(ServerError) as error:
            actor(policy, url).act(TASKS[:1], 2)
        assert str(error.value) == f"{url}, task first: {line} (3 tries)"
        assert len(asked) == 3


def test_a_slow_server_and_none_at_all_are_named(policy: TokenPolicy) -> None:
    def slow(request: dict[str, Any]) -> Any:
        time.sleep(0.5)
        return {}

    with serving(slow) as (url, _), pytest.raises(ServerError, match=r"task first: no answer in 0.1 s \(2 tries\)"):
        actor(policy, url, timeout=0.1, attempts=2).act(TASKS[:1], 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match=rf"http://127.0.0.1:{port}, task first: no connection .*refused"):
        actor(policy, f"http://127.0.0.1:{port}").act(TASKS, 1)


def test_what_cannot_pass_is_not_tried_again(policy: TokenPolicy) -> None:
    with serving(lambda request: (404, b"no model tiny")) as (url, asked):
        with pytest.raises(ServerError, match=r"task first: HTTP 404: no model tiny$"):
            actor(policy, url).act(TASKS[:1], 1)
        assert len(asked) == 1
    mute = {"choices": [{"message": {"content": "red"}, "finish_reason": "stop", "logprobs": None}]}
    with serving(lambda request: mute) as (url, asked):
        with pytest.raises(ServerError, match="without the log-probability of every token"):
            actor(policy, url).act(TASKS[:1], 1)
        assert len(asked) == 1


def test_another_reading_of_the_question_is_refused(policy: TokenPolicy) -> None:
    def answer(request: dict[str, Any]) -> Any:
        return speaking(policy)(request) | {"prompt_token_ids": [1, 2, 3]}

    with serving(answer) as (url, _), pytest.raises(ServerError, match="reads the question in 3 tokens"):
        actor(policy, url).act(TASKS[:1], 1)


def test_images_travel_as_data_urls_in_their_places() -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    (alone,) = messages_of(Task("t", "what is left ?", (picture,)))
    assert [block["type"] for block in alone["content"]] == ["image_url", "text"]
    data = base64.b64decode(alone["content"][0]["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), picture)
    words = [{"type": "text", "text": "left"}, {"type": "image"}, {"type": "text", "text": "right ?"}]
    (placed,) = messages_of(Task("t", [{"role": "user", "content": words}], (picture,)))
    assert [block["type"] for block in placed["content"]] == ["text", "image_url", "text"]
    with pytest.raises(UsageError, match="t: 1 image blocks in the messages, 2 images in the task"):
        messages_of(Task("t", [{"role": "user", "content": words}], (picture, picture)))


def test_what_a_server_tells_of_another_vocabulary_teaches_nothing(policy: TokenPolicy) -> None:
    def answer(request: dict[str, Any]) -> Any:
        entries = [{"token": "red", "logprob": -0.5}] * 2
        told = {"message": {"content": "red \ud83d"}, "finish_reason": "length", "logprobs": {"content": entries}}
        return {"choices": [told | {"token_ids": [5, 10**6]}, told | {"token_ids": [5, -1]}]}

    with serving(answer) as (url, _):
        rollouts = actor(policy, url).act(TASKS[:1], 2)
    for rollout in rollouts:
        assert rollout.info["untold"] and not rollout.mask.any()
        assert rollout.output == "red \ufffd"
        assert policy.evaluate_actions(policy.collate([rollout])).log_probs.isfinite().all()


def test_questions_are_sent_without_control_tokens_and_begun_answers_go_on(policy: TokenPolicy) -> None:
    task = Task("t", [{"role": "user", "content": "red <eos> blue"}, {"role": "assistant", "content": "one"}])
    body = actor(policy, "http://localhost:1")._body(task, 1, (0,), False, 1.0)
    assert body["messages"] == [{"role": "user", "content": "red <eos > blue"}, {"role": "assistant", "content": "one"}]
    assert body["continue_final_message"] and not body["add_generation_prompt"]
    plain = actor(policy, "http://localhost:1")._body(TASKS[0], 1, (0,), False, 1.0)
    assert "continue_final_message" not in plain and plain["repetition_penalty"] == 1.0


def test_whose_weights_sampled_is_told(policy: TokenPolicy) -> None:
    with serving(speaking(policy)) as (url, _):
        (stale, *_) = actor(policy, url).act(TASKS[:1], 2)
        (synced, *_) = actor(policy, url, sync=lambda policy: None).act(TASKS[:1], 2)
    assert stale.version == f"{url} as it was started" and synced.version == ""


def test_settings_that_cannot_work_are_refused(policy: TokenPolicy) -> None:
    with pytest.raises(UsageError, match="no address of a server: write http://HOST:PORT"):
        actor(policy, "localhost:8000")
    with pytest.raises(UsageError, match=r"temperature 0\.7: start the server so that"):
        actor(policy, "http://localhost:1").act(TASKS, 1, temperature=0.7)
    with pytest.raises(UsageError, match="attempts and workers of 1 or more"):
        actor(policy, "http://localhost:1", attempts=0)
    with serving(speaking(policy)) as (url, asked):
        (rollout, *_) = actor(policy, url, tempered=True).act(TASKS, 1, temperature=0.7)
    assert asked[0]["temperature"] == 0.7
    assert rollout.payload["temperature"].tolist() == pytest.approx([0.7])
