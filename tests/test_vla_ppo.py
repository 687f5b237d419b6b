"""Values of robot policies, and PPO: every head learns from an environment's reward, in whole runs too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.cli import main
from autotelic.envs.pool import Pool
from autotelic.errors import UsageError
from autotelic.trainers.advantages import GAE
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.loop import train
from autotelic.trainers.objectives import PPOClip, ValueLoss
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.types import Rollout, Task
from autotelic.vla.actor import RobotActor
from autotelic.vla.flow import FlowModel, FlowPolicy
from autotelic.vla.network import NetworkPolicy, Trunk
from autotelic.vla.normalization import ObservationNormalizer
from autotelic.vla.policy import ActionModel, ActionPolicy
from autotelic.vla.recipes import ppo

from .paying_mass import CHOOSING, NAME, register_paying
from .point_mass import INSTRUCTION, distance

ROOT = Path(__file__).parents[1]
HEADS = ("gaussian", "tokens", "categorical", "flow")


def task(seed: int, head: str = "gaussian", horizon: int = 12) -> Task:
    name = CHOOSING if head == "categorical" else NAME
    return Task(f"{name}/{seed}", INSTRUCTION, category=name, seed=seed, horizon=horizon, extra={"environment": name})


def policy_of(head: Any, critic: Trunk = "separate", piece: int = 256) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"hidden": 32, "layers": 2, "critic": critic}
        if head == "flow":
            return FlowPolicy(FlowModel(4, 2, chunk=2, **size), steps=3, noise=0.7, micro_batch_rows=piece)  # type: ignore[arg-type]
        chunk, actions = (1, 4) if head == "categorical" else (2, 2)
        model = ActionModel(4, actions, chunk=chunk, head=head, bins=7, std=0.4, **size)  # type: ignore[arg-type]
        policy = ActionPolicy(model, rho=0.0, micro_batch_rows=piece)
        policy.start_undecided()
        return policy


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[str, Pool]]:
    register_paying()
    with Pool([NAME], workers=0) as paying, Pool([CHOOSING], workers=0) as choosing:
        yield {head: choosing if head == "categorical" else paying for head in HEADS}


def acted(policy: Any, pool: Pool, head: str, count: int = 3, key: int = 0, horizon: int = 12) -> list[Rollout]:
    tasks = [task(100 * key + seed, head, horizon) for seed in range(count)]
    rollouts = RobotActor(policy, pool).act(tasks, 1, key=(key,), oracle=True, rewards=True)
    for rollout in rollouts:
        rollout.scores["total"] = ppo.environment([rollout.output])[0]
    return rollouts


# --- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", ["separate", "shared"])
@pytest.mark.parametrize("head", HEADS)
def test_values_are_of_the_states_before_chunks_and_after_the_last(head: str, trunk: Trunk, pools: Any) -> None:
    policy = policy_of(head, trunk)
    torch.nn.init.normal_(policy.module.critic[-1].weight, generator=torch.Generator().manual_seed(1))
    rollouts = acted(policy, pools[head], head) + acted(policy, pools[head], head, 1, key=1, horizon=3)
    batch, needs = policy.collate(rollouts), {"values", "last_values"}
    now = policy.evaluate_actions(batch, needs)
    network = policy.module
    for row, rollout in enumerate(rollouts):
        seen = torch.from_numpy(rollout.output.observations)
        by_hand = network.value(seen, network.words_of([INSTRUCTION] * len(seen))).detach()
        chunks = len(seen) - 1
        torch.testing.assert_close(now.values[row, :chunks], by_hand[:-1])
        assert not now.values[row, chunks:].any()
        torch.testing.assert_close(now.last_values[row], by_hand[-1])
        assert rollout.truncated == (not rollout.output.terminated)
    assert policy.evaluate_actions(batch).values is None, "nobody asked"
    small = policy_of(head, trunk, piece=2)
    small.copy_from(policy)
    torch.testing.assert_close(small.evaluate_actions(batch, needs).values, now.values)
    torch.testing.assert_close(small.evaluate_actions(batch, needs).last_values, now.last_values)


def gradients(policy: Any, batch: Any, objective: Any) -> dict[str, Tensor]:
    for weight in policy.parameters():
        weight.grad = None
    now = policy.evaluate_actions(batch, objective.needs).leaves()
    policy.backward(batch, now.gradient_of(objective(now, batch)[0]))
    return {name: w.grad.clone() for name, w in policy.module.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("head", HEADS)
def test_a_trunk_is_shared_or_not(head: str, pools: Any) -> None:
    """And the gradient does not depend on how many rollouts are evaluated at once."""
    felt = {}
    for trunk in ("separate", "shared"):
        policy = policy_of(head, trunk)  # type: ignore[arg-type]
        torch.nn.init.ones_(policy.module.critic[-1].weight)
        batch = policy.collate(acted(policy, pools[head], head))
        batch.values = torch.zeros_like(batch.rewards["total"])
        batch.value_targets = batch.values + 1
        whole = gradients(policy, batch, ValueLoss())
        felt[trunk] = {name.partition(".")[0] for name, gradient in whole.items() if gradient.abs().max() > 0}
        policy.micro_batch_rows = 1
        for name, gradient in gradients(policy, batch, ValueLoss()).items():
            torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=1e-4)
    assert felt["separate"] == {"critic"} and felt["shared"] == {"critic", "body", "words"}


def test_a_critic_is_saved_forked_and_added(tmp_path: Path) -> None:
    policy = policy_of("gaussian")
    torch.nn.init.ones_(policy.module.critic[-1].weight)
    policy.save_pretrained(tmp_path / "policy")
    again = ActionPolicy.from_pretrained(str(tmp_path / "policy"))
    assert "values" in again.capabilities and again.module.inputs["critic"] == "separate"
    for name, weight in policy.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight)
    assert "values" in policy.fork("frozen").capabilities
    plain = policy_of("gaussian", "none")
    assert "values" not in plain.capabilities
    plain.add_critic("shared")
    assert "values" in plain.capabilities
    plain.save_pretrained(tmp_path / "later")
    assert ActionPolicy.from_pretrained(str(tmp_path / "later")).module.inputs["critic"] == "shared"
    with pytest.raises(UsageError, match='unknown critic trunk "own"'):
        policy_of("gaussian", "none").add_critic("own")  # type: ignore[arg-type]


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_by_ppo(head: str, pools: Any) -> None:
    """From what the environment pays, one episode of each start; untrained it pays about nothing, at best about .8."""
    policy = policy_of(head)
    rate = 5e-3 if head == "flow" else 1e-2
    learner = PolicyLearner(
        policy,
        PPOClip(aggregate="decision", per_dimension=head == "flow") + 0.5 * ValueLoss(),
        Optimisation(lr=rate, epochs=4, minibatches=4, cut="segments"),
        advantage=GAE(0.95, 0.9),
    )
    for step in range(20):
        told = learner.update(acted(policy, pools[head], head, 24, key=step))
    assert told["values/explained_variance"] > 0.3
    tasks = [task(9000 + seed, head) for seed in range(20)]
    ends = RobotActor(policy, pools[head]).act(tasks, 1, greedy=True, oracle=True, rewards=True)
    assert sum(distance(r.output.observations[-1]) < 0.35 for r in ends) >= 14


def test_choices_are_one_decision_of_a_step(pools: Any) -> None:
    policy = policy_of("categorical")
    (rollout,) = acted(policy, pools["categorical"], "categorical", 1)
    choice, actions = rollout.payload["actions"][:, 0, 0], torch.from_numpy(rollout.output.actions)[:, 0]
    assert actions.argmax(-1).tolist() == choice.tolist() and actions.sum(-1).unique().tolist() == [-2]
    assert rollout.log_probs is not None and rollout.log_probs.shape == choice.shape
    torch.testing.assert_close(rollout.log_probs.exp(), torch.full_like(rollout.log_probs, 0.25), atol=0.02, rtol=0)
    shown = pools["categorical"].demonstrate(CHOOSING, [3], horizon=20, settle=0)
    (encoded,) = policy.encode([task(3, "categorical")], shown)
    assert encoded.payload["actions"][:, 0, 0].tolist() == shown[0].actions.argmax(-1).tolist()


def test_observations_are_normalised_between_rounds(pools: Any) -> None:
    policy = policy_of("gaussian")
    assert isinstance(policy, NetworkPolicy)
    learner = ObservationNormalizer(policy)
    torch.nn.init.normal_(policy.module.out.weight)  # type: ignore[union-attr, arg-type]
    torch.nn.init.normal_(policy.module.critic[-1].weight)  # type: ignore[union-attr, index]
    rounds = [acted(policy, pools["gaussian"], "gaussian", 4, key=key) for key in range(2)]
    batch = policy.collate(rounds[0])
    said = []
    for rollouts in rounds:
        learner.update(rollouts)
        now = policy.evaluate_actions(batch, {"values"})
        said.append(torch.cat([now.log_probs, now.values], 1))  # type: ignore[list-item]
    torch.testing.assert_close(said[1], said[0], atol=1e-4, rtol=1e-4, msg="the policy is what it was")
    seen = torch.cat([r.payload["states"] for rollouts in rounds for r in rollouts])
    torch.testing.assert_close(policy.module.mean, seen.mean(0))
    torch.testing.assert_close(policy.module.std, seen.std(0, correction=0))
    other = ObservationNormalizer(policy_of("gaussian"))
    other.load_state_dict(learner.state_dict())
    assert other.seen.count == len(seen)


# --- whole runs ----------------------------------------------------------------------------------------


def config_of(**changes: Any) -> ppo.Config:
    register_paying()
    few = {"tasks": (NAME,), "workers": -1, "lr": 3e-3, "eval_episodes": 4, "tasks_per_step": 4, "trackers": ()}
    return ppo.Config.tiny(**{**few, "demonstrations": 0, "max_episode_steps": 0, **changes})


def weights_of(path: Path, **changes: Any) -> dict[str, Tensor]:
    """The trained weights after a run of two rounds."""
    config = config_of(**changes)
    folder = RunFolder.create(path, recipe="vla/ppo", config={}, command="")
    with closing(ppo.build(config, folder)) as experiment:
        train(replace(experiment, finish=lambda folder: None), folder)
        state: dict[str, Tensor] = experiment.stages[0].learners["policy"].state_dict()["policy"]
        return {name: weight.clone() for name, weight in state.items()}


def test_an_environment_is_learned_without_demonstrations(tmp_path: Path) -> None:
    register_paying()
    words = ["--tasks", NAME, "--workers", "-1", "--videos", "0", "--max-steps", "20", "--tasks-per-step", "24"]
    words += ["--lr", "1e-3", "--epochs", "4", "--minibatches", "4", "--eval-episodes", "20"]
    words += ["--gamma", "0.9", "--gae-lambda", "0.9"]
    assert main(["run", "vla/ppo", "--output-dir", str(tmp_path / "run"), *words]) == 0
    folder = RunFolder.open(tmp_path / "run")
    before, after = (folder.evaluations()[when]["outcomes"][NAME] for when in ("before", "after"))
    assert sum(before["success"]) <= 3 and sum(after["success"]) >= 14
    assert sum(after["score"]) / 20 > 0.6
    assert folder.metrics()[-1]["values/explained_variance"] > 0.3
    card, report = ((tmp_path / "run" / name).read_text() for name in ("README.md", "report.html"))
    assert "training: what the environment pays" in card and "1707.06347" in card
    assert "begins with random weights" in report


CLOSER = """
import numpy as np

class Closer:
    kind = "absolute"

    def __call__(self, observations, initial, instructions, references=None):
        return np.clip(1 - np.linalg.norm(observations[:, :2] - observations[:, 2:], axis=1), 0, 1)
"""


def test_a_progress_model_alone_is_enough(tmp_path: Path) -> None:
    """Nothing of the oracle is read in training: the stage is sealed."""
    register_paying()
    (tmp_path / "closer.py").write_text(CLOSER)
    words = ["--tasks", NAME, "--workers", "-1", "--videos", "0", "--max-steps", "20", "--tasks-per-step", "24"]
    words += ["--lr", "1e-3", "--epochs", "4", "--minibatches", "4", "--eval-episodes", "20"]
    words += ["--gamma", "0.9", "--gae-lambda", "0.9"]
    words += ["--rewards", "progress", "--critic", f"{tmp_path / 'closer.py'}:Closer"]
    assert main(["run", "vla/ppo", "--output-dir", str(tmp_path / "run"), *words]) == 0
    folder = RunFolder.open(tmp_path / "run")
    before, after = (folder.evaluations()[when]["outcomes"][NAME] for when in ("before", "after"))
    assert sum(before["success"]) <= 3 and sum(after["success"]) >= 14
    assert "gate_labels: none" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rewards": ("progress",)}, "name a progress model by --critic, or give --demonstrations"),
        ({"critic": "constant"}, "--critic is about --rewards progress"),
        ({"demonstrations_from": ("folder",)}, "say how many of each dataset by --demonstrations"),
        ({"sft_coef": 0.1}, "there are none: give --demonstrations"),
        ({"head": "flow", "log_std_init": 0.0}, "FlowPolicy has no standard deviation to set"),
        ({"head": "categorical"}, "--head categorical is for environments of choices"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        weights_of(tmp_path / "run", **changes)


KNOBS: dict[str, dict[str, Any]] = {
    "rewards": {"rewards": ("environment", "progress"), "critic": "time"},
    "demonstrations": {"demonstrations": 1},
    "critic trunk": {"critic_trunk": "shared"},
    "norm obs": {"norm_obs": False},
    "norm reward": {"norm_reward": False, "normalize_advantage": False},
    "gamma": {"gamma": 0.5},
    "lambda": {"gae_lambda": 0.5},
    "advantages": {"normalize_advantage": False},
    "value coef": {"value_coef": 0.1},
    "value clip": {"clip_range_vf": 1e-3},
    "log std": {"log_std_init": -1.0},
    "entropy": {"entropy_coef": 0.1},
    "clip": {"clip_low": 1e-4, "clip_high": 1e-4},
    "epochs": {"epochs": 3},
    "minibatches": {"minibatches": 3},
    "rho": {"rho": 0.5},
    "head": {"head": "flow"},
    "width": {"hidden_size": 16},
    "depth": {"num_layers": 1},
    "gradient norm": {"max_grad_norm": 1e-7},
    "temperature": {"temperature": 0.5},
    "kl": {"kl_coef": 1.0},
    "decay": {"lr_schedule": "linear"},
    "seed": {"seed": 1},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a run, twice."""
    folder = tmp_path_factory.mktemp("plain")
    return weights_of(folder / "one"), weights_of(folder / "two")


def differ(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() != two.keys() or any(
        one[name].shape != two[name].shape or not torch.equal(one[name], two[name]) for name in one
    )


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_is_felt_in_the_weights(knob: str, plain: Any, tmp_path: Path) -> None:
    assert not differ(*plain)
    assert differ(plain[0], weights_of(tmp_path / "run", **KNOBS[knob]))


def test_imitation_beside_the_reward_is_felt_in_the_weights(tmp_path: Path) -> None:
    shown = weights_of(tmp_path / "shown", demonstrations=1)
    assert differ(shown, weights_of(tmp_path / "held", demonstrations=1, sft_coef=0.1))


def test_a_run_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of rewards and observations too."""
    register_paying()
    words = ["--tasks", NAME, "--workers", "-1", "--videos", "0", "--tasks-per-step", "4", "--eval-episodes", "2"]
    words += ["--epochs", "2", "--minibatches", "3"]
    assert main(["run", "vla/ppo", "--output-dir", str(tmp_path / "whole"), *words, "--max-steps", "4"]) == 0
    assert main(["run", "vla/ppo", "--output-dir", str(tmp_path / "cut"), *words, "--max-steps", "2"]) == 0
    assert main(["resume", str(tmp_path / "cut"), "--max-steps", "+2"]) == 0
    whole, cut = (RunFolder.open(tmp_path / name).load_checkpoint() for name in ("whole", "cut"))
    states = [json.dumps(state["now"], sort_keys=True, default=lambda t: t.tolist()) for state in (whole, cut)]
    assert states[0] == states[1] and '"squares"' in states[0]


def test_a_run_by_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """Rounds of three episodes, so that a process has two and the other one, in one gradient step and in eight, whose
    segments are drawn over both."""
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}  # two on however many GPUs
    for several in ([], launch):
        done = subprocess.run(
            [sys.executable, "-m", *several, "tests.toy_processes", "ppo", str(tmp_path)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    for minibatches in (1, 8):
        one, two = (RunFolder.open(tmp_path / f"{minibatches} by {count}") for count in (1, 2))
        alone, shared = (run.load_checkpoint()["now"]["policy"]["policy"] for run in (one, two))
        for name, weight in alone.items():
            assert float((weight - shared[name]).abs().max()) < 1e-5, name
        for mine, theirs in zip(one.metrics(), two.metrics(), strict=True):
            told = [key for key in mine if not key.startswith("time/")]
            assert {key: theirs[key] for key in told} == pytest.approx({key: mine[key] for key in told}, 1e-5, 1e-5)
