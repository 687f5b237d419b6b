"""What training a denoiser takes: counted without data; saved by recomputing, by pieces, by tiles, by the host."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autotelic.config_files import as_words, read_config
from autotelic.diffusion import building, economy, memory
from autotelic.diffusion import setting as drawing
from autotelic.diffusion.conditions import Conditions
from autotelic.diffusion.economy import Recomputed, recompute_layers, tile
from autotelic.diffusion.gradients import OneStep, Renoised, RewardGradient, Truncation
from autotelic.diffusion.lora import attention
from autotelic.diffusion.memory import Plan, decoder_peak, denoiser_peak, memory_plan
from autotelic.diffusion.pipelines import PipelineAdapter, StableDiffusionAdapter, base, stable_diffusion
from autotelic.diffusion.recipes import alignprop, flow_grpo, prdp
from autotelic.diffusion.small import pretraining
from autotelic.diffusion.small.pretraining import Pretraining, untrained
from autotelic.errors import UsageError
from autotelic.options import parse, run_options
from autotelic.testing import pipelines as tiny
from autotelic.testing import published
from autotelic.trainers import peak
from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import backpropagate
from autotelic.trainers.lora import add_lora
from autotelic.trainers.objectives import PPOClip
from autotelic.trainers.peak import GIB, Peak, peak_bytes

from .small_drawing import TASKS, assert_same, gradients, policy_of, scored
from .strangers.drawing import config_of
from .test_diffusion_gradients import Stripes
from .test_diffusion_lora import FAMILIES, answer, prepared
from .test_diffusion_lora import shake as shake_all


def adapted(family: str, rank: int = 2) -> PipelineAdapter:
    adapter = prepared(family)
    add_lora(adapter.denoiser, rank, attention(adapter.denoiser))
    return adapter


# --- counting ------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Two frozen layers of 8 and a trained one; the first is told its input as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor = self.last(self.first(x).relu())
        return told


@pytest.mark.parametrize("graph", [False, True])
def test_a_peak_is_what_is_alive_at_once(graph: bool) -> None:
    """Of 16 rows of 8 floats, 512 bytes: input, first layer and what relu makes of it; with a graph what relu made, the
    output, its cotangent and the gradient of 256 bytes."""
    chain = Chain()

    def work() -> Tensor:
        with torch.set_grad_enabled(graph):
            return chain(torch.empty(16, 8))  # type: ignore[no-any-return]

    assert peak_bytes(chain, work) == (3 * 512 + 256 if graph else 3 * 512)
    assert all(weight.grad is None for weight in chain.parameters())


def test_half_precision_and_its_casts_are_counted() -> None:
    chain = Chain()

    def work() -> Tensor:
        with torch.no_grad():
            return chain(torch.empty(16, 8))  # type: ignore[no-any-return]

    assert peak_bytes(chain, work, torch.bfloat16) == 512 + 256 + 128 + 256, (
        "input, its cast, a weight's, what comes out"
    )


def truly(adapter: PipelineAdapter, rows: int) -> int:
    """The most bytes that are alive in a real call and its backward pass."""
    module = adapter.denoiser
    condition = {name: torch.cat([row] * rows) for name, row in adapter.blank().items()}
    x = torch.randn(rows, *adapter.latent_shape, requires_grad=True)
    hooks = [w.register_post_accumulate_grad_hook(peak._forget) for w in module.parameters() if w.requires_grad]  # type: ignore[no-untyped-call]
    given = [*module.parameters(), *module.buffers(), *condition.values(), x]
    with Peak(given) as alive:
        out = adapter.predict(module, x, torch.zeros(rows), condition)
        torch.autograd.backward([out], [torch.ones_like(out)])
    for hook in hooks:
        hook.remove()
    return int(alive.most)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_peak_without_data_is_that_of_a_real_call(family: str, recomputed: bool) -> None:
    adapter = adapted(family)
    if recomputed:
        recompute_layers(adapter, 1.0)
    rows = 4
    given = sum(t.numel() * t.element_size() for t in adapter.blank().values()) * rows
    given += 4 * rows * math.prod(adapter.latent_shape)
    assert 0 <= denoiser_peak(adapter, rows) - truly(adapter, rows) <= 1.05 * given, "what it is given counts, too"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_counted_grows_with_rows_and_shrinks_in_half_precision(family: str) -> None:
    adapter = adapted(family)
    one, four = denoiser_peak(adapter, 1), denoiser_peak(adapter, 4)
    assert 3 * one < four < 4.5 * one
    assert denoiser_peak(adapter, 4, torch.bfloat16) < 0.95 * four
    assert denoiser_peak(adapter, 4, graph=False) < 0.75 * four
    assert all(weight.grad is None for weight in adapter.denoiser.parameters())


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "wan"])
def test_conditions_have_the_shapes_that_prompts_give_them(family: str) -> None:
    adapter = prepared(family)
    told, blank = adapter.encode(["word " * 64]), adapter.blank()
    assert {name: (t.shape, t.dtype) for name, t in told.items()} == {n: (t.shape, t.dtype) for n, t in blank.items()}


def test_pixels_that_are_not_decoded_cost_their_clamp() -> None:
    class Pixels(StableDiffusionAdapter):
        def decode(self, latents: Tensor) -> Tensor:
            return (latents / 2 + 0.5).clamp(0, 1)

    adapter = Pixels(tiny.stable_diffusion())
    adapter.pipeline.vae = None
    assert decoder_peak(adapter, 1, graph=False) == 3 * 4 * 4 * 8 * 8


# --- a plan --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "phases"),
    [
        ({}, {"drawing": 3 * 10 + 84, "decoding": 3 * 7 + 84, "learning": 400}),
        ({"guided": True}, {"drawing": 6 * 10 + 84, "decoding": 3 * 7 + 84, "learning": 800}),
        ({"decoded": True}, {"drawing": 114, "decoding": 105, "learning": 400, "decoding with gradient": 2100}),
    ],
)
def test_a_plan_adds_up(settings: dict[str, Any], phases: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapted("sd")
    trainable = [p for p in adapter.denoiser.parameters() if p.requires_grad]

    monkeypatch.setattr(memory, "denoiser_peak", lambda a, rows, dtype, graph=True: rows * (100 if graph else 10))
    monkeypatch.setattr(memory, "decoder_peak", lambda a, rows, dtype, graph=True: rows * (700 if graph else 7))
    monkeypatch.setattr(type(adapter), "latent_shape", (1, 1, 1))
    plan = memory_plan(adapter, drawn=3, learned=4, steps=2, forks=3, **settings)  # 4 * 2 * 3 bytes for each chain
    states = 3 * 4 * 2 * 3
    expected = {"encoding": 0} | {n: v - (84 - states) * (n in ("drawing", "decoding")) for n, v in phases.items()}
    assert plan.phases == expected
    count = sum(p.numel() for p in trainable)
    assert (plan.trainable, plan.gradients, plan.optimiser, plan.copies) == (count, 4 * count, 8 * count, 12 * count)
    assert plan.parameters == sum(p.numel() for p in adapter.denoiser.parameters())
    assert plan.total == plan.weights + 24 * count + max(expected.values())
    parts = [adapter.pipeline.vae, adapter.pipeline.text_encoder, adapter.denoiser]
    positions = adapter.pipeline.text_encoder.embeddings.position_ids.numel() * 8
    assert plan.weights == positions + sum(4 * p.numel() for part in parts for p in part.parameters())


def test_text_encoders_on_the_host_are_counted_while_they_encode() -> None:
    there, away = adapted("sd"), adapted("sd")
    away.offload_text_encoders()
    plans = [memory_plan(adapter, drawn=2, learned=2, steps=3) for adapter in (there, away)]
    size = memory._size_of(there.pipeline.text_encoder)
    assert plans[0].weights - plans[1].weights == size == plans[1].phases["encoding"]
    assert plans[0].phases["encoding"] == 0


def test_guidance_costs_no_second_row_where_it_is_an_input() -> None:
    adapter = adapted("flux")
    plans = [memory_plan(adapter, drawn=2, learned=2, steps=3, guided=guided) for guided in (True, False)]
    assert adapter.distilled and plans[0] == plans[1]


def test_a_plan_is_one_line_for_people() -> None:
    plan = Plan(2_000_000, 1_000, 3 * GIB, 2**28, 2**29, 2**27, {"drawing": 2**28, "learning": GIB})
    assert str(plan) == (
        "about 4.88 GiB: weights 3.00, gradients 0.25, optimiser 0.50, copies 0.12; and the most of drawing 0.25, "
        "learning 1.00; 1,000 of 2,000,000 parameters trained"
    )
    small = Plan(20, 10, 2**20, 0, 0, 0, {"drawing": 2**20, "learning": 2**19})
    assert str(small).startswith("about 2.00 MiB: weights 1.00, gradients 0.00")


@pytest.mark.parametrize("wrong", [{"drawn": 0}, {"learned": 0}, {"steps": 0}])
def test_a_plan_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="each is 1 or more"):
        memory_plan(prepared("sd"), **{"drawn": 4, "learned": 4, "steps": 6} | wrong)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("recipe", [flow_grpo, alignprop])
def test_a_plan_before_loading_is_that_of_the_loaded_pipeline(
    recipe: Any, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stable_diffusion, "_tokens", lambda pipeline: 16)  # CLIP's are 77, the tiny one's are not
    monkeypatch.setattr(building, "device", lambda: torch.device("cpu"))
    tiny.stable_diffusion_3().save_pretrained(tmp_path / "model")
    changes = {"lora_rank": rank, "dtype": "bf16", "rewards": ("sharpness",), "height": 16, "width": 16}
    name = recipe.__name__.rpartition(".")[2]
    config = config_of(name, tmp_path, tmp_path / "model", **changes).resolved(small=False)
    before = building.plan_unloaded(config, config.model, torch.bfloat16)
    policy = building.build_policy(config, config.model, torch.bfloat16)
    after = building.plan(config, policy.adapter, torch.bfloat16)
    assert (before.parameters, before.trainable, before.phases) == (after.parameters, after.trainable, after.phases)
    assert before.total == pytest.approx(after.total, rel=0.005), "but for buffers"
    assert ("decoding with gradient" in after.phases) == (recipe is alignprop)


def test_of_a_pipeline_whose_conditions_are_not_known_nothing_is_told_before_it_is_loaded(tmp_path: Path) -> None:
    tiny.sana().save_pretrained(tmp_path / "model")
    config = config_of("prdp", tmp_path, tmp_path / "model")
    with pytest.raises(UsageError, match=r"cannot be told before it is loaded: start the run, which tells it"):
        drawing.plan_of(config)


def test_the_small_default_has_a_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    untrained(Pretraining(width=32, layers=1)).save_pretrained(tmp_path / "small")
    monkeypatch.setattr(pretraining, "default_pipeline", lambda: tmp_path / "small")
    plan = drawing.plan_of(prdp.Config())
    assert plan.parameters < 100_000 and plan.total > plan.phases["learning"] > 1e6


def test_rows_are_as_many_as_a_budget_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers that are chosen fit, and one more row of either kind does not."""
    tiny.stable_diffusion_3().save_pretrained(tmp_path / "model")
    open_ = {"sample_rows": None, "micro_batch_rows": None, "dtype": "fp32", "tasks_per_step": 20, "group_size": 20}
    config = config_of("prdp", tmp_path, tmp_path / "model", **open_)
    assert drawing.rows_of(config, torch.float32) == {}, "on a CPU nobody says how much there is"
    config = replace(config, memory_gb=0.02)
    chosen = drawing.rows_of(config, torch.float32)
    assert 2 < chosen["micro_batch_rows"] < chosen["sample_rows"] < 400

    def total(**rows: int) -> int:
        return building.plan_unloaded(replace(config.resolved(False), **rows), config.model, torch.float32).total

    assert total(**chosen) <= 2e7
    for name in chosen:
        assert total(**(chosen | {name: chosen[name] + 1})) > 2e7, name
    plan = drawing.plan_of(config)
    assert plan.total == total(**chosen) and config.plan() == f"plan: {plan}"
    setting = drawing.start(replace(config, num_inference_steps=2))
    policy, told = setting.policy, capsys.readouterr().out
    assert (
        policy.micro_batch_rows == setting.config.micro_batch_rows
        and f"micro_batch_rows {policy.micro_batch_rows}" in told
    )
    given = replace(config, sample_rows=3, micro_batch_rows=2)
    assert drawing.rows_of(given, torch.float32) == {}, "what is given is taken"
    with pytest.raises(UsageError, match=r"one row takes 0\.00\d+ GB, and there are 0\.001: give --offload"):
        drawing.rows_of(replace(config, memory_gb=1e-3), torch.float32)


SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
MODELS = {
    "black-forest-labs/FLUX.1-dev": published.flux_1_dev,
    "stabilityai/stable-diffusion-3.5-medium": published.stable_diffusion_3_5_medium,
}
DRAWING = [path for path in SHIPPED if str(read_config(str(path)).values["model"]) in MODELS]


@pytest.mark.parametrize("path", DRAWING, ids=lambda path: path.stem)
def test_a_config_that_ships_fits(path: Path, tmp_path: Path) -> None:
    """Counted on the published architecture; a tenth of the card is left to allocator and kernels."""
    shipped = read_config(str(path))
    model = MODELS[str(shipped.values["model"])](tmp_path)
    plain = flow_grpo.Config()
    config = parse(run_options(plain), as_words(shipped, plain), "run diffusion/flow_grpo").config
    plan = building.plan_unloaded(config.resolved(small=False), str(model), torch.bfloat16)
    card = 80 if "80gb" in path.stem else 24
    assert 0.4 * card * 1e9 < plan.total < 0.95 * card * 1e9, str(plan)
    if card == 80:
        assert plan.total < 70 * GIB, str(plan)
        assert config.micro_batch_rows >= 16


# --- recomputed layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("keep_graph", [False, True])
def test_recomputed_layers_give_the_same_gradient_in_less_memory(family: str, keep_graph: bool) -> None:
    found = []
    for how in (0.0, 1.0):
        policy = policy_of(family, rank=2, noise=0.1)
        assert recompute_layers(policy.adapter, how) == bool(how)
        rollouts = scored(policy.act(TASKS, 2, key=(1,), keep_graph=keep_graph))
        batch = policy.collate(rollouts)
        batch.totals = batch.counts()
        batch.advantages = grpo()(batch)
        backpropagate(policy, PPOClip(), batch)
        found.append(([r.log_probs for r in rollouts], gradients(policy)))
    (logs, plain), (again, recomputed) = found
    assert all(map(torch.equal, logs, again))  # type: ignore[arg-type]
    assert_same(recomputed, plain, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_recompute(family: str) -> None:
    adapter, found = adapted(family), []
    trained = [p for p in adapter.denoiser.parameters() if p.requires_grad]
    shake_all(trained)
    for how in (0.0, 1.0):
        assert recompute_layers(adapter, how) == bool(how)
        out = answer(adapter, grad=True)
        found.append(torch.autograd.grad([out.square().sum()], trained, allow_unused=True))
    assert sum(gradient is not None for gradient in found[0]) > 4
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_recomputed_layers_take_less(family: str) -> None:
    adapter = adapted(family)
    whole, half = denoiser_peak(adapter, 4), 0
    for share in (0.5, 1.0):
        recompute_layers(adapter, share)
        half, last = denoiser_peak(adapter, 4), half
    assert half < last < whole, "of two layers one is kept, or none"


def test_a_share_of_layers_is_spread_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(
        economy, "checkpoint", lambda layer, *inputs, use_reentrant: (kept.append(layer.place), None)[1]
    )
    for share, right in ((0.5, [1, 3, 5, 7]), (0.25, [3, 7]), (1.0, list(range(8))), (0.1, [])):
        layers = [nn.Identity() for _ in range(8)]
        recomputed = Recomputed(share)
        for _ in range(2):
            kept.clear()
            for place, layer in enumerate(layers):
                layer.place = place  # type: ignore[assignment]
                recomputed(layer, torch.zeros(1))
            assert kept == right


@pytest.mark.parametrize("cut", [Truncation("fixed", 2), Renoised(2), OneStep()], ids=["alignprop", "draft-lv", "refl"])
def test_pictures_decoded_and_recomputed_in_pieces_give_the_same_gradient(
    cut: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, found, decoded = RewardGradient(Stripes()), [], []
    for pixels, how in ((2**20, 0.0), (16 * 16, 1.0)):
        monkeypatch.setattr(base, "DECODED", pixels)
        policy = policy_of("sd3", rank=2, noise=0.1)
        recompute_layers(policy.adapter, how)
        assert policy.adapter.decoded_at_once == pixels // 256
        batch = cut(policy.collate(policy.act(TASKS, 2, key=(1,))))
        batch.totals = batch.counts()
        decode = policy.adapter._decoded
        sizes: list[int] = []
        monkeypatch.setattr(
            policy.adapter, "_decoded", lambda x, sizes=sizes, decode=decode: (sizes.append(len(x)), decode(x))[1]
        )
        backpropagate(policy, objective, batch)
        found.append(gradients(policy))
        decoded.append(sizes)
    assert set(decoded[1]) == {1} and max(decoded[0]) >= 4
    assert_same(found[1], found[0], 1e-4)


def test_large_denoisers_recompute_of_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = prepared("sd3")
    assert not recompute_layers(adapter, None)
    monkeypatch.setattr(peak, "LARGE", 1000)
    assert not recompute_layers(adapter, 0.0) and not adapter.denoiser.is_gradient_checkpointing  # type: ignore[attr-defined]
    assert recompute_layers(adapter, None)
    assert adapter.denoiser.is_gradient_checkpointing  # type: ignore[attr-defined]
    assert adapter.pipeline.vae.is_gradient_checkpointing


def test_a_denoiser_that_cannot_recompute_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = prepared("sd3")
    monkeypatch.setattr(type(adapter.denoiser), "_supports_gradient_checkpointing", False)
    monkeypatch.setattr(peak, "LARGE", 1000)
    assert not recompute_layers(adapter, None)
    with pytest.raises(UsageError, match="this SD3Transformer2DModel has no gradient checkpointing: leave it out"):
        recompute_layers(adapter, 1.0)


# --- decoding, and text encoders -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "frames", "count"), [(1024, 1, 1), (512, 1, 4), (256, 1, 16), (2048, 1, 1), (256, 17, 1), (256, 4, 4)]
)
def test_a_million_pixels_are_decoded_at_once(
    side: int, frames: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = prepared("sd")
    shape = (3, side, side) if frames == 1 else (frames, 3, side, side)
    monkeypatch.setattr(type(adapter), "output_shape", shape)
    assert adapter.decoded_at_once == count


def test_pictures_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [r.output for r in policy_of("sd").act(TASKS, 3, key=(1,))]
    monkeypatch.setattr(base, "DECODED", 2 * 16 * 16)
    torch.testing.assert_close([r.output for r in policy_of("sd").act(TASKS, 3, key=(1,))], whole)


def test_large_pictures_are_decoded_by_tiles() -> None:
    adapter = prepared("sd")
    vae = adapter.pipeline.vae
    assert not tile(adapter, "auto") and not vae.use_tiling
    adapter.height, adapter.width = 1024, 1032
    assert not tile(adapter, "never") and not vae.use_tiling
    assert tile(adapter, "auto") and vae.use_tiling
    adapter.height = adapter.width = 16
    vae.use_tiling = False
    assert tile(adapter, "always") and vae.use_tiling
    adapter.pipeline.vae = None
    assert not tile(adapter, "auto")
    with pytest.raises(UsageError, match="this pipeline without a decoder has no tiling: leave it out"):
        tile(adapter, "always")


class Moves:
    """Where a module was sent, in order."""

    def __init__(self, module: nn.Module, patch: pytest.MonkeyPatch) -> None:
        self.places: list[str] = []
        move = module.to
        patch.setattr(module, "to", lambda place: (self.places.append(str(place)), move(place))[1])


def test_text_encoders_come_for_new_prompts_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = prepared("sd3")
    right = {name: tensor.clone() for name, tensor in Conditions(adapter)(["red", None, "blue"]).items()}
    monkeypatch.setattr(type(adapter), "device", torch.device("cpu", 0))  # a name to be told from the host's
    moves = [Moves(encoder, monkeypatch) for encoder in adapter.text_encoders]
    assert len(moves) == 3
    adapter.offload_text_encoders()
    conditions = Conditions(adapter)
    found = conditions(["red", None, "blue"])
    assert all(torch.equal(found[name], right[name]) for name in right)
    assert [each.places for each in moves] == [["cpu", "cpu:0", "cpu"]] * 3, "once for all that is new"
    conditions(["blue", "red", None])
    assert len(moves[0].places) == 3, "what is known needs no encoder"
    conditions(["green", "blue"])
    assert moves[0].places[3:] == ["cpu:0", "cpu"]


def test_text_encoders_go_where_encoding_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = prepared("sd")
    adapter.offload_text_encoders()
    (encoder,) = (Moves(encoder, monkeypatch) for encoder in adapter.text_encoders)
    with pytest.raises(RuntimeError, match="on the way"), adapter.encoding():
        raise RuntimeError("on the way")
    assert encoder.places[-1] == "cpu"


@pytest.mark.parametrize(
    ("flag", "seen"),
    [
        ({"gradient_checkpointing": 1.0}, lambda a: a.denoiser.is_gradient_checkpointing),
        ({"vae_tiling": "always"}, lambda a: a.pipeline.vae.use_tiling),
        ({"offload_text_encoders": True}, lambda a: a.offloads),
    ],
    ids=["gradient_checkpointing", "vae_tiling", "offload_text_encoders"],
)
def test_a_flag_changes_the_pipeline_of_a_run(
    flag: dict[str, Any], seen: Callable[[PipelineAdapter], bool], tmp_path: Path
) -> None:
    tiny.stable_diffusion().save_pretrained(tmp_path / "model")
    plain, asked = (
        drawing.start(config_of("prdp", tmp_path, tmp_path / "model", **changes)).policy.adapter
        for changes in ({}, flag)
    )
    assert seen(asked) and not seen(plain)


# --- compiled blocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_draw_and_learn_the_same(checkpointing: bool) -> None:
    """Drawing, a fork's log-probabilities and gradients of adapters, with and without recomputed layers."""
    plain, compiled = (policy_of("sd3", rank=2, noise=0.1) for _ in range(2))
    graphs: list[int] = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(1)
        return graph

    if checkpointing:
        recompute_layers(compiled.adapter, 1.0)
    torch._dynamo.reset()
    economy.compile_blocks(compiled.adapter, counted)
    wanted, found = (policy.act(TASKS, 2, key=(1,)) for policy in (plain, compiled))
    assert graphs
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.output, other.output, rtol=0, atol=1e-5)
    both = []
    for policy in (plain, compiled):
        batch = policy.collate(wanted)
        start = policy.fork("start")
        now = policy.evaluate_actions(batch)
        policy.backward(batch, type(now)(torch.ones_like(now.log_probs), graph=now.graph))
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        both.append((now.log_probs, start.evaluate_actions(batch).log_probs, gradient))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_compiling_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(building, "compile_blocks", lambda adapter: asked.append(type(adapter.denoiser).__name__))
    FAMILIES["sd3"]().save_pretrained(tmp_path / "model")
    for compiled in (False, True):
        config = config_of("prdp", tmp_path, tmp_path / "model", compile=compiled).resolved(small=False)
        building.build_policy(config, config.model)
        assert len(asked) == compiled
    adapter = prepared("sd3")
    monkeypatch.setattr(type(adapter.denoiser), "_no_split_modules", [])
    with pytest.raises(UsageError, match="--compile compiles repeated blocks, and SD3Transformer2DModel names none"):
        economy.compile_blocks(adapter)
