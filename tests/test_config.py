"""One configuration for all modalities: groups, defaults by model, what a recipe fixes, what a name stands for."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields, make_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, get_type_hints

import numpy as np
import pytest

from autotelic.errors import UsageError
from autotelic.options import help_of, parse, run_options
from autotelic.recipes import all_recipes, config_from_json
from autotelic.trainers import advantages, published
from autotelic.trainers.config import GROUPS, RunConfig, fixed, flag, grouped, groups_of
from autotelic.trainers.curricula import SEC, Uniform
from autotelic.trainers.learner import Optimisation
from autotelic.trainers.objectives import NFT, PPOClip
from autotelic.trainers.ranges import Amount, Count, Number, Positive, Range, Share, Whole, check_ranges, ranges_of
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.trainers.setting import make, settled
from autotelic.types import Task
from autotelic.vla.recipes import evolve_vla
from autotelic.vla.setting import Setting as RobotSetting
from autotelic.vlm.recipes import grpo, self_critique, sft

KINDS = {name: recipe.load().Config for name, recipe in all_recipes().items()}


@dataclass(frozen=True)
class Modality(RunConfig):
    group: ClassVar[str] = "modality"
    SMALL: ClassVar[dict[str, Any]] = {"lr": 0.1, "group_size": lambda config: config.seed + 2}
    LOADED: ClassVar[dict[str, Any]] = {"lr": 0.2}
    TINY: ClassVar[dict[str, Any]] = {"group_size": 3, "kl_coef": 0.5}

    width: int = 1
    top_k: int = grouped("sampling", 0)


@dataclass(frozen=True)
class Recipe(Modality):
    SMALL: ClassVar[dict[str, Any]] = {"lr": 0.3}
    FIXED: ClassVar[tuple[str, ...]] = ("kl_coef", "entropy_coef")

    top_k: int = 5
    depth: int = 2


# --- groups and help -------------------------------------------------------------------------------


def test_fields_stand_in_the_group_of_whoever_declares_them_first() -> None:
    groups = groups_of(Recipe)
    assert list(groups) == [*(name for name in GROUPS if name in groups), "modality", "recipe"]
    assert groups["modality"] == ["width"] and groups["recipe"] == ["depth"]
    assert "top_k" in groups["sampling"] and "lr" in groups["optimisation"] and "judge" in groups["gate"]
    every = [name for names in groups.values() for name in names]
    assert sorted(every) == sorted({f.name for f in fields(Recipe)} - {"kl_coef", "entropy_coef"})


def test_help_has_titled_groups_and_flat_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(run_options(Recipe()), ["--help"], "run x")
    shown = capsys.readouterr().out
    titles = re.findall(r"^\W*(\w+) options\b", shown, re.MULTILINE)
    assert titles == [*(name for name in GROUPS if name in groups_of(Recipe)), "modality", "recipe"]
    assert "--lr " in shown and "--optimisation" not in shown and "--kl-coef" not in shown
    options = parse(run_options(Recipe()), ["--lr", "3", "--top-k", "1", "--rewards", "a", "b"], "run x")
    assert options.config == Recipe(lr=3.0, top_k=1, rewards=("a", "b"))


@pytest.mark.parametrize(
    ("kind", "inside", "outside", "said"),
    [
        (Count, (1, 7), (0, -1), "a finite number of 1 or more"),
        (Whole, (0, 3), (-1,), "a finite number of 0 or more"),
        (Number, (-1e9, 0.0), (math.nan, math.inf, -math.inf), "a finite number"),
        (Positive, (1e-9, 5), (0.0, -1.0, math.nan, math.inf), "a finite number above 0"),
        (Amount, (0.0, 2.5), (-1e-9, math.inf), "a finite number of 0 or more"),
        (Share, (0, 0.5, 1), (-0.1, 1.1, math.nan), "a number from 0 to 1"),
        (Annotated[float, Range(-1, 1, open=True)], (0.99,), (1.0, -1.0), "a number strictly between -1 and 1"),
        (Count | None, (None, 1), (0,), "a finite number of 1 or more"),
        (tuple[Positive, ...], ((), (1.0, 2.0)), ((1.0, 0.0),), "a finite number above 0"),
        (float, (-3.0,), (math.nan,), "a finite number"),
        (bool, (False, True), (), ""),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_its_flag(
    kind: Any, inside: tuple[Any, ...], outside: tuple[Any, ...], said: str
) -> None:
    made = make_dataclass("Made", [("how_many", kind)])
    for value in inside:
        check_ranges(made(value))
    for value in outside:
        with pytest.raises(UsageError) as error:
            check_ranges(made(value))
        last = value[-1] if isinstance(value, tuple) else value
        assert str(error.value) == f"--how-many is {said}, not {last}"


def test_a_class_that_changes_a_default_keeps_the_range() -> None:
    @dataclass(frozen=True)
    class Changed(RunConfig):
        epochs: int = 4

    assert str(ranges_of(Changed)["epochs"]) == "a finite number of 1 or more"
    with pytest.raises(UsageError, match="--epochs is a finite number of 1 or more, not 0"):
        Changed(epochs=0)
    with pytest.raises(UsageError, match="--lr is a finite number of 0 or more, not nan"):
        replace(Changed(), lr=math.nan)


@pytest.mark.parametrize("name", KINDS)
def test_every_number_of_every_recipe_has_a_range(name: str) -> None:
    hints = get_type_hints(KINDS[name])
    numbers = {f.name for f in fields(KINDS[name]) if re.search("int|float", str(hints[f.name]))}
    assert numbers - ranges_of(KINDS[name]).keys() == set()


@pytest.mark.parametrize("name", KINDS)
def test_every_field_of_every_recipe_has_a_help_text(name: str) -> None:
    open_fields = [each for names in groups_of(KINDS[name]).values() for each in names]
    assert [each for each in open_fields if not help_of(KINDS[name], each)] == []


def test_shared_concepts_have_one_spelling() -> None:
    old = "group prompts_per_step states iterations horizon steps guidance at_once inner_steps minibatch decay kl"
    old += " entropy replay replay_size anchor pipeline prompts policy evaluate_every sees clone_steps tower loss batch"
    for name, kind in KINDS.items():
        assert not {each.name for each in fields(kind)} & set(old.split()), name


# --- what a recipe fixes ---------------------------------------------------------------------------


def test_what_a_recipe_fixes_is_refused_in_a_line_on_the_command_line_and_in_python() -> None:
    with pytest.raises(UsageError, match=r"^--kl-coef has no effect in autotelic run x, whose method fixes it"):
        parse(run_options(Recipe()), ["--kl-coef", "1"], "run x")
    with pytest.raises(UsageError, match=r"^--kl-coef has no effect in this recipe"):
        Recipe(kl_coef=1.0)
    assert fixed(Modality) == frozenset() and Modality(kl_coef=1.0).kl_coef == 1.0


@pytest.mark.parametrize("name", KINDS)
def test_a_recipe_without_a_policy_gradient_offers_none(name: str) -> None:
    imitates = {"vlm/raft", "vlm/sft", "vlm/mstar", "vlm/self_rewarding", "vlm/cream", "vlm/temporal", "vlm/tt_si"}
    imitates |= {"vla/raft", "vla/more_imitation"}
    others = {f"diffusion/{each}" for each in ("prdp", "d3po", "dpo", "nft", "raft", "alignprop", "draft", "refl")}
    fixes = {"objective", "advantage", "clip_low", "clip_high", "std_floor"} <= fixed(KINDS[name])
    assert fixes == (name in imitates | others)


# --- defaults by model -----------------------------------------------------------------------------


def test_none_is_filled_by_model_and_nothing_else() -> None:
    small, loaded = Recipe(seed=5).resolved(True), Recipe().resolved(False)
    assert (small.lr, small.group_size, small.weight_decay) == (0.3, 7, 0.0)
    assert (loaded.lr, loaded.group_size, loaded.tasks_per_step) == (0.2, 8, 8)
    assert Recipe(lr=9.0).resolved(True).lr == 9.0
    assert small.entropy_coef is None, "what is fixed is left alone"
    assert small.clip_low is None, "what no table knows stands for itself"
    assert Recipe().resolved(True, tasks_per_step=40).tasks_per_step == 40


@pytest.mark.parametrize("name", KINDS)
def test_every_recipe_knows_all_defaults_of_both_kinds_of_model(name: str) -> None:
    needed = {"lr", "group_size", "tasks_per_step", "weight_decay", "entropy_coef", "std_floor"}
    held = {"vlm": ("sample_tokens", "micro_batch_tokens"), "diffusion": ("sample_rows", "micro_batch_rows")}
    needed |= set(held.get(name.partition("/")[0], ()))
    for small in (True, False):
        config = KINDS[name]().resolved(small, **({"tasks_per_step": 40} if name.startswith("vla/") else {}))
        assert [each for each in needed - fixed(KINDS[name]) if getattr(config, each) is None] == []
        assert config.resolved(small) == config, "a resumed run takes the same"


def test_a_large_model_takes_smaller_steps_than_the_small_default() -> None:
    config = grpo.Config()
    assert config.resolved(True).lr == 8e-4 and config.resolved(False).lr == 1e-4
    assert replace(config, lora_rank=0).resolved(False).lr == 1e-5
    critique = self_critique.Config()
    assert critique.resolved(True).entropy_coef == 0.0 and critique.resolved(True).group_size == 8
    assert replace(critique, learn="outcome").resolved(True).entropy_coef == 0.01


def test_what_was_taken_is_told_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.create(tmp_path / "run", recipe="x", config=asdict(Recipe()), command="")
    config = settled(Recipe(), True, folder)
    line = capsys.readouterr().out
    assert line.startswith("defaults for the small default model: ") and "lr 0.3" in line and line.count("\n") == 1
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    again = config_from_json(Recipe, kept)
    assert again == config and settled(again, True, folder) == config
    assert capsys.readouterr().out == "", "the second time there is nothing to take"


def test_the_preset_of_two_steps_is_merged_and_leaves_out_what_is_fixed() -> None:
    tiny = Recipe.tiny(seed=3)
    assert (tiny.max_steps, tiny.gate_every, tiny.group_size, tiny.seed, tiny.kl_coef) == (2, 1, 3, 3, 0.0)
    assert Modality.tiny().kl_coef == 0.5


# --- optimisation ----------------------------------------------------------------------------------


def setting_of(config: Any) -> Any:
    shown: Any = {"metaworld/reach-v3": [SimpleNamespace(actions=np.zeros((9, 4)))]}
    return RobotSetting(config, ("metaworld/reach-v3",), None, shown, None, [])  # type: ignore[arg-type]


def test_batch_size_and_minibatches_say_how_many_gradient_steps() -> None:
    config = evolve_vla.Config().resolved(True, tasks_per_step=40)
    assert config.batch_size == 40 and setting_of(config).optimisation().minibatches == 40 * 8 // 40
    three = replace(evolve_vla.Config(), minibatches=3).resolved(True, tasks_per_step=40)
    assert three.batch_size is None and setting_of(three).optimisation().minibatches == 3
    few = evolve_vla.Config(batch_size=10**6).resolved(True, tasks_per_step=40)
    assert setting_of(few).optimisation().minibatches == 1
    assert setting_of(config).optimisation(rollouts=80).minibatches == 2
    with pytest.raises(UsageError, match="minibatches and batch_size say the same"):
        RunConfig(minibatches=2, batch_size=8)


def test_schedules_of_the_learning_rate_by_hand() -> None:
    linear, cosine = Optimisation(decay=4), Optimisation(decay=4, schedule="cosine")
    assert [linear.share(n) for n in (0, 1, 4, 9)] == pytest.approx([1, 1 - 0.9 / 4, 0.1, 0.1])
    half = (1 - math.cos(math.pi / 4)) / 2
    assert [cosine.share(n) for n in (0, 1, 2, 4)] == pytest.approx([1, 1 - 0.9 * half, 0.55, 0.1])
    assert Optimisation(schedule="cosine").share(7) == 1.0
    config = evolve_vla.Config(lr_schedule="cosine").resolved(True, tasks_per_step=40)
    how = setting_of(config).optimisation()
    assert (how.decay, how.schedule) == (config.max_steps, "cosine") and setting_of(config).optimisation(3).decay == 3


# --- names -----------------------------------------------------------------------------------------

OWN = """
from autotelic.trainers.advantages import rloo
from autotelic.trainers.curricula import Uniform
from autotelic.trainers.objectives import PPOClip

plain = PPOClip(0.3)

class Wide(PPOClip):
    pass

def pair(config):
    return PPOClip(config.kl_coef + 0.1), rloo()

def centred(batch):
    return batch

class Backwards(Uniform):
    pass

class Needy:
    def __init__(self, milk):
        pass

    def __call__(self, now, batch):
        pass
"""


def test_names_and_places_become_what_they_stand_for(tmp_path: Path) -> None:
    path = tmp_path / "own_ways.py"
    path.write_text(OWN)
    config, sources = grpo.Config(kl_coef=0.4).resolved(True), {"a": [Task("t", "x")]}
    offered: dict[str, Any] = {"config": config, "longest": 7}
    assert make("objective", "grpo", **offered) == (PPOClip(), advantages.grpo(0.1))
    assert make("objective", "dr_grpo", **offered) == (PPOClip(aggregate=7), advantages.dr_grpo())
    assert make("objective", "nft", **offered) == (NFT(), None)
    assert make("objective", f"{path}:plain", **offered) == PPOClip(0.3), "an objective is taken as it is"
    assert type(make("objective", f"{path}:Wide", **offered)).__name__ == "Wide", "a class is made"
    assert make("objective", f"{path}:pair", **offered) == (PPOClip(0.5), advantages.rloo()), "by the config"
    centred = make("advantage", f"{path}:centred", **offered)
    assert centred.__name__ == "centred", "a function of a batch is the advantage itself"
    assert isinstance(make("curriculum", "sec", sources=sources, seed=1, quarantine=2, config=config), SEC)
    own = make("curriculum", f"{path}:Backwards", sources=sources, seed=1, quarantine=2, config=config)
    assert isinstance(own, Uniform) and (own.seed, own.quarantine) == (1, 2)
    gate = {"probes": [], "judge": len, "reward": None, "sampling": {}, "margin": 0.3, "z": 1.0, "patience": 5}
    assert make("gate", "non_inferiority", **gate).margin == 0.3 and make("gate", "best", **gate).patience == 5
    with pytest.raises(UsageError, match="did you mean grpo"):
        make("objective", "grppo", **offered)
    with pytest.raises(UsageError, match="asks for milk, and is offered config, longest"):
        make("objective", f"{path}:Needy", **offered)
    with pytest.raises(UsageError, match="nothing"):
        make("gate", f"{path}:nothing")
    with pytest.raises(UsageError, match=r"there is no file nowhere\.py"):
        make("gate", "nowhere.py:Gate")


NAMES = {
    "objective": ("grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce_pp", "nft"),
    "advantage": ("grpo", "dr_grpo", "rloo", "reinforce_pp"),
    "curriculum": ("uniform", "sec"),
    "gate": ("canary", "non_inferiority", "best"),
}


def test_every_name_that_help_tells_can_be_made() -> None:
    config = grpo.Config().resolved(True)
    offered: dict[str, dict[str, Any]] = {
        "gate": {"probes": [1, 2], "judge": len},
        "curriculum": {"sources": {"a": [Task("t", "x")]}},
        "objective": {"longest": 3},
    }
    for kind, names in NAMES.items():
        for name in names:
            assert name in help_of(RunConfig, kind)
            made = make(kind, name, config=config, **offered.get(kind, {}))
            assert made is not None and not isinstance(made, type)


def test_the_config_names_the_way_and_the_recipe_has_its_own() -> None:
    config = evolve_vla.Config().resolved(True, tasks_per_step=40)
    own = published.clipped(config, 0.2, 0.28), published.normalised(config)
    assert own == (PPOClip(0.2, 0.28), advantages.grpo(0.1)) and setting_of(config).way(*own) == (*own, None)
    named = replace(config, objective="autotelic.trainers.objectives:PPOClip")
    assert setting_of(named).way(NFT(), None) == (PPOClip(), advantages.grpo(0.1), None), "what it needs comes along"
    rloo = replace(config, advantage="rloo", clip_low=0.7)
    assert setting_of(rloo).way(published.clipped(rloo), None) == (PPOClip(0.7), advantages.rloo(), None)
    terms = setting_of(replace(config, kl_coef=0.5, reference="proximal", entropy_coef=0.1)).regularised(PPOClip())
    assert terms.needs >= {"log_probs:proximal", "entropy"}


# --- rewards of episodes ---------------------------------------------------------------------------


def test_the_reward_of_the_readme_scores_episodes(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "def near" in block)
    path = tmp_path / "near_readme.py"
    path.write_text(code)
    observations = np.zeros((2, 8))
    observations[-1, 4] = 3.0
    episode = SimpleNamespace(observations=observations, actions=np.full((1, 4), 0.5))
    config = evolve_vla.Config(rewards=(f"{path}:near:0.9", f"{path}:calm:0.1"))
    alone = setting_of(config).reward({"progress": lambda: pytest.fail("it is not asked for")})
    assert alone(episodes=[episode])["total"] == pytest.approx([-0.9 * 3.0 - 0.1 * 0.5])
    beside = setting_of(replace(config, rewards=("progress:2", f"{path}:near")))
    both = beside.reward({"progress": lambda: lambda episodes, **_: [1.0]})
    assert both(episodes=[episode])["total"] == pytest.approx([2.0 - 3.0])
    assert "progress" not in both(episodes=[episode]), "the estimator's own scores have that name"
    own: Any = setting_of(evolve_vla.Config()).reward({"progress": lambda: "the recipe's"})
    assert own == "the recipe's"
    with pytest.raises(UsageError, match=r'unknown reward.* "progres": did you mean progress'):
        setting_of(replace(config, rewards=("progres",))).reward({"progress": lambda: None})


# --- old runs --------------------------------------------------------------------------------------


def test_an_old_run_folder_gets_one_line() -> None:
    old = {"iterations": 3, "group": 4, "prompts_per_step": 2, "lr": 1e-3}
    with pytest.raises(UsageError, match=r"^config was written by another version of Config: .* more differ") as told:
        config_from_json(sft.Config, old)
    assert len(str(told.value)) < 200 and flag("group_size") == "--group-size"
