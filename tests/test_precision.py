"""What is computed in, and what is trained: settings of a device, float32 weights, half precision in three rooms."""

from __future__ import annotations

import math
import os
import runpy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autotelic.diffusion import setting as drawing
from autotelic.errors import UsageError
from autotelic.testing import pipelines, vlms
from autotelic.trainers import drift, precision
from autotelic.trainers.config import RunConfig
from autotelic.trainers.distributed import device
from autotelic.trainers.drift import LEAST, SHAPES, TOLERANCE, check_drift
from autotelic.trainers.learner import Optimisation, PolicyLearner, backpropagate
from autotelic.trainers.lora import add_lora
from autotelic.trainers.objectives import WeightedImitation
from autotelic.trainers.policy import TorchPolicy
from autotelic.trainers.precision import (
    WORKSPACE,
    autocast_of,
    dtype_of,
    hold_in_float32,
    settle,
)
from autotelic.trainers.runs.alarms import AlarmLimits, Watcher
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.types import Batch, Evaluation, Rollout, Task
from autotelic.vla import setting as robots
from autotelic.vla.chunk_policy import Seen
from autotelic.vla.environments import make_policy
from autotelic.vla.flow import FlowModel, FlowPolicy
from autotelic.vla.openvla import OpenVLAPolicy
from autotelic.vla.policy import ActionModel, ActionPolicy
from autotelic.vla.recipes.oracle_grpo import Config as RobotRecipe
from autotelic.vla.setting import RobotConfig
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.recipes.grpo import Config as LanguageRecipe
from autotelic.vlm.setting import load_policy

from . import point_mass
from .small_drawing import TASKS, Calls, assert_same, gradients, policy_of, shake, shapes_policy
from .strangers.drawing import config_of

HALVES = {torch.bfloat16}
WHOLE = {torch.float32}
CUDA, HOST = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def device_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What a run sets for the whole process is as before after the test."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    attention = torch.backends.cuda.cudnn_sdp_enabled()
    yield monkeypatch
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions
    torch.backends.cuda.enable_cudnn_sdp(attention)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    os.environ.pop(WORKSPACE, None)


def card(patch: pytest.MonkeyPatch, capability: tuple[int, int], bf16: bool) -> None:
    """An NVIDIA card of that kind, as far as questions about it go."""
    patch.setattr(torch.cuda, "get_device_name", lambda place: "Card")
    patch.setattr(torch.cuda, "get_device_capability", lambda place: capability)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)


# --- the device ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False), ("auto", False)])
def test_tf32_is_on_where_it_is_asked_for_alone(dtype: Any, tf32: bool, device_settings: pytest.MonkeyPatch) -> None:
    card(device_settings, (9, 0), bf16=True)
    device_settings.setattr(precision, "device", lambda: CUDA)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not tf32
    compute = settle(RunConfig(dtype=dtype), small=False)
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is tf32
    assert compute == (torch.float32 if dtype.endswith("32") else torch.bfloat16)
    assert autocast_of(compute) == (None if compute == torch.float32 else torch.bfloat16)


def test_cudnns_attention_is_never_taken(device_settings: pytest.MonkeyPatch) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    settle(RunConfig(), small=True)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_deterministic_takes_only_what_repeats_itself(device_settings: pytest.MonkeyPatch) -> None:
    settle(RunConfig(), small=True)
    assert not torch.are_deterministic_algorithms_enabled() and WORKSPACE not in os.environ
    settle(RunConfig(deterministic=True), small=True)
    assert torch.are_deterministic_algorithms_enabled() and os.environ[WORKSPACE] == ":4096:8"
    assert not torch.is_deterministic_algorithms_warn_only_enabled(), "what cannot repeat itself raises"
    assert not torch._C._get_deterministic_fill_uninitialized_memory()
    settle(RunConfig(), small=True)
    assert torch.are_deterministic_algorithms_enabled(), "what a script asked PyTorch for is its own affair"


@pytest.mark.parametrize(
    ("name", "small", "place", "expected"),
    [
        ("auto", False, "cpu", torch.float32),
        ("auto", False, "cuda", torch.bfloat16),
        ("auto", True, "cuda", torch.float32),
        ("fp32", False, "cuda", torch.float32),
        ("bf16", True, "cpu", torch.bfloat16),
        ("fp16", False, "cuda", torch.float16),
    ],
)
def test_auto_is_half_precision_for_a_loaded_model_on_a_card(
    name: str, small: bool, place: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(monkeypatch, (8, 0), bf16=True)
    assert dtype_of(name, small, torch.device(place)) == expected


def test_a_type_that_the_device_lacks_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, (7, 5), bf16=False)
    assert dtype_of("auto", False, CUDA) == torch.float32, "auto takes what there is"
    for name, place, told in (
        ("bf16", CUDA, "--dtype bf16: this Card has no bfloat16: give --dtype fp32"),
        ("tf32", CUDA, "--dtype tf32: this Card has no TF32: give --dtype fp32"),
        (
            "tf32",
            torch.device("cpu"),
            "TF32 is of NVIDIA's cards, and this is the device cpu: give --dtype fp32 or bf16",
        ),
        ("fp16", HOST, "float16 does not train on the CPU: give --dtype fp32 or bf16"),
    ):
        with pytest.raises(UsageError) as error:
            dtype_of(name, False, place)
        assert str(error.value).startswith(f"--dtype {name}: ") and str(error.value).endswith(told)


# --- what is trained -----------------------------------------------------------------------------


def test_weights_that_are_trained_become_float32_and_keep_their_values() -> None:
    layer = nn.Linear(3, 2).to(torch.bfloat16)
    before = [weight.detach().float() for weight in layer.parameters()]
    assert hold_in_float32(layer.parameters()) == torch.bfloat16
    assert all(map(torch.equal, layer.parameters(), before)) and hold_in_float32(layer.parameters()) is None


class Line(TorchPolicy):
    """Two layers of a half precision, of which the second is trained."""

    def __init__(self, autocast: torch.dtype | None = None) -> None:
        super().__init__(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).to(torch.bfloat16), autocast=autocast)
        self.module[0].requires_grad_(False)  # type: ignore[index]


@pytest.mark.parametrize("given", [None, torch.float16])
def test_a_learner_trains_float32_and_computes_in_what_the_weights_were(given: torch.dtype | None) -> None:
    policy = Line(given)
    with pytest.raises(UsageError, match=r"Line trains weights of bfloat16, .* lost: call its hold_in_float32\(\)"):
        PolicyLearner(policy, WeightedImitation(), Optimisation())
    policy.hold_in_float32()
    learner = PolicyLearner(policy, WeightedImitation(), Optimisation())
    assert {p.dtype for p in policy.parameters()} == WHOLE
    assert {p.dtype for p in policy.module[0].parameters()} == HALVES  # type: ignore[index]
    assert policy.autocast == (given or torch.bfloat16)
    mine = learner.optimizer.param_groups[0]["params"]
    assert {id(p) for p in mine} == {id(p) for p in policy.parameters()}


def types_of(policy: Any) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Of what is trained, and of the other parameters."""
    trained = {id(p) for p in policy.parameters()}
    frozen = {p.dtype for p in policy.module.parameters() if id(p) not in trained}
    return {p.dtype for p in policy.parameters()}, frozen


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("dtype", ["auto", "fp32", "bf16"])
def test_a_loaded_language_model(dtype: Any, rank: int, saved: torch.dtype, tmp_path: Path) -> None:
    model, processor = vlms.vlm("qwen2_vl")
    for part in (model.to(saved), processor):
        part.save_pretrained(tmp_path / "model")
    config = LanguageRecipe.tiny(model=str(tmp_path / "model"), lora_rank=rank, dtype=dtype)
    policy = load_policy(config.resolved(small=False))
    half = dtype_of(dtype, False, device()) == torch.bfloat16
    assert types_of(policy) == (WHOLE, HALVES if half and rank else WHOLE), "of a model trained whole all is float32"
    assert policy.autocast == (torch.bfloat16 if half else None)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_loaded_pipeline(dtype: Any, rank: int, tmp_path: Path) -> None:
    made = pipelines.stable_diffusion()
    made.save_pretrained(tmp_path / "model")
    config = config_of("ddpo", tmp_path, tmp_path / "model", lora_rank=rank, dtype=dtype)
    policy = drawing.start(config).policy
    half = dtype == "bf16"
    assert types_of(policy) == (WHOLE, (HALVES if half else WHOLE) if rank else set())
    if not rank:
        both = zip(policy.parameters(), made.unet.parameters(), strict=True)
        assert all(torch.equal(mine.cpu(), right) for mine, right in both), "they were never rounded"
    assert {p.dtype for p in policy.adapter.pipeline.text_encoder.parameters()} == (HALVES if half else WHOLE)
    assert policy.autocast == (torch.bfloat16 if half else None)


@pytest.mark.parametrize(("rank", "saved"), [(0, False), (2, False), (2, True)], ids=["whole", "adapters", "saved"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_loaded_model_that_says_actions(dtype: Any, rank: int, saved: bool, tmp_path: Path) -> None:
    for part in vlms.vlm("llava"):
        part.save_pretrained(tmp_path / "base")
    made = OpenVLAPolicy.from_pretrained(
        str(tmp_path / "base"), chunk=2, action_size=2, bins=8, lora_rank=rank if saved else None
    )
    made.save_pretrained(tmp_path / "model")
    config = RobotConfig(model=str(tmp_path / "model"), tasks=(point_mass.NAME,), dtype=dtype, lora_rank=rank)
    with point_mass.simulators(chunk=2) as pool:
        policy = make_policy(config, point_mass.NAME, pool)
    assert types_of(policy) == (WHOLE, (HALVES if dtype == "bf16" else WHOLE) if rank else set())


@pytest.mark.parametrize("dtype", ["auto", "fp32", "bf16"])
def test_a_robots_policy_computes_in_what_is_asked(dtype: Any, tmp_path: Path) -> None:
    point_mass.register_point_mass()
    config = RobotRecipe.tiny(tasks=(point_mass.NAME,), dtype=dtype, bc_steps=3)
    folder = RunFolder.create(tmp_path / "run", recipe="vla/oracle_grpo", config={}, command="test")
    setting = robots.start(config, folder)
    with setting.pool:
        assert types_of(setting.policy) == (WHOLE, set())
        assert setting.policy.autocast == (torch.bfloat16 if dtype == "bf16" else None)


@pytest.mark.parametrize("head", ["gaussian", "tokens", "flow"])
def test_a_robots_policy_means_the_same_in_half_precision(head: Any) -> None:
    """What it sampled in bfloat16 it finds again; float32 gives nearly the same."""
    torch.manual_seed(0)
    model: Any = (FlowModel if head == "flow" else partial(ActionModel, head=head))(4, 2, chunk=2)
    policy = FlowPolicy(model) if head == "flow" else ActionPolicy(model)
    policy.autocast = torch.bfloat16
    states = torch.randn(6, 4)
    places = torch.stack([torch.arange(6), torch.zeros(6, dtype=torch.long)], 1)
    seen = Seen(["go"] * 6, states, {}, places)
    randoms = policy.begin([torch.Generator().manual_seed(i) for i in range(6)], [1] * 6)
    choice = policy.choose(seen, randoms)
    assert choice.log_probs is not None and choice.log_probs.dtype == torch.float32
    stored = {**choice.stored, "temperature": torch.ones(6)}
    with torch.no_grad(), policy.mixed():
        half = policy.score(seen, stored).log_probs
    exact = policy.score(seen, stored).log_probs
    torch.testing.assert_close(half, choice.log_probs, rtol=0, atol=1e-4)
    assert not torch.equal(exact, half)
    torch.testing.assert_close(exact, half, rtol=0, atol=0.3)


@pytest.mark.parametrize("kind", ["vlm", "openvla"])
def test_adapters_on_half_precision_are_float32(kind: str) -> None:
    model, processor = vlms.vlm("llava")
    model.to(torch.bfloat16)
    policy: Any = TokenPolicy.of(model, processor, lora_rank=2)
    if kind == "openvla":
        model, processor = vlms.vlm("llava")
        policy = OpenVLAPolicy(model.to(torch.bfloat16), processor, chunk=2, action_size=2, bins=8)
        add_lora(policy.module, 2)
    assert types_of(policy) == (WHOLE, HALVES)
    policy.hold_in_float32()
    assert policy.autocast is None, "nothing that is trained was half: the model computes as it did"


def test_full_fine_tuning_in_half_precision_moves_weights_as_float32_does() -> None:
    """Ten updates at a learning rate of 1e-6; with weights of half precision nearly nothing moves."""
    script = Path(__file__).parents[1] / "benchmarks" / "scale_parts" / "precision.py"
    change = runpy.run_path(str(script))["change"]
    exact, half, lost = (change(how, 0) for how in ("fp32", "bf16", "bf16 weights"))
    assert half == pytest.approx(exact, rel=0.05) and half != exact
    assert lost < 0.05 * exact


# --- sampling against learning -------------------------------------------------------------------


class Rounded(TorchPolicy):
    """One decision per rollout, of whose log-probability batches of several rows lack ``shapes``."""

    def __init__(self, shapes: float, kind: torch.dtype = torch.bfloat16) -> None:
        super().__init__(nn.Linear(1, 1).to(kind))
        self.shapes = shapes

    def forward_decisions(self, batch: Batch, needs: frozenset[str], references: Any) -> Evaluation:
        return Evaluation(batch.payload["told"].float() - self.shapes * (len(batch) > 1))


def told(values: list[float], off: float = 0.0, **fields: Any) -> list[Rollout]:
    one = torch.ones(1, dtype=torch.bool)
    return [
        Rollout(Task(str(i), i), i, {"told": torch.tensor([value])}, torch.tensor([value - off]), one, one.long() - 1)
        for i, value in enumerate(values)
    ]


def test_a_gap_in_half_precision_is_held_against_batches_of_other_shapes() -> None:
    rollouts = told([-1.0, -2.0, -3.0, -4.0])
    quiet = check_drift(Rounded(0.25), rollouts)
    assert quiet["precision/gap"] == quiet["drift/log_probs"] == 0.25
    assert quiet["precision/bound"] == SHAPES * 0.25 + LEAST, "each of them alone is 0.25 off"
    assert Watcher(AlarmLimits()).check(quiet) == []
    metrics = check_drift(Rounded(0.25), told([-1.0, -2.0, -3.0, -4.0], off=2.0))
    assert metrics["precision/gap"] == 1.75 > metrics["precision/bound"] == SHAPES * 0.25 + LEAST
    (alarm,) = Watcher(AlarmLimits()).check({f"speaker/{name}": value for name, value in metrics.items()})
    assert (alarm.alarm, alarm.about) == ("precision", "speaker")
    assert "differ by 1.8 nats per decision at equal weights, and rounding explains 1" in alarm.detail


def test_in_single_precision_a_gap_has_no_excuse() -> None:
    rollouts = told([-1.0, -2.0])
    assert check_drift(Rounded(0.0, torch.float32), rollouts) == {"drift/log_probs": 0.0}
    with pytest.raises(UsageError, match=r"samples and learns with log-probabilities that differ by 0\.25 nats"):
        check_drift(Rounded(0.25, torch.float32), rollouts)


def test_what_other_weights_sampled_is_no_drift() -> None:
    rollouts = told([-1.0, -2.0], off=9.0)
    for rollout in rollouts:
        rollout.version = "other"
    assert check_drift(Rounded(0.0, torch.float32), rollouts) == {"drift/log_probs": 0.0}


def test_a_chain_of_pictures_is_looked_at_too() -> None:
    """Pictures name the weights that drew them: looked at is what the weights of now drew, and by evaluating it."""
    policy = shapes_policy(noise=0.05)
    rollouts = policy.act(TASKS, 2, key=(1,))
    assert check_drift(policy, rollouts)["drift/log_probs"] < TOLERANCE
    for rollout in rollouts:
        rollout.log_probs += 1.0  # type: ignore[operator]
    dims = math.prod(policy.adapter.latent_shape)
    with pytest.raises(UsageError, match=f"differ by {1 / dims:.2g} nats"):
        check_drift(policy, rollouts)
    shake(policy, 0.1)
    assert check_drift(policy, rollouts) == {"drift/log_probs": 0.0}, "other weights drew them"


def test_of_large_pictures_a_few_chains_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = shapes_policy(noise=0.05)
    rollouts = policy.act(TASKS, 3, key=(1,))
    seen: list[int] = []
    evaluate = policy.evaluate_actions
    monkeypatch.setattr(policy, "evaluate_actions", lambda batch: (seen.append(len(batch)), evaluate(batch))[1])
    scalars = math.prod(policy.adapter.latent_shape) * policy.sampler.steps
    for most, looked in ((1, 1), (3 * scalars, 3), (2**24, 6)):
        monkeypatch.setattr(drift, "SCALARS", most)
        check_drift(policy, rollouts)
        assert seen.pop() == looked


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize(("at_once", "rows"), [(1024, 5), (4, 3), (2, 2)])
def test_in_half_precision_pictures_are_learned_from_in_calls_of_as_many_rows_as_drew_them(
    family: str, at_once: int, rows: int
) -> None:
    """Five pictures of four steps; the same weights give the same numbers to the bit, whatever was in a call."""
    policy = policy_of(
        family, 4, rank=2, noise=0.1, sample_rows=at_once, micro_batch_rows=at_once, autocast=torch.bfloat16
    )
    calls = Calls(policy.module)
    rollouts = policy.act(TASKS[:1], 5, key=(1,))
    batch = policy.collate(rollouts)
    again = policy.evaluate_actions(replace_versions(batch)).log_probs
    backpropagate(policy, WeightedImitation(), totalled(replace_versions(batch)))
    assert set(calls.rows) == {rows}
    assert torch.equal(again, batch.log_probs["behaviour"])
    metrics = check_drift(policy, rollouts)
    assert (metrics["precision/gap"], metrics["precision/bound"]) == (0.0, LEAST)


def test_where_learning_holds_fewer_rows_than_drew_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = policy_of("sd", 4, autocast=torch.bfloat16)
    batch = policy.collate(policy.act(TASKS[:1], 5, key=(1,)))
    policy.evaluate_actions(replace_versions(batch))
    assert not [line for line in caplog.messages if "rows" in line]
    policy.micro_batch_rows = 2
    calls = Calls(policy.module)
    for _ in range(2):
        policy.evaluate_actions(replace_versions(batch))
    assert set(calls.rows) == {2}
    (line,) = (line for line in caplog.messages if "rows" in line)
    assert line.startswith("pictures were drawn by calls of 5 rows, and 2 are held in learning")


def test_in_single_precision_no_call_is_filled_up() -> None:
    policy = policy_of("sd", 4, sample_rows=4, micro_batch_rows=4)
    calls = Calls(policy.module)
    batch = policy.collate(policy.act(TASKS[:1], 5, key=(1,)))
    assert calls.rows == [4] * 4 + [1] * 4
    policy.evaluate_actions(replace_versions(batch))
    assert max(calls.rows[8:]) == 4


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_rows_that_fill_a_call_up_change_no_gradient(guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rows in (0, 3):
        policy = policy_of("sd3", 4, rank=2, noise=0.1, sample_rows=8, micro_batch_rows=8, guidance=guidance)
        monkeypatch.setattr(policy, "_shape_of", lambda count, rows=rows: rows)
        batch = policy.collate(policy.act(TASKS, 2, key=(1,)))
        backpropagate(policy, WeightedImitation(), totalled(replace_versions(batch)))
        found.append([batch.log_probs["behaviour"], *gradients(policy)])
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-3)
    assert_same(found[1][1:], found[0][1:], 1e-4)


@pytest.mark.parametrize("needs", ["log_probs", "outputs"])
def test_small_gradients_are_kept_in_float16(needs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cotangents of 1e-7: float16 alone loses most of what they give, a scaled loss keeps it."""
    found = {}
    for name, kind, scale in (("right", None, 1.0), ("scaled", torch.float16, 2.0**12), ("plain", torch.float16, 1.0)):
        monkeypatch.setattr(precision, "SCALE", scale)
        policy = policy_of("sd3", 3, rank=2, noise=0.1, autocast=kind)
        batch = replace_versions(policy.collate(policy.act(TASKS, 1, key=(1,))))
        size = (1e-7 if needs == "log_probs" else 1e-6) * torch.ones(1)
        ones = torch.ones_like(batch.log_probs["behaviour"])
        given = (
            Evaluation(size * ones)
            if needs == "log_probs"
            else Evaluation(0 * ones, outputs=size * torch.ones(2, 3, 16, 16))
        )
        policy.backward(batch, given)
        found[name] = torch.cat([gradient.flatten() for gradient in gradients(policy)])
    off = {name: float((found[name] - found["right"]).norm() / found["right"].norm()) for name in found}
    assert off["scaled"] < 0.1 < 0.3 < off["plain"], off


def replace_versions(batch: Batch) -> Batch:
    """As if it were not known that the weights of now drew it, so that it is evaluated."""
    rollouts = [replace(r, version="", graph=None) for r in batch.payload["rollouts"]]
    return replace(batch, payload=batch.payload | {"rollouts": rollouts})


def totalled(batch: Batch) -> Batch:
    batch.totals = batch.counts()
    return batch
