"""What a GPU does with autotelic: ``autotelic doctor --gpu``. Architectures are real, weights are random.

Each part runs in a process of its own, since a kernel that fails may take the device with it, and writes what it found
to the record before the next begins; a part that the record has is not repeated. ``python -m autotelic.doctor_gpu PART
SIZE`` runs one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from .doctor import Finding
from .errors import UsageError, unknown
from .json_files import read_object

if TYPE_CHECKING:
    import torch

    from .types import Rollout, Task
    from .vlm.policy import TokenPolicy

Size = Literal["tiny", "3b", "7b"]

QWEN: Mapping[str, Mapping[str, int]] = {
    "tiny": {},
    "3b": {
        **{"hidden_size": 2048, "num_hidden_layers": 36, "intermediate_size": 11008, "num_attention_heads": 16},
        **{"num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768},
    },
    "7b": {
        **{"hidden_size": 3584, "num_hidden_layers": 28, "intermediate_size": 18944, "num_attention_heads": 28},
        **{"num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768},
    },
}
"""Of Qwen2.5's language models, from their published configs."""

LONGEST = 4608
"""Tokens of a FLUX picture of 1,024 pixels with its prompt: where an attention kernel was seen to fail."""

LIMIT = 300.0
"""Seconds that a part may take."""

GIB = 2**30


# --- the parent ---------------------------------------------------------------------------------


def findings(size: Size, record: Path, parts: Sequence[str]) -> Iterator[Finding]:
    """A line per part, as it ends; everything that was found is in the record.

    Raises:
        UsageError: an unknown part, no GPU for a real size, or a record that is of another size.
    """
    import torch

    for part in parts:
        if part not in PARTS:
            raise unknown("part of doctor --gpu", part, PARTS)

    if size != "tiny" and not torch.cuda.is_available():
        raise UsageError("doctor --gpu: torch sees no GPU here; --size tiny runs the same on the CPU, to try the parts")
    known = read_object(record) if record.is_file() else {"size": size, "parts": {}}
    if known.get("size") != size:
        raise UsageError(f"{record} holds figures of size {known.get('size')}, not {size}: give another --json")
    found: dict[str, Any] = known["parts"]
    for part in parts:
        if part not in found:
            found[part] = _apart(part, size)
            record.write_text(json.dumps(known, indent=1) + "\n")
        yield Finding(part, found[part]["good"], _text(found[part]))


def _apart(part: str, size: Size) -> dict[str, Any]:
    """What a part found, in a process of its own."""
    started = time.monotonic()
    command = [sys.executable, "-m", "autotelic.doctor_gpu", part, size]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"good": False, "why": f"no answer within {LIMIT:.0f} s"}
    seconds = {"seconds": round(time.monotonic() - started, 1)}
    if done.returncode == 0:
        return {"good": True, **json.loads(done.stdout.strip().rpartition("\n")[2]), **seconds}
    why = done.stderr.strip().rpartition("\n")[2] or f"ended with status {done.returncode}"
    return {"good": False, "why": why, **seconds}


def _text(figures: Mapping[str, Any]) -> str:
    shown = {name: figure for name, figure in figures.items() if name not in ("good", "why")}
    told = ", ".join(f"{name.replace('_', ' ')} {figure}" for name, figure in shown.items())
    return f"{figures['why']} ({told})" if "why" in figures else told


# --- what the parts share -----------------------------------------------------------------------


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak() -> float:
    """GiB held at most since the start."""
    import torch

    return round(torch.cuda.max_memory_allocated() / GIB, 2) if torch.cuda.is_available() else 0.0


def _seconds(work: Callable[[], object], times: int = 1) -> float:
    """Of one call, after one that is not counted."""
    work()
    _wait()
    started = time.perf_counter()
    for _ in range(times):
        work()
    _wait()
    return (time.perf_counter() - started) / times


def _speaker(size: Size, device: torch.device, dtype: torch.dtype, **options: Any) -> TokenPolicy:
    """A language model of a size with adapters."""
    import torch

    from .testing import vlms
    from .vlm.policy import TokenPolicy

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model, reader = vlms.text("qwen2", **QWEN[size])
    finally:
        torch.set_default_dtype(before)
    autocast = dtype if dtype == torch.bfloat16 else None
    return TokenPolicy.of(model.to(device), reader, lora_rank=16, autocast=autocast, **options)


def _questions(count: int) -> list[Task]:
    from .types import Task

    return [Task(f"question {i}", "what is red ?") for i in range(count)]


def _scored(rollouts: list[Rollout]) -> list[Rollout]:
    for i, rollout in enumerate(rollouts):
        rollout.scores["total"] = float(7 * i % 5)
    return rollouts


def _learner(policy: Any, lr: float = 0.0) -> Any:
    """A GRPO learner; at a rate of 0 an update costs what it costs and can be repeated on the same rollouts."""
    from .trainers.advantages import grpo
    from .trainers.learner import Optimisation, PolicyLearner
    from .trainers.objectives import PPOClip

    return PolicyLearner(policy, PPOClip(), Optimisation(lr=lr), advantage=grpo())


# --- the parts ----------------------------------------------------------------------------------


def _ground(size: Size) -> dict[str, Any]:
    """Products, copies and memory of the device."""
    import torch

    device, side = _device(), 256 if size == "tiny" else 8192
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    block = torch.empty(2**20 if size == "tiny" else 2**32, device=device, dtype=torch.uint8)
    product, copy = _seconds(lambda: matrix @ matrix, 5), _seconds(block.clone, 3)
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / GIB, 1) if cuda else 0.0,
        "torch": torch.__version__,
        "bf16_tflops": round(2 * side**3 / product / 1e12, 1),
        "copy_gb_per_s": round(2 * block.numel() / copy / 1e9),
    }


def _attention(backend: str, size: Size) -> dict[str, Any]:
    """Forward and backward of one attention backend at many tokens; on the CPU of the plain one."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tokens, device = 64 if size == "tiny" else LONGEST, _device()
    cuda = device.type == "cuda"
    dtype, kernel = (torch.bfloat16, backend) if cuda else (torch.float32, "MATH")
    q, k, v = (torch.randn(1, 24, tokens, 128, device=device, dtype=dtype, requires_grad=True) for _ in range(3))

    def work() -> None:
        with sdpa_kernel(SDPBackend.__members__[kernel]):
            torch.autograd.backward(torch.nn.functional.scaled_dot_product_attention(q, k, v).sum())

    return {"tokens": tokens, "milliseconds": round(1000 * _seconds(work, 3), 2)}


def _same(size: Size) -> dict[str, Any]:
    """Tokens and an update in float32 are those of the CPU.

    Raises:
        RuntimeError: they are not.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    cpu, told, weights = torch.device("cpu"), [], []
    for device in (_device(), cpu):
        policy = _speaker("tiny", device, torch.float32, horizon=8)
        told.append(policy.act(_questions(3), 4, key=(1,)))
    pairs = list(zip(*told, strict=True))
    alike = [(a, b) for a, b in pairs if torch.equal(a.payload["tokens"], b.payload["tokens"])]
    gap = max((float((a.log_probs - b.log_probs).abs().max()) for a, b in alike), default=float("inf"))
    for device in (_device(), cpu):
        policy = _speaker("tiny", device, torch.float32, horizon=8)
        _learner(policy, 1e-3).update(_scored([b for _, b in pairs]))
        weights.append(torch.cat([p.detach().flatten().cpu() for p in policy.parameters()]))
    moved = float((weights[0] - weights[1]).abs().max())
    if len(alike) < len(pairs) - 1 or gap > 1e-3 or moved > 2e-3:
        raise RuntimeError(
            f"{len(alike)} of {len(pairs)} answers alike, log-probs {gap:.1e} and weights {moved:.1e} apart"
        )
    return {"answers_alike": f"{len(alike)} of {len(pairs)}", "log_probs_apart": gap, "weights_apart": moved}


def _language(size: Size) -> dict[str, Any]:
    """Sampling and learning of a language model with adapters, and how far the two see its log-probs apart."""
    import torch

    from .vlm.static_decoding import compare_step

    device, tokens = _device(), 8 if size == "tiny" else 128
    policy = _speaker(size, device, torch.bfloat16, horizon=tokens, decoder="static")
    figures: dict[str, Any] = {}
    rollouts: list[Rollout] = []
    for rows in (8,) if size == "tiny" else (16, 64):
        tasks, static = _questions(rows // 8), policy.static
        for name, decoder in (("eager", None), ("static", static)):
            policy.static = decoder
            seconds = _seconds(lambda tasks=tasks: rollouts.__setitem__(slice(None), policy.act(tasks, 8, key=(1,))))  # type: ignore[misc]
            steps = max(len(rollout.mask) for rollout in rollouts)
            figures[f"ms_per_step_{rows}_rows_{name}"] = round(1000 * seconds / steps, 1)
            figures[f"tokens_per_s_{rows}_rows_{name}"] = round(sum(len(r.mask) for r in rollouts) / seconds)
        if device.type == "cuda":
            replay = compare_step(policy, tasks, 8)
            figures[f"replayed_equal_{rows}_rows"] = replay.equal
            figures[f"same_step_ms_{rows}_rows"] = round(1000 * replay.eager, 2)
            figures[f"replayed_ms_{rows}_rows"] = round(1000 * replay.replayed, 2)
    figures["sampling_gib"] = _peak()
    batch = policy.collate(rollouts)
    with torch.no_grad():
        now = policy.evaluate_actions(batch).log_probs
    apart = (now - batch.log_probs["behaviour"])[batch.mask]
    figures |= {"gap_sd": round(float(apart.std()), 5), "gap_max": round(float(apart.abs().max()), 4)}
    learner = _learner(policy)
    figures["seconds_per_update"] = round(_seconds(lambda: learner.update(_scored(rollouts))), 2)
    return figures | {"learning_gib": _peak()}


def _pictures(size: Size) -> dict[str, Any]:
    """The denoiser of Stable Diffusion 3.5 medium, or a tiny one: a pass, and one with its backward pass."""
    import tempfile

    import torch
    from diffusers import SD3Transformer2DModel

    from .testing.published import stable_diffusion_3_5_medium

    device, dtype, kind = _device(), torch.bfloat16, cast(Any, SD3Transformer2DModel)
    if size == "tiny":
        few: dict[str, Any] = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "sample_size": 8}
        few |= {"joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 32}
        rows, side, words, config = 2, 8, 7, {**few, "pos_embed_max_size": 8}
    else:
        with tempfile.TemporaryDirectory() as folder:
            place = stable_diffusion_3_5_medium(Path(folder))
            config = dict(kind.load_config(place, subfolder="transformer"))
        rows, side, words = 4, 64, 333
    with torch.device(device):
        denoiser = kind.from_config(config).to(dtype)
    told = denoiser.config
    given = {
        "hidden_states": torch.randn(rows, told.in_channels, side, side, device=device, dtype=dtype),
        "encoder_hidden_states": torch.randn(rows, words, told.joint_attention_dim, device=device, dtype=dtype),
        "pooled_projections": torch.randn(rows, told.pooled_projection_dim, device=device, dtype=dtype),
        "timestep": torch.full((rows,), 500.0, device=device),
    }

    def drawn() -> None:
        with torch.no_grad():
            denoiser(**given)

    def learned() -> None:
        torch.autograd.backward(denoiser(**given).sample.float().sum())

    figures: dict[str, Any] = {"rows": rows, "pass_ms": round(1000 * _seconds(drawn, 3), 1)}
    figures["pass_and_backward_ms"] = round(1000 * _seconds(learned, 2), 1)
    figures["peak_gib"] = _peak()
    if device.type == "cuda":
        denoiser.compile_repeated_blocks()
        figures["compiled_pass_ms"] = round(1000 * _seconds(drawn, 3), 1)
    return figures


def _robots(size: Size) -> dict[str, Any]:
    """A small policy on the device with simulators in processes."""
    from .envs.pool import Pool
    from .types import Task
    from .vla.actor import RobotActor
    from .vla.policy import ActionModel, ActionPolicy

    name, starts = "metaworld/drawer-open-v3", 2 if size == "tiny" else 32
    with Pool([name], workers=1 if size == "tiny" else None) as pool:
        policy = ActionPolicy(ActionModel(*pool.sizes(name), chunk=pool.chunk))
        policy.module.to(_device())
        about: dict[str, Any] = {"category": name, "horizon": 50, "extra": {"environment": name}}
        tasks = [Task(f"{name}/{seed}", "open", seed=seed, **about) for seed in range(starts)]
        actor = RobotActor(policy, pool)
        rollouts: list[Rollout] = []
        seconds = _seconds(lambda: rollouts.__setitem__(slice(None), actor.act(tasks, 8, key=(1,))))
        update = _seconds(lambda: _learner(policy).update(_scored(rollouts)))
        steps = sum(rollout.output.steps for rollout in rollouts)
    return {"environment_steps_per_s": round(steps / seconds), "seconds_per_update": round(update, 2)}


def _frames(size: Size) -> dict[str, Any]:
    """Pictures of simulators in processes, by whatever OpenGL is here."""
    import numpy as np

    from .envs.pool import EpisodeRequest, Pool
    from .envs.simulator import View

    name, count, side = "metaworld/drawer-open-v3", *((4, 64) if size == "tiny" else (64, 224))
    with Pool([name], workers=1 if size == "tiny" else None) as pool:
        requests = [EpisodeRequest(name, seed, 50) for seed in range(count)]
        still = np.zeros((pool.chunk, pool.sizes(name)[1]), np.float32)
        told: list[Any] = []

        def work() -> None:
            act = lambda rows, *_: np.repeat(still[None], len(rows), 0)  # noqa: E731
            told[:] = pool.run(requests, act, render=View(side), see=True)

        seconds = _seconds(work)
    return {"pixels": side, "frames_per_s": round(sum(episode.steps // pool.chunk for episode in told) / seconds)}


PARTS: Mapping[str, Callable[[Size], dict[str, Any]]] = {
    "ground": _ground,
    "attention_flash": lambda size: _attention("FLASH_ATTENTION", size),
    "attention_efficient": lambda size: _attention("EFFICIENT_ATTENTION", size),
    "attention_cudnn": lambda size: _attention("CUDNN_ATTENTION", size),
    "same_as_cpu": _same,
    "language": _language,
    "pictures": _pictures,
    "robots": _robots,
    "frames": _frames,
}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](sys.argv[2])))  # type: ignore[arg-type]
