"""Vision-language models that say actions: tiny ones with random weights, of several families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autotelic.envs.action_scale import ActionScale
from autotelic.envs.simulator import View
from autotelic.errors import UsageError
from autotelic.testing.vlms import vlm
from autotelic.trainers.advantages import grpo
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.lora import add_lora
from autotelic.trainers.objectives import PPOClip, WeightedImitation
from autotelic.types import Rollout, Task
from autotelic.vla.chunk_policy import Seen
from autotelic.vla.openvla import OpenVLAPolicy, _image, statistics_of

from . import point_mass


def policy(family: str = "llava", seed: int = 0, **changes: Any) -> OpenVLAPolicy:
    model, processor = vlm(family, seed)
    given: dict[str, Any] = {"chunk": 2, "action_size": 3, "bins": 8, "view": View(32)}
    return OpenVLAPolicy(model, processor, **(given | changes))


def seen(count: int = 5) -> Seen:
    told = ["red circle", "left", "Red circle", "left", "blue"][:count]
    frames = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Seen(told, torch.zeros(count, 0), {"main": frames})


def dice(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def warm(count: int, temperature: float = 1.0) -> dict[str, torch.Tensor]:
    return {"temperature": torch.full((count,), temperature)}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "llava"])
def test_recomputed_log_probabilities_are_the_sampled_ones(family: str) -> None:
    """Sampling reads with a cache, token by token; scoring reads everything at once."""
    made = policy(family, sample_rows=2)
    choice = made.choose(seen(), dice(5), 1.3)
    now = made.score(seen(), {**choice.stored, **warm(5, 1.3)})
    assert choice.log_probs is not None
    torch.testing.assert_close(now.log_probs.detach(), choice.log_probs, atol=2e-5, rtol=0)
    logs = (made.logits(seen(), choice.stored["tokens"]) / 1.3).log_softmax(-1)
    assert logs.shape == (5, 6, 8)
    torch.testing.assert_close(now.entropy, -(logs.exp() * logs).sum(-1))
    assert len({tuple(row) for row in choice.stored["tokens"].tolist()}) > 1


def test_an_episode_depends_on_its_own_random_numbers_alone() -> None:
    made, shown = policy(), seen()
    whole = made.choose(shown, dice(5))
    alone = made.choose(shown.select([3]), dice(4)[3:])
    assert torch.equal(alone.actions[0], whole.actions[3])


def test_samples_follow_the_probabilities() -> None:
    made, shown = policy(chunk=1, action_size=1, sample_rows=100), seen(1)
    many = Seen(["left"] * 600, torch.zeros(600, 0), {"main": shown.frames["main"].expand(600, -1, -1, -1)})
    tokens = made.choose(many, dice(600)).stored["tokens"]
    first = Seen(["left"], torch.zeros(1, 0), shown.frames)
    wanted = made.logits(first, torch.zeros(1, 1, dtype=torch.long)).softmax(-1)[0, 0]
    found = torch.bincount(tokens.flatten(), minlength=8) / 600
    assert (found - wanted).abs().max() < 0.07
    greedy = made.choose(first, None)
    assert greedy.stored["tokens"].item() == wanted.argmax() and greedy.log_probs is not None
    assert greedy.log_probs.tolist() == [[0.0]]


def test_bins_by_hand() -> None:
    """With five edges -1, -.5, 0, .5, 1 there are four centres; the highest bin holds 1 alone and shares the last."""
    made = policy(bins=5)
    values = torch.tensor([-1.0, -0.6, -0.5, 0.1, 0.99, 1.0])
    assert made.tokens_of(values).tolist() == [0, 0, 1, 2, 3, 4]
    assert made.actions_of(torch.arange(5)).tolist() == [-0.75, -0.25, 0.25, 0.75, 0.75]
    # numpy.digitize counts from 1, and a token's id is the vocabulary's size less that: so it is in OpenVLA.
    digits = np.digitize(values.numpy(), np.linspace(-1, 1, 5))
    plain = policy(bins=5, vocabulary=20)
    assert plain.action_ids[plain.tokens_of(values)].tolist() == (20 - digits).tolist()


def test_action_ids_leave_special_tokens_alone() -> None:
    made = policy("smolvlm")
    special = set(made.processor.tokenizer.all_special_ids) | {made.processor.image_token_id}
    assert not special & set(made.action_ids.tolist()) and len(made.action_ids) == 8
    with pytest.raises(UsageError, match="256 bins: the vocabulary has"):
        policy(bins=256)


def test_a_scale_says_what_tokens_mean() -> None:
    scale = statistics_of(
        {"bridge": {"action": {"q01": [0, -0.5, 0], "q99": [1, 0.5, 1], "mask": [True, True, False]}}}
    )
    made = policy(scale=scale)
    actions = torch.tensor([[[0.5, 0.4, -1.0], [0.9, -0.3, 0.9]]])
    tokens = made.imitate(seen(1), actions)["tokens"]
    back = made.actions_of(tokens.view(1, 2, 3))
    assert (back - actions).abs().max() <= 1 / 7 + 1e-6  # half a bin
    with pytest.raises(UsageError, match="actions have 3 numbers, the scale has 1"):
        policy(scale=ActionScale.between([0], [1]))
    two = {"fractal": {}, "bridge": {}}
    with pytest.raises(UsageError, match="actions of 2 data sets: give statistics, one of bridge, fractal"):
        statistics_of(two)
    with pytest.raises(UsageError, match='unknown statistics "bridg": did you mean bridge'):
        statistics_of(two, "bridg")


def brightness(made: OpenVLAPolicy, seed: int, count: int = 8) -> list[Rollout]:
    """Up for a white picture, down for a black one: rollouts with their rewards."""
    tasks = [Task(f"{seed}/{i}", "left") for i in (0, 1)]
    frames = torch.stack([torch.full((32, 32, 3), shade, dtype=torch.uint8) for shade in (0, 255)])
    rows = torch.tensor([0, 1]).repeat_interleave(count)
    shown = Seen(["left"] * 2 * count, torch.zeros(2 * count, 0), {"main": frames[rows]})
    random = [torch.Generator().manual_seed(1000 * seed + row) for row in range(2 * count)]
    choice = made.choose(shown, random)
    rollouts = []
    assert choice.log_probs is not None
    for row, which in enumerate(rows.tolist()):
        one = Seen(["left"], torch.zeros(1, 0), {"main": frames[which][None]})
        stored = {"tokens": choice.stored["tokens"][row : row + 1]}
        rollout = made.rollout(tasks[which], None, one, stored, choice.log_probs[row])
        rollout.scores["total"] = float(choice.actions[row].mean()) * (1 if which else -1)
        rollouts.append(rollout)
    return rollouts


def score_of(rollouts: list[Rollout]) -> float:
    return float(np.mean([r.scores["total"] for r in rollouts]))  # type: ignore[arg-type]


def test_it_learns_by_grpo() -> None:
    made = policy(chunk=1, action_size=2)
    learner = PolicyLearner(made, PPOClip(), Optimisation(lr=3e-3, epochs=1), advantage=grpo())
    before = score_of(brightness(made, 999, 32))
    for step in range(25):
        learner.update(brightness(made, step))
    after = score_of(brightness(made, 998, 32))
    assert before < 0.3 and after > 0.65  # at most 6/7


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_learn_and_the_rest_stays(checkpointing: bool, tmp_path: Path) -> None:
    source = policy(chunk=1, action_size=2)
    source.save_pretrained(tmp_path / "source")
    made = OpenVLAPolicy.from_pretrained(
        str(tmp_path / "source"), lora_rank=4, gradient_checkpointing=checkpointing, sample_rows=8
    )
    trained = [name for name, p in made.module.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    rollouts = brightness(made, 0)
    held = {name: p.detach().clone() for name, p in made.module.named_parameters()}
    reference = made.fork("reference")
    learner = PolicyLearner(made, PPOClip(), Optimisation(lr=1e-2, epochs=2), advantage=grpo())
    learner.update(rollouts)
    changed = {name for name, p in made.module.named_parameters() if not torch.equal(p, held[name])}
    assert changed and changed <= set(trained)
    batch = made.collate(rollouts)
    before = reference.evaluate_actions(batch).log_probs
    torch.testing.assert_close(before, batch.log_probs["behaviour"], atol=2e-5, rtol=0)
    now = made.evaluate_actions(batch).log_probs
    assert (now - before).abs().max() > 1e-4
    made.save_pretrained(tmp_path / "adapters")
    assert not (tmp_path / "adapters/model.safetensors").exists()
    back = OpenVLAPolicy.from_pretrained(str(tmp_path / "adapters"))
    torch.testing.assert_close(back.evaluate_actions(batch).log_probs, now, atol=2e-5, rtol=0)


def test_gradients_with_checkpointing_are_the_same() -> None:
    grads = []
    for checkpointing in (False, True):
        made = policy(gradient_checkpointing=checkpointing)
        stored = {"tokens": torch.arange(6)[None] % 8, **warm(1)}
        made.score(seen(1), stored).log_probs.sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in made.module.parameters() if p.grad is not None]))
        assert not made.module.training
    assert grads[0].norm() > 0
    torch.testing.assert_close(grads[0], grads[1])


def test_divergence_by_hand() -> None:
    made, other = policy(seed=0), policy(seed=1)
    stored = {"tokens": torch.zeros(1, 6, dtype=torch.long), **warm(1)}
    kl = made.compare(seen(1), stored, {"reference": other}).kl["reference"]
    mine, theirs = (p.logits(seen(1), stored["tokens"]).log_softmax(-1) for p in (made, other))
    torch.testing.assert_close(kl, torch.nn.functional.kl_div(theirs, mine, reduction="none", log_target=True).sum(-1))
    assert (kl > 0).all()


def test_folders_remember_settings(tmp_path: Path) -> None:
    scale = ActionScale.between([0, -1, -1], [1, 1, 1], [True, False, False])
    made = policy("smolvlm", scale=scale, prompt="move {instruction}")
    made.save_pretrained(tmp_path)
    back = OpenVLAPolicy.from_pretrained(str(tmp_path))
    assert torch.equal(back.choose(seen(), dice(5)).actions, made.choose(seen(), dice(5)).actions)
    assert (back.prompt, back.view, back.bins) == ("move {instruction}", View(32), 8)


CODE = """
from transformers import LlavaConfig, LlavaForConditionalGeneration


class MineConfig(LlavaConfig):
    model_type = "mine"


class Mine(LlavaForConditionalGeneration):
    config_class = MineConfig
"""


def test_code_that_comes_with_weights_runs_only_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder made as OpenVLA's is: its own model type, the older auto class, statistics of its data sets."""
    folder = tmp_path / "folder"
    made = policy(chunk=1)
    made.module.save_pretrained(folder)  # type: ignore[operator]
    made.processor.save_pretrained(folder)
    (folder / "modeling_mine.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "norm_stats": {"bridge": {"action": {"q01": [-1] * 3, "q99": [2] * 3}}}}
    config["auto_map"] = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForVision2Seq": "modeling_mine.Mine"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="brings code of its own to run: read it, then say trust_remote_code=True"):
        OpenVLAPolicy.from_pretrained(str(folder))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(UsageError, match=r"lacks 1 weights of its model, such as lm_head.weight: it would act at"):
        OpenVLAPolicy.from_pretrained(str(folder), trust_remote_code=True)  # LLaVA's names of weights are not Mine's
    save_file(made.module.state_dict(), folder / "model.safetensors", {"format": "pt"})
    back = OpenVLAPolicy.from_pretrained(str(folder), trust_remote_code=True, bins=8, view=View(32))
    assert type(back.module).__name__ == "Mine" and (back.chunk, back.action_size) == (1, 3)
    assert back.scale is not None and back.scale.high.tolist() == [2, 2, 2]
    assert torch.equal(back.choose(seen(), dice(5)).stored["tokens"], made.choose(seen(), dice(5)).stored["tokens"])


def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot load"):
        OpenVLAPolicy.from_pretrained(str(tmp_path / "nothing"))
    made = policy()
    made.module.save_pretrained(tmp_path)  # type: ignore[operator]
    made.processor.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="does not say how many numbers an action has: give action_size"):
        OpenVLAPolicy.from_pretrained(str(tmp_path))
    with pytest.raises(UsageError, match='unknown LoRA target "nowhere"'):
        OpenVLAPolicy.from_pretrained(str(tmp_path), action_size=2, bins=8, lora_rank=2, lora_targets=["nowhere"])
    with pytest.raises(UsageError, match='wants a place for the "'):
        policy(prompt="go")


def test_it_imitates() -> None:
    made = policy(chunk=4, action_size=2, micro_batch_rows=2)
    shown = np.full((5, 32, 32, 3), 200, np.uint8)

    class Shown:
        observations, actions, images = np.zeros((5, 4), np.float32), np.full((4, 2), 0.4, np.float32), {"main": shown}

    task = point_mass.point_task(0)
    with point_mass.simulators():
        rollouts = made.encode([task], [Shown()])
    learner = PolicyLearner(made, WeightedImitation(), Optimisation(lr=3e-3, epochs=15))
    learner.update(rollouts)
    picture = Seen([point_mass.INSTRUCTION], torch.zeros(1, 0), {"main": torch.from_numpy(shown[:1])})
    assert (made.choose(picture, None).actions - 0.4).abs().max() < 0.15


# --- batches, and one pass for a chunk ------------------------------------------------------------

TOLD = ["red circle", "left", "what is in the picture", "left", "blue"]
FAMILIES = ["openvla", "llava", "qwen2_5_vl", "smolvlm"]


def unequal() -> Seen:
    """Instructions of three lengths, one of which comes twice."""
    return Seen(TOLD, torch.zeros(5, 0), seen().frames)


def counted(made: OpenVLAPolicy) -> list[int]:
    """The rows of every pass of the language model from now on."""
    rows: list[int] = []
    reader: Any = made.module
    reader.get_decoder().register_forward_hook(lambda *told: rows.append(len(told[-1][0])))
    return rows


@pytest.mark.parametrize("decoding", ["autoregressive", "parallel"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_says_what_each_robot_says_alone(family: str, decoding: Any) -> None:
    made, shown = policy(family, decoding=decoding), unequal()
    together = made.choose(shown, dice(5), 1.3)
    assert together.log_probs is not None
    for row in range(5):
        alone = made.choose(shown.select([row]), dice(5)[row : row + 1], 1.3)
        assert torch.equal(alone.stored["tokens"][0], together.stored["tokens"][row])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row], atol=1e-5, rtol=0)  # type: ignore[index]
    now = made.score(shown, {**together.stored, **warm(5, 1.3)})
    torch.testing.assert_close(now.log_probs.detach(), together.log_probs, atol=1e-5, rtol=0)
    assert len({tuple(row) for row in together.stored["tokens"].tolist()}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decision_of_many_robots_takes_a_pass_per_token_or_one(family: str) -> None:
    shown = unequal()
    many = Seen(TOLD * 13, torch.zeros(65, 0), {"main": shown.frames["main"].repeat(13, 1, 1, 1)}).select(range(64))
    for decoding, wanted in (("autoregressive", [64] * 7), ("parallel", [64])):
        made = policy(family, chunk=1, action_size=7, decoding=decoding)
        rows = counted(made)
        made.choose(many, dice(64))
        assert rows == wanted
        made.sample_rows, rows[:] = 32, []
        made.choose(many, dice(64))
        assert rows == [32] * 2 * len(wanted)


@pytest.mark.parametrize("decoding", ["autoregressive", "parallel"])
def test_the_head_is_asked_where_it_decides(decoding: Any) -> None:
    made = policy("openvla", decoding=decoding)
    places: list[int] = []
    model: Any = made.module
    model.get_output_embeddings().register_forward_hook(lambda *told: places.append(told[-1].shape[1]))
    choice = made.choose(unequal(), dice(5))
    assert places == ([8] if decoding == "parallel" else [1] * 6)
    places.clear()
    made.score(unequal(), {**choice.stored, **warm(5)})
    assert places == ([8] if decoding == "parallel" else [6])  # of some 25 tokens


@pytest.mark.parametrize("bidirectional", ["all", "actions"])
def test_parallel_decoding_by_hand(bidirectional: Any) -> None:
    """The tower's features, zeros for placeholders and the end token, through Llama's layers with a mask of ours."""
    made = policy("openvla", decoding="parallel", bidirectional=bidirectional)
    model: Any = made.module
    one = unequal().select([2])
    with torch.no_grad():
        found = made.logits(one, torch.zeros(1, 6, dtype=torch.long))
        inputs = made.processor(text=[made._text(TOLD[2])], images=[[_image(one.frames["main"][0].numpy())]])
        words = model.get_input_embeddings()(inputs["input_ids"])
        patches = model.projector(model.vision_backbone(inputs["pixel_values"]))
        end = model.get_input_embeddings()(torch.tensor([[made.processor.tokenizer.eos_token_id]]))
        count = made.processor.patches
        given = torch.cat([words[:, :1], patches, words[:, 1 + count :], torch.zeros(1, 6, 32), end], 1)
        size = given.shape[1]
        looks = torch.ones(size, size).bool()
        if bidirectional == "actions":
            looks = looks.tril()
            looks[-7:] = True
        mask = torch.zeros(1, 1, size, size).masked_fill(~looks, -torch.inf)
        model.language_model.config._attn_implementation = "eager"
        logits = model.language_model(inputs_embeds=given, attention_mask=mask).logits
    last = size - 8  # of the prompt
    torch.testing.assert_close(found, logits[:, last : last + 6][..., made.action_ids], atol=1e-5, rtol=0)
    first = policy("openvla").logits(one, torch.zeros(1, 6, dtype=torch.long))[:, 0]
    same = torch.allclose(first, found[:, 0], atol=1e-5)
    assert same == (bidirectional == "actions"), "a prompt that looks back alone says the first token as ever"


def test_parallel_decoding_learns_by_grpo_and_is_kept(tmp_path: Path) -> None:
    made = policy("openvla", chunk=2, action_size=1, decoding="parallel", bidirectional="actions")
    learner = PolicyLearner(made, PPOClip(), Optimisation(lr=3e-3, epochs=1), advantage=grpo())
    before = score_of(brightness(made, 999, 32))
    for step in range(20):
        learner.update(brightness(made, step))
    assert score_of(brightness(made, 998, 32)) > before + 0.3
    made.save_pretrained(tmp_path)
    back = OpenVLAPolicy.from_pretrained(str(tmp_path))
    assert (back.decoding, back.bidirectional) == ("parallel", "actions")
    assert torch.equal(back.choose(unequal(), dice(5)).log_probs, made.choose(unequal(), dice(5)).log_probs)  # type: ignore[arg-type]


def test_parallel_decoding_wants_attention_that_takes_a_mask() -> None:
    made = policy("openvla", decoding="parallel")
    model: Any = made.module
    model.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(UsageError, match="needs attn_implementation sdpa or eager, and the model has flash_att"):
        made.choose(unequal(), None)


def test_openvla_folders_need_no_code_of_theirs(tmp_path: Path) -> None:
    """The published layout: statistics in the configuration, weights by the published names, Llama's lonely space."""
    made = policy("openvla", chunk=1)
    made.module.save_pretrained(tmp_path)  # type: ignore[operator]
    made.processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"norm_stats": {"bridge": {"action": {"q01": [-1] * 3, "q99": [2] * 3}}}}
    config |= {"auto_map": {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match='unknown statistics "fractal"'):
        OpenVLAPolicy.from_pretrained(str(tmp_path), bins=8, view=View(32), statistics="fractal")
    back = OpenVLAPolicy.from_pretrained(str(tmp_path), bins=8, view=View(32), ending=[5])
    assert type(back.module).__name__ == "PrismaticVLA" and back.scale is not None
    assert back.scale.high.tolist() == [2, 2, 2] and back.action_size == 3
    names = set(back.module.state_dict())
    assert {"projector.fc3.weight", "vision_backbone.featurizer.blocks.0.ls1.scale_factor"} <= names
    assert {"vision_backbone.fused_featurizer.pos_embed", "language_model.model.layers.0.mlp.up_proj.weight"} <= names
    assert not any("fused_featurizer" in name and "scale_factor" in name for name in names)
    back.ending = ()
    assert torch.equal(
        back.choose(unequal(), dice(5)).stored["tokens"], made.choose(unequal(), dice(5)).stored["tokens"]
    )


def test_forks_share_what_is_frozen() -> None:
    made = policy("openvla")
    add_lora(made.module, 2)
    start = made.fork("start")
    mine, theirs = (each.module.state_dict(keep_vars=True) for each in (made, start))
    own = {name for name in mine if theirs[name].data_ptr() != mine[name].data_ptr()}
    assert own == set(made.trained()) and own and all("lora_" in name for name in own)
    assert start.processor is made.processor, "what makes pixels and ids is shared too"
