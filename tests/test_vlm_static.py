"""Decoding in fixed shapes: what it says is what is said operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotelic.errors import UsageError
from autotelic.testing import vlms as tiny
from autotelic.types import Rollout, Task
from autotelic.vlm import captured, static_decoding
from autotelic.vlm.conversation import Conversation, Script
from autotelic.vlm.lean import Lean
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.static_decoding import Bucket, Layout, StaticDecoder, layout_of, length_bucket, row_bucket

FAMILIES = (*tiny.TEXTS, *tiny.VLMS)
PICTURES = [np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8) for seed in range(3)]


def tasks_for(family: str) -> list[Task]:
    """Three questions of unequal lengths and limits."""
    first, second = (tuple(PICTURES[:1]), tuple(PICTURES[1:])) if family in tiny.VLMS else ((), ())
    return [
        Task("short", "what is red ?" * 6, first, horizon=3),
        Task("long", "how many circle in the picture ?" * 5, second),
        Task("longer", "what is left of the green square in the picture ?", first, horizon=40),
    ]


def made(family: str, decoder: Any, lora: bool = False, **options: Any) -> TokenPolicy:
    model, processor = tiny.vlm(family) if family in tiny.VLMS else tiny.text(family)
    policy = TokenPolicy.of(model, processor, horizon=24, decoder=decoder, lora_rank=4 if lora else None, **options)
    if lora:
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(torch.randn(weight.shape, generator=random) * 0.1)
    return policy


def same(found: Sequence[Rollout], wanted: Sequence[Rollout]) -> None:
    assert [r.payload["tokens"].tolist() for r in found] == [r.payload["tokens"].tolist() for r in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.log_probs is not None and other.log_probs is not None
        torch.testing.assert_close(one.log_probs, other.log_probs, rtol=0, atol=1e-5)


@pytest.fixture
def buckets(monkeypatch: pytest.MonkeyPatch) -> list[Layout]:
    """Every bucket that is entered; they are small, so that many are."""
    entered: list[Layout] = []
    enter = StaticDecoder._enter

    def watched(*given: Any, **named: Any) -> Any:
        found = enter(*given, **named)
        entered.append(found[0].layout)
        return found

    monkeypatch.setattr(StaticDecoder, "_enter", watched)
    monkeypatch.setattr(static_decoding, "ROOM", 8)
    monkeypatch.setattr(static_decoding, "BLOCK", 4)
    return entered


@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_shapes_say_the_same(family: str, buckets: list[Layout]) -> None:
    """Completions on shared prompts, of unequal prompts and lengths; sampled, warm, and the likeliest."""
    static, eager = made(family, "static"), made(family, "eager")
    tasks = tasks_for(family)
    same(static.act(tasks, 5, key=(2,), temperature=1.5), eager.act(tasks, 5, key=(2,), temperature=1.5))
    assert buckets[0].times > 1, "folded at first"
    assert len({layout.slots for layout in buckets}) > 1, "and some leave"
    same(static.act(tasks, 1, greedy=True), eager.act(tasks, 1, greedy=True))


@pytest.mark.parametrize("family", ["qwen2", "qwen2_5_vl", "llama"])
def test_merged_adapters_say_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the weights with the adapters in it, which follows them as they learn; the model's own stay."""
    merged, eager = made(family, "merged", lora=True), made(family, "eager", lora=True)
    tasks, frozen = tasks_for(family), [weight.clone() for weight in merged.module.parameters()]
    refreshed: list[Lean] = []
    refresh = Lean.refresh
    monkeypatch.setattr(Lean, "refresh", lambda lean: (refreshed.append(lean), refresh(lean)))
    for round_ in range(2):
        same(merged.act(tasks, 5, key=(2,)), eager.act(tasks, 5, key=(2,)))
        merged.act(tasks, 1, key=(3,))
        assert len(refreshed) == round_ + 1, "weights that did not change are not merged again"
        assert merged.static is not None and merged.static._lean is not None
        kinds = {type(layer).__name__ for layer in merged.static._lean.layers}
        assert kinds == {"_Merged"}
        assert all(torch.equal(a, b) for a, b in zip(merged.module.parameters(), frozen, strict=True))
        for policy in (merged, eager):
            with torch.no_grad():
                for weight in policy.parameters():
                    weight.mul_(1.5)
        frozen = [weight.clone() for weight in merged.module.parameters()]
    assert merged.fork("start").static.merged  # type: ignore[union-attr]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_one_graph(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in it asks the host, and no shape depends on data: TorchDynamo makes one graph of it, with LoRA."""
    graphs: list[int] = []

    def compiled(bucket: Bucket, steps: int) -> None:
        def count(graph: Any, inputs: Any) -> Any:
            graphs.append(1)
            return aot_eager(graph, inputs)

        aot_eager = torch._dynamo.lookup_backend("aot_eager")
        torch._dynamo.reset()
        with bucket.lean.worn():
            step = torch.compile(bucket.step, fullgraph=True, backend=count, dynamic=False)
            for _ in range(steps):
                step()

    static, eager = made(family, "static", lora=True), made(family, "eager", lora=True)
    tasks = tasks_for(family)[:1]
    wanted = eager.act(tasks, 4, key=(2,))
    static.backbone.shares  # noqa: B018
    monkeypatch.setattr(Bucket, "run", compiled)
    same(static.act(tasks, 4, key=(2,)), wanted)
    assert graphs


@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_turns_in_fixed_shapes(family: str, buckets: list[Layout]) -> None:
    script = Script(("how many dog ?", "what is red ?"))
    static, eager = (Conversation(made(family, kind), script, turns=3) for kind in ("static", "eager"))
    for policy in (static.policy, eager.policy):
        policy.renderer.ends |= set(range(3, 12))
    tasks = tasks_for(family)
    found, wanted = (talk.act(tasks, 3, key=(1,)) for talk in (static, eager))
    assert max(r.info["turns"] for r in wanted) == 3 and buckets
    same(found, wanted)


def test_completions_get_rows_of_their_own_where_others_cost_more(buckets: list[Layout]) -> None:
    """Five answers of up to 40 tokens on a prompt of 30: further rows hold the prompt themselves."""
    static, eager = made("llama", "static"), made("llama", "eager")
    for policy in (static, eager):
        policy.renderer.ends = {0}
    tasks = [Task("q", "what is red ?" * 5, horizon=40)]
    same(static.act(tasks, 5, key=(1,)), eager.act(tasks, 5, key=(1,)))
    assert buckets[0].times > 1 and buckets[-1].times == 1 and buckets[-1].prompts >= 5


def test_buckets() -> None:
    assert [row_bucket(n) for n in (1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 24, 25, 384)] == [
        *(1, 2, 3, 4, 6, 6, 8, 12, 12, 16, 24, 32, 384),
    ]
    assert [length_bucket(n) for n in (0, 1, 16, 17, 100, 129, 257, 1200)] == [16, 16, 16, 32, 112, 160, 320, 1280]
    # 24 prompts of 1,200 tokens, 16 answers: 24 * (1280 + 64 * 16) columns, and not 384 * (1280 + 64)
    assert layout_of(24, 16, 384, 1200, 0, 256) == ((24, 16, 1280, 64), False)
    # when each has said 64 tokens, room is doubled; when few are left, they hold less apart: 8 * (1280 + 64)
    assert layout_of(24, 16, 384, 1200, 64, 192) == ((24, 16, 1280, 128), False)
    assert layout_of(6, 2, 7, 1200, 64, 192) == ((6, 2, 1280, 128), False)
    assert layout_of(1, 16, 16, 100, 64, 192) == ((16, 1, 192, 64), True)


def test_weights_are_taken_as_they_are_now(buckets: list[Layout]) -> None:
    """Buckets and cast weights are kept over calls, and a learned weight counts at once; forks share nothing."""
    static, eager = made("qwen2", "static", lora=True), made("qwen2", "eager", lora=True)
    tasks = tasks_for("qwen2")
    before = static.act(tasks, 2, key=(1,))
    kept = static.static
    assert kept is not None and kept.buckets
    start = static.fork("start")
    assert start.static is not None and not start.static.buckets
    names = set(kept.buckets)
    for policy in (static, eager):
        with torch.no_grad():
            for weight in policy.parameters():
                weight.mul_(1.5)
    after = static.act(tasks, 2, key=(1,))
    same(after, eager.act(tasks, 2, key=(1,)))
    assert names & set(kept.buckets)
    assert [r.output for r in after] != [r.output for r in before]
    same(start.act(tasks, 2, key=(1,)), before)
    for part in static.module.modules():
        if hasattr(part, "lora_A"):
            part.enable_adapters(False)  # type: ignore[operator]
    plain = made("qwen2", "eager")
    same(static.act(tasks, 2, key=(1,)), plain.act(tasks, 2, key=(1,)))


def test_half_precision_in_fixed_shapes() -> None:
    """Adapters in float32, the rest in bfloat16: log-probabilities within what half precision rounds."""
    found = []
    for kind in ("static", "eager"):
        model, processor = tiny.vlm("qwen2_5_vl")
        options: dict[str, Any] = {"horizon": 4, "lora_rank": 4, "autocast": torch.bfloat16, "decoder": kind}
        policy = TokenPolicy.of(model.to(torch.bfloat16), processor, **options)
        found.append(policy.act(tasks_for("qwen2_5_vl")[1:2], 4, greedy=True))
    for one, other in zip(*found, strict=True):
        assert one.log_probs is not None and other.log_probs is not None
        torch.testing.assert_close(one.log_probs[0], other.log_probs[0], rtol=0, atol=0.1)


def test_the_way_of_decoding_is_chosen(caplog: pytest.LogCaptureFixture) -> None:
    """On a CPU it is eager unless asked; what cannot be done in fixed shapes is told once and done eagerly."""
    used = {}
    for kind in ("auto", "eager", "static"):
        policy = made("llama", kind)
        policy.act(tasks_for("llama")[:1], 1)
        used[kind] = policy.static is not None and bool(policy.static.buckets)
    assert used == {"auto": False, "eager": False, "static": True}
    with pytest.raises(UsageError, match='unknown decoder "fast"'):
        made("llama", "fast")
    model, reader = tiny.text("llama")
    model.set_attn_implementation("eager")
    policy = TokenPolicy.of(model, reader, horizon=3, decoder="static")
    policy.act(tasks_for("llama")[:1], 2)
    policy.act(tasks_for("llama")[:1], 2)
    assert caplog.text.count("cannot be decoded in fixed shapes") == 1


def test_what_cannot_be_captured_is_said_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps were run already; nothing of them is left in what is said."""
    run = Bucket.run

    def refused(bucket: Bucket, steps: int) -> None:
        run(bucket, steps)
        raise captured.Uncapturable("operation not permitted when stream is capturing")

    monkeypatch.setattr(Bucket, "run", refused)
    policy, tasks = made("llama", "static"), tasks_for("llama")
    same(policy.act(tasks, 2, key=(1,)), made("llama", "eager").act(tasks, 2, key=(1,)))
    assert policy.static is None
    assert "LlamaForCausalLM is decoded without a CUDA graph: operation not permitted" in caplog.text


def test_weights_that_diverged_are_told_of_in_fixed_shapes() -> None:
    policy = made("llama", "static")
    with torch.no_grad():
        policy.module.lm_head.weight.fill_(torch.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(UsageError, match="are not finite"):
        policy.act(tasks_for("llama"), 2)


class Replays:
    """Stands for a CUDA graph."""

    def __init__(self, function: Any, changed: Any, tells: float = 0.0) -> None:
        self.function, self.changed, self.tells = function, changed, tells

    def __call__(self) -> None:
        self.function()
        self.changed[8].add_(self.tells)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_replay_is_compared_with_the_step_itself(wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "Captured", partial(Replays, tells=1e-3 * wrong))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = static_decoding.compare_step(made("qwen2_vl", "eager", lora=True), tasks_for("qwen2_vl"), 4)
    assert found.equal != wrong and found.eager > 0 and found.replayed > 0


def test_figures_of_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    from scale_parts import decode  # type: ignore[import-not-found]

    found = decode.figures(True)
    assert found["decode_moved"] <= 4 and found["decode_moved_static"] <= 4 < found["decode_moved_at_every_end"]
    assert found["decode_operators_per_layer"] <= 60 < found["decode_operators_per_layer_eager"]
