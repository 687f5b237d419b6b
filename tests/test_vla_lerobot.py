"""Policies of LeRobot. These are stand-ins of a few lines with the names and signatures of lerobot 0.4.4's classes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from autotelic.errors import UsageError
from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives import PPOClip, WeightedImitation
from autotelic.vla.actor import RobotActor
from autotelic.vla.chunk_policy import Seen
from autotelic.vla.lerobot_policy import LeRobotPolicy

from . import point_mass

STATE, WORLD, ACTION = "observation.state", "observation.environment_state", "action"


def settings(**changes: Any) -> SimpleNamespace:
    given = {
        "n_obs_steps": 1,
        "n_action_steps": 4,
        "chunk_size": 6,
        "image_features": {},
        "robot_state_feature": SimpleNamespace(shape=(2,)),
        "env_state_feature": SimpleNamespace(shape=(2,)),
        "action_feature": SimpleNamespace(shape=(2,)),
    }
    return SimpleNamespace(**(given | changes))


def body(size: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, out))


class ACTPolicy(nn.Module):
    name = "act"

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.config, self.model = settings(**changes), body(4, 12)

    def plan(self, batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.model(torch.cat([batch[STATE], batch[WORLD]], -1)).view(-1, 6, 2)
        return out

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor]) -> Tensor:
        return self.plan(batch)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        off = (batch[ACTION] - self.plan(batch)).abs() * ~batch["action_is_pad"].unsqueeze(-1)
        return off.mean(), {"l1_loss": off.mean().item()}


class DiffusionPolicy(nn.Module):
    name = "diffusion"

    class Inner(nn.Module):
        def __init__(self, levels: int) -> None:
            super().__init__()
            self.net = body(4 + 16 + 1, 16)
            self.noise_scheduler = DDPMScheduler(num_train_timesteps=levels, clip_sample=True)

        def unet(self, x: Tensor, timestep: Tensor, global_cond: Tensor) -> Tensor:
            out: Tensor = self.net(torch.cat([x.flatten(1), timestep[:, None] / 50, global_cond], -1)).view_as(x)
            return out

        def _prepare_global_conditioning(self, batch: dict[str, Tensor]) -> Tensor:
            assert batch[STATE].shape[1] == 1  # the axis of observation steps
            return torch.cat([batch[STATE], batch[WORLD]], -1).flatten(1)

        def conditional_sample(
            self, batch_size: int, global_cond: Tensor, generator: Any = None, noise: Tensor | None = None
        ) -> Tensor:
            assert noise is not None
            sample = noise
            self.noise_scheduler.set_timesteps(10)
            for t in self.noise_scheduler.timesteps:
                out = self.unet(sample, torch.full((batch_size,), int(t)), global_cond=global_cond)
                sample = self.noise_scheduler.step(out, t, sample, generator=generator).prev_sample
            return sample

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.config = settings(horizon=8, prediction_type="epsilon", **changes)
        self.diffusion = self.Inner(50)


class SmolVLAPolicy(nn.Module):
    name = "smolvla"

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.look = body(4 + 24 + 1 + 1, 24), nn.Linear(1, 1)

        def velocity(self, images: list[Tensor], state: Tensor, x: Tensor, t: Tensor) -> Tensor:
            look = self.look(images[0].mean((1, 2, 3))[:, None])
            out: Tensor = self.net(torch.cat([state, x.flatten(1), t[:, None], look], -1)).view_as(x)
            return out

        def forward(
            self,
            images: Any,
            masks: Any,
            tokens: Any,
            token_masks: Any,
            state: Any,
            actions: Any,
            noise: Any,
            time: Any,
        ) -> Tensor:
            assert tokens.shape == token_masks.shape
            t = time[:, None, None]
            velocity = self.velocity(images, state, t * noise + (1 - t) * actions, time)
            return (noise - actions - velocity) ** 2

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        camera = {"observation.images.main": SimpleNamespace(shape=(3, 16, 16))}
        given = {"image_features": camera, "max_action_dim": 4, "env_state_feature": None}
        self.config, self.model = settings(**(given | changes)), self.Model()

    def prepare_images(self, batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        images = [batch[key] * 2 - 1 for key in self.config.image_features]
        return images, [torch.ones(len(images[0]), dtype=torch.bool)]

    def prepare_state(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.pad(batch[STATE], (0, 2))

    def prepare_action(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.pad(batch[ACTION], (0, 2))

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor) -> Tensor:
        images, _ = self.prepare_images(batch)
        x = noise
        for step in range(10):
            x = x - self.model.velocity(images, self.prepare_state(batch), x, torch.full((len(x),), 1 - step / 10)) / 10
        return x[:, :, :2]


class PI0Policy(SmolVLAPolicy):
    """As lerobot 0.6.1 has it: pictures by another name, and noise on its way to ``sample_actions``."""

    name = "pi0"
    prepare_images = None  # type: ignore[assignment]

    def _preprocess_images(self, batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return SmolVLAPolicy.prepare_images(self, batch)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        images, _ = self._preprocess_images(batch)
        return self.sample_actions(images, self.prepare_state(batch), **kwargs)[:, :, :2]

    def sample_actions(self, images: list[Tensor], state: Tensor, noise: Tensor) -> Tensor:
        x = noise
        for step in range(10):
            x = x - self.model.velocity(images, state, x, torch.full((len(x),), 1 - step / 10)) / 10
        return x


class PI05Policy(PI0Policy):
    """The state is among the words, so that the model is given none."""

    name = "pi05"

    class Model(SmolVLAPolicy.Model):
        def forward(self, images: Any, masks: Any, tokens: Any, masked: Any, actions: Any, *how: Any) -> Tensor:  # type: ignore[override]
            state = torch.zeros(len(actions), 4)
            return super().forward(images, masks, tokens, masked, state, actions, *how)

    def prepare_state(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.zeros(len(batch[STATE]), 4)


def tokens(batch: dict[str, Any]) -> dict[str, Any]:
    """LeRobot's preprocessing: here actions are doubled, and an instruction has one token per word."""
    made = dict(batch)
    ids = torch.zeros(len(batch["task"]), len(batch["task"][0].split()), dtype=torch.long)
    made |= {"observation.language.tokens": ids, "observation.language.attention_mask": ids == 0}
    if ACTION in batch:
        made[ACTION] = batch[ACTION] * 2
    return made


def half(actions: Tensor) -> Tensor:
    return actions / 2


def policy(kind: type[nn.Module], **changes: Any) -> LeRobotPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LeRobotPolicy(kind(**changes), tokens, half)


def seen(made: LeRobotPolicy, count: int = 3) -> Seen:
    random = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (count, 16, 16, 3), dtype=torch.uint8, generator=random) if made.cameras else None
    states = torch.randn(count, sum(made.sizes.values()), generator=random)
    return Seen(["go there"] * count, states, {} if frames is None else {"main": frames})


def dice(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


KINDS = [ACTPolicy, DiffusionPolicy, SmolVLAPolicy, PI0Policy, PI05Policy]


@pytest.mark.parametrize("kind", KINDS)
def test_plans_depend_on_their_own_random_numbers_alone(kind: type[nn.Module]) -> None:
    made = policy(kind)
    shown = seen(made)
    whole = made.choose(shown, dice(3))
    assert whole.actions.shape == (3, 4, 2) and whole.stored["clean"].shape == (3, made.planned, 2)
    np.testing.assert_allclose(whole.actions, (whole.stored["clean"][:, :4] / 2).clamp(-1, 1))
    assert whole.log_probs is None
    alone = made.choose(shown.select([2]), dice(3)[2:])
    torch.testing.assert_close(alone.actions[0], whole.actions[2])
    other = made.choose(shown, dice(4)[1:]).actions
    assert torch.equal(other, whole.actions) == (kind is ACTPolicy)  # ACT plans the same every time
    assert torch.equal(made.choose(shown, None).actions, made.choose(shown, None).actions)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_forward_scores_by_hand(kind: type[nn.Module]) -> None:
    made = policy(kind)
    shown = seen(made, 2)
    stored = dict(made.imitate(shown, torch.linspace(-1, 1, 16).view(2, 4, 2)))
    assert stored["clean"][0, 0, 0] == -2
    drawn = made.redraw(stored, torch.Generator().manual_seed(0))
    assert torch.equal(drawn["time"], made.redraw(stored, torch.Generator().manual_seed(0))["time"])
    drawn["executed"] = torch.tensor([[True] * 4, [True, True, True, False]])  # the second demonstration ends before
    found = made.score(shown, drawn).log_probs
    assert found.shape == (2, 4)
    t, e, x = drawn["time"][1, 2], drawn["noise"][1, 2], stored["clean"][1]
    one: Any = made.module
    batch = made._batch(shown.select([1]))
    if kind is DiffusionPolicy:
        level = int(t * 50)
        alpha = one.diffusion.noise_scheduler.alphas_cumprod[level]
        noisy = alpha.sqrt() * x + (1 - alpha).sqrt() * e
        off = e - one.diffusion.unet(noisy[None], torch.tensor([level]), shown.states[1:])[0]
    else:
        padded = nn.functional.pad(x, (0, 2))
        pictures, _ = (one.prepare_images or one._preprocess_images)(batch)
        velocity = one.model.velocity(pictures, one.prepare_state(batch), (t * e + (1 - t) * padded)[None], t[None])
        off = (e - padded - velocity[0])[:, :2]
    torch.testing.assert_close(found[1, 2], -0.5 * (off[:3] ** 2).sum())


def test_diffusion_policy_learns_from_demonstrations() -> None:
    made = policy(DiffusionPolicy)
    learner = PolicyLearner(made, WeightedImitation(decisions="forward"), Optimisation(lr=3e-3, epochs=250))
    with point_mass.simulators() as pool:
        shown = pool.demonstrate(point_mass.NAME, range(6), horizon=20, settle=2)
        tasks = [point_mass.point_task(seed, 8) for seed in range(50, 66)]

        def distance() -> float:
            ends = RobotActor(made, pool).act(tasks, 1)
            return float(np.mean([point_mass.distance(r.output.observations[-1]) for r in ends]))

        before = distance()
        learner.update(made.encode([point_mass.point_task(d.seed) for d in shown], shown))
        assert distance() < 0.5 < 0.8 < before


def test_act_learns_by_imitation_alone() -> None:
    made = policy(ACTPolicy)
    shown, actions = seen(made, 8), torch.rand(8, 4, 2) * 2 - 1
    stored = made.imitate(shown, actions)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(150):
        loss = made.imitation_loss(shown, stored)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert not made.module.training
    assert (made.choose(shown, None).actions - actions).abs().mean() < 0.1
    for objective in (PPOClip(), WeightedImitation(), WeightedImitation(decisions="forward")):
        with pytest.raises(ValueError, match=r"asks for the capability .*; LeRobotPolicy has imitation"):
            PolicyLearner(made, objective, Optimisation(), advantage=grpo())


@pytest.mark.parametrize("kind", KINDS[1:])
def test_probabilities_that_nobody_knows_are_refused(kind: type[nn.Module]) -> None:
    made = policy(kind)
    with pytest.raises(ValueError, match="asks for the capability exact or composite; LeRobotPolicy has forward, imit"):
        PolicyLearner(made, PPOClip(), Optimisation(), advantage=grpo())
    choice = made.choose(seen(made), dice(3))
    with pytest.raises(ValueError, match="has no log-probabilities of what it sampled"):
        made.score(seen(made), choice.stored)
    assert made.imitation_loss(seen(made), choice.stored).item() > 0


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        (DiffusionPolicy, {"n_obs_steps": 2}, "diffusion looks at 2 observations: policies here see one"),
        (SmolVLAPolicy, {"adapt_to_pi_aloha": True}, "smolvla: adapt_to_pi_aloha"),
        (ACTPolicy, {"n_action_steps": 7}, "ACTPolicy plans 6 steps: chunk is 7"),
    ],
)
def test_settings_that_are_not_followed(kind: type[nn.Module], change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        policy(kind, **change)


def test_several_cameras_are_told_apart_by_name() -> None:
    """In whatever order they come; what LeRobot fills in itself is not asked for."""
    shape = SimpleNamespace(shape=(3, 16, 16))
    features = {f"observation.images.{name}": shape for name in ("top", "wrist", "empty_camera_0")}
    made = policy(SmolVLAPolicy, image_features=features)
    assert made.view is not None and made.view.cameras == ("top", "wrist")
    dark, light = (torch.full((1, 16, 16, 3), shade, dtype=torch.uint8) for shade in (0, 255))
    batch = made._batch(Seen(["go"], torch.zeros(1, 2), {"wrist": light, "top": dark}))
    assert batch["observation.images.top"].max() == 0 and batch["observation.images.wrist"].min() == 1
    with pytest.raises(ValueError, match="looks through top, wrist; it was given main"):
        made.choose(Seen(["go"], torch.zeros(1, 2), {"main": dark}), None)


def test_other_mistakes_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    made = policy(ACTPolicy)
    with pytest.raises(ValueError, match=r"\(ACTPolicy\) wants observation.state of 2, .+ of 2; .+ of 5 numbers"):
        made.choose(Seen(["go"], torch.zeros(1, 5)), None)
    odd = ACTPolicy()
    odd.name = "tdmpc"
    with pytest.raises(UsageError, match="'tdmpc' is not known here: act, diffusion, smolvla, pi0, pi05 are"):
        LeRobotPolicy(odd)
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(UsageError, match="LeRobot's policies need lerobot"):
        LeRobotPolicy.from_pretrained("lerobot/smolvla_base")


class Pipeline:
    """LeRobot's pipeline of processing steps: it writes a file of its own name, and its statistics."""

    def __init__(self, name: str, factor: float) -> None:
        self.name, self.factor = name, torch.tensor(factor)

    def __call__(self, thing: Any) -> Any:
        return tokens(thing) if isinstance(thing, dict) else thing * self.factor

    def save_pretrained(self, folder: Any) -> None:
        (Path(folder) / f"{self.name}.json").write_text(json.dumps({"factor": float(self.factor)}))

    @classmethod
    def load(cls, folder: Any, name: str) -> Pipeline:
        return cls(name, json.loads((Path(folder) / f"{name}.json").read_text())["factor"])


class Saved(ACTPolicy):
    def save_pretrained(self, folder: Any) -> None:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps({"type": "act"}))
        torch.save(self.state_dict(), Path(folder) / "weights")

    @classmethod
    def from_pretrained(cls, folder: Any, config: Any) -> Saved:
        made = cls()
        made.load_state_dict(torch.load(Path(folder) / "weights"))
        return made


def test_statistics_travel_with_a_saved_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "policy_preprocessor", "policy_postprocessor"
    made = LeRobotPolicy(Saved(), *(Pipeline(name, 0.25) for name in names))
    assert not made.pretrained
    made.save_pretrained(tmp_path)
    configs: Any = ModuleType("lerobot.configs.policies")
    configs.PreTrainedConfig = SimpleNamespace(from_pretrained=lambda name: SimpleNamespace(type="act"))
    factory: Any = ModuleType("lerobot.policies.factory")
    factory.get_policy_class = lambda kind: Saved
    factory.make_pre_post_processors = lambda config, pretrained_path: [
        Pipeline.load(pretrained_path, name) for name in names
    ]
    for name in ("lerobot", "lerobot.configs", "lerobot.policies"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, configs.__name__, configs)
    monkeypatch.setitem(sys.modules, factory.__name__, factory)
    back = LeRobotPolicy.from_pretrained(str(tmp_path))
    assert torch.equal(back.choose(seen(made), None).actions, made.choose(seen(made), None).actions)
    assert back.pretrained, "a recipe does not clone it again"
    start = made.fork("start")
    assert start.preprocess is made.preprocess and start.postprocess is made.postprocess
