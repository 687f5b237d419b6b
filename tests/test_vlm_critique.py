"""Critics of the small world by hand: what a second look holds up, what a verifier asks again, what recipes pay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autotelic.envs.toys import scenes
from autotelic.envs.toys.scenes import KINDS, Answer, Question, Scene
from autotelic.errors import UsageError
from autotelic.rewards.models.judge import YesNoJudge
from autotelic.rewards.models.vlm import tokens_of
from autotelic.rewards.text.verifiers import Exact
from autotelic.testing import vlms as tiny_vlms
from autotelic.trainers.objectives import PPOClip
from autotelic.trainers.setting import make
from autotelic.types import Rollout, Task
from autotelic.vlm.asking import Asking, AskingConsensus, PolicyAsker, own_rewards
from autotelic.vlm.continuation import Continuation
from autotelic.vlm.conversation import Conversation, Reply, Transcript, Turn
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.recipes import grpo, mstar, viper
from autotelic.vlm.small.critique import Standing, StepCritique, Verdict, Verifier, agreed
from autotelic.vlm.small.glimpse import END, IDS
from autotelic.vlm.small.glimpse_training import new_model
from autotelic.vlm.small.rereading import OwnEyes, Rereading, RereadingConsensus, standing
from autotelic.vlm.temperature import Temperature, Tempered

from .small_speaking import asked, untrained
from .test_scenes import ROOM, scene_of

BLANK = np.zeros((32, 32, 3), np.uint8)


class Reader:
    """Eyes that read one scene in every picture, each cell as surely as it is told."""

    def __init__(self, scene: Scene = ROOM, sure: Sequence[float] = (1.0,) * 16) -> None:
        self.scene, self.surely = scene, list(sure)

    def __call__(self, pictures: Sequence[Any]) -> list[Scene]:
        return [self.scene] * len(pictures)

    def sure(self, picture: Any) -> list[float]:
        return self.surely


def columns(*rows: tuple[str, str, str]) -> dict[str, Any]:
    """Columns of (group, question, answer)."""
    groups, prompts, completions = ([row[i] for row in rows] for i in range(3))
    return {"groups": groups, "prompts": prompts, "completions": completions, "images": [(BLANK,)] * len(rows)}


# --- eyes ------------------------------------------------------------------------------------------


class CountedEyes(OwnEyes):
    """Counts the pictures that the model looks at."""

    def __init__(self, **options: Any) -> None:
        model = new_model(0)
        super().__init__(model, **options)
        self.looked: list[int] = []
        model.see.register_forward_pre_hook(lambda _, inputs: self.looked.append(len(inputs[0]) // 16))


def test_eyes_read_what_the_model_finds_likeliest_and_equal_pictures_once() -> None:
    pictures = [task.images[0] for task in asked("how many red", "how many blue", "how many disc")]
    eyes = CountedEyes()
    first = eyes([pictures[0], pictures[1], pictures[0]])
    assert eyes.looked == [2] and first[0] == first[2]
    assert eyes(pictures) == [first[0], first[1], eyes([pictures[2]])[0]] and eyes.looked == [2, 1]
    likely, kinds = eyes.model.kinds(eyes.model.look(torch.from_numpy(np.stack(pictures)))).exp().max(-1)
    assert eyes(pictures) == [tuple(row) for row in kinds.tolist()]
    assert eyes.sure(pictures[1]) == pytest.approx(likely[1].tolist(), rel=1e-5)
    assert eyes([]) == []


def test_eyes_forget_before_they_know_too_much() -> None:
    pictures = [task.images[0] for task in asked(*["how many red"] * 5)]
    eyes, plain = CountedEyes(keep=3), CountedEyes()
    for some in (pictures[:2], pictures[1:4], pictures):
        assert eyes(some) == plain(some)
    assert plain.looked == [2, 2, 1] and eyes.looked == [2, 3, 5]
    assert eyes.sure(pictures[0]) == plain.sure(pictures[0])


# --- the consensus of those that look again --------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "said", "word"),
    [
        ("what is right of red_disc", ["p0 p1 = blue_plus", "p0 p4 = green_disc", "p0 p1 = red_disc"], "blue_plus"),
        ("what is right of red_disc", ["p0 p4 = green_disc", "p4 p5 = red_square"], None),
        ("what is right of red_disc", [], None),
        ("how far red_disc to blue_disc", ["p0 p15 = 6", "p0 p15 = 5", "p0 p15 = 5"], "6"),
        ("how many disc", ["p0 p4 = 2", "p15 = 1", "p5 = 1"], "3"),  # cells that any pointed at and that hold up
        ("how many yellow", ["p0 = 1", "= 0"], "0"),
        ("how many red or disc", ["p0 p4 p0 = 3"], "2"),
        ("how many disc", [], None),
    ],
)
def test_the_consensus_by_hand(question: str, said: list[str], word: str | None) -> None:
    answers = [scenes.parse_answer(text) for text in said]
    assert all(isinstance(answer, Answer) for answer in answers)
    found = standing(Question.parse(question), answers, ROOM)  # type: ignore[arg-type]
    assert (None if found is None else found.word) == word


def test_agreement_with_the_consensus_by_hand() -> None:
    reward = RereadingConsensus(Reader())
    table = columns(
        ("a", "what is right of red_disc", "p0 p1 = blue_plus"),
        ("b", "how many disc", "p0 p4 = 2"),
        ("a", "what is right of red_disc", "p4 p1 = blue_plus"),  # right for a wrong reason: agrees
        ("a", "what is right of red_disc", "p0 p1 = red_disc"),
        ("b", "how many disc", "p15 = 1"),
        ("b", "how many disc", "p0 p4 p5 = 3"),
        ("b", "how many disc", "three"),
        ("c", "what is up of blue_plus", "p1 p0 = red_disc"),  # nothing stands: does not apply
    )
    assert reward(**table) == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, None]
    assert reward(**columns(("c", "what is up of blue_plus", "p1 p0 = red_disc"))) == [0.0], "a round goes on"


def test_the_share_of_claims_that_hold_by_hand() -> None:
    table = columns(
        ("a", "what is right of red_disc", "p0 p1 = blue_plus"),
        ("a", "what is right of red_disc", "p0 p4 = green_disc"),
        ("a", "what is right of red_disc", "p4 p5 = red_disc"),
        ("a", "what is right of red_disc", "blue_plus"),
        ("b", "how many yellow", "= 0"),
    )
    assert Rereading(Reader())(**table) == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0, 1.0])


def test_what_stands_of_several_attempts_is_imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that no single attempt made; the answer most agree on; and nothing where nothing stands."""
    policy, eyes = untrained(), Reader()
    tasks = asked("how many disc", "what is up of blue_plus", "what is right of red_disc")
    said = [
        *("p0 p4 = 2", "p15 = 1", "p0 p4 p5 = 3", "yes"),
        *("p1 p0 = red_disc",) * 4,
        *("p0 p1 = blue_plus", "p0 p4 = green_disc", "p4 p1 = blue_plus", "p0 p1 = blue_plus"),
    ]

    def act(asked_of: Sequence[Task], n: int, **sampling: Any) -> list[Rollout]:
        return policy.encode([task for task in asked_of for _ in range(n)], said)

    monkeypatch.setattr(policy, "act", act)
    actor = Standing(policy, eyes)  # type: ignore[arg-type]
    found = actor.act(tasks, 4, key=(1,))
    assert [(rollout.task.id, rollout.output) for rollout in found] == [
        ("q0", "p0 p4 p15 = 3"),
        ("q2", "p0 p1 = blue_plus"),
    ]
    assert agreed(found) == [0.25, 0.75] and found[0].log_probs is None
    assert [rollout.output for rollout in actor.act(tasks, 4, mode="evaluate")] == said, "a gate asks the policy itself"


# --- steps, confidence and repair ------------------------------------------------------------------

UNSURE = [0.9, 0.6, *[1.0] * 14]
"""Cell 0 is read at 0.9, cell 1 at 0.6."""


def critic(**options: Any) -> StepCritique:
    eyes: Any = Reader(sure=UNSURE)
    return StepCritique(eyes, RereadingConsensus(eyes), **options)


def test_a_verdict_stands_as_far_as_the_look_is_sure() -> None:
    assert (Verdict(1.0, 0.8).stands, Verdict(-1.0, 0.75).stands) == (0.8, 0.25)


def test_verdicts_by_hand() -> None:
    judge = critic()
    right = judge.verdicts("what is right of red_disc", "p0 p1 = blue_plus", BLANK)
    assert right == [Verdict(1.0, 0.9), Verdict(1.0, 0.6), Verdict(1.0, 0.6)], "the answer is as sure as its least cell"
    wrong = judge.verdicts("what is right of red_disc", "p0 p4 = red_disc", BLANK)
    assert wrong == [Verdict(1.0, 0.9), Verdict(-1.0, 1.0), Verdict(-1.0, 0.9)]
    assert judge.verdicts("how many yellow", "= 0", BLANK) == [Verdict(1.0, 1.0)]
    assert judge.verdicts("how many yellow", "none", BLANK) == [Verdict(-1.0, 1.0)]


def test_step_rewards_by_hand() -> None:
    """gamma 0.5, tau 0.7, kappa 10, cost 0.1: gates are sigmoid(-2) at 0.9, sigmoid(1) at 0.6, sigmoid(7) at 0 and
    sigmoid(-3) at 1."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    judge = critic(gamma=0.5, cost=0.1, outcome=2.0)
    question = "what is right of red_disc"
    repaired = Transcript([Turn("p0 p4 = red_disc", Reply("again")), Turn("p0 p1 = blue_plus")])
    table = columns(("a", question, "p0 p1 = blue_plus"), ("a", question, "no"), ("a", question, repaired))
    found = judge(**table)
    unsure = 0.6 - 0.1 * sigmoid(1)
    first = (0.9 - 0.1 * sigmoid(-2) + 0.5 * unsure + 0.25 * unsure) / 3
    second = -1.0 - 0.1 * sigmoid(7)
    assert found["steps"] == pytest.approx([first, second, first - 0.1])
    assert found["consensus"] == [1.0, 0.0, 1.0]
    assert found["total"] == pytest.approx([2 + first, second, 2 + first - 0.1])


def test_a_question_on_which_nothing_stands_is_not_paid() -> None:
    table = columns(("a", "how many yellow", "= 0"), ("b", "what is right of red_disc", "no"))
    found = critic()(**table)
    assert found["consensus"] == [1.0, None] and found["total"][1] is None and found["total"][0] is not None
    alone = critic()(**columns(("b", "what is right of red_disc", "no")))
    assert alone["consensus"] == alone["total"] == [0.0]


def test_the_verifier_asks_again_where_a_step_does_not_stand() -> None:
    task = Task("x", "what is down of red_disc", (BLANK,))
    verify = Verifier(critic())

    def reply(text: str, asked_of: Task = task) -> Reply:
        return verify(asked_of, [Turn("p1 = 0", Reply("again")), Turn(text)])

    assert reply("p0 p4 = green_disc").done, "0.9 and 1"
    again = reply("p0 p4 = red_disc")
    assert (again.text, again.done) == ("again", False), "a claim that fails"
    assert not reply("p0 p1 = blue_plus", Task("y", "what is right of red_disc", (BLANK,))).done, "0.6 is under 0.7"
    assert not reply("nothing").done


def test_a_policy_that_converses_with_its_verifier_hears_again(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = untrained(horizon=14)
    head, brief = policy.backbone.head, torch.zeros(len(IDS)).index_fill(0, torch.tensor([IDS[END]]), 12.0)

    def soon_at_an_end(hidden: torch.Tensor) -> torch.Tensor:
        return head(hidden) + brief

    monkeypatch.setattr(policy.backbone, "head", soon_at_an_end)
    found = Conversation(policy, Verifier(critic()), turns=2).act(asked("how many red", "how many disc"), 4, key=(1,))
    ended = [rollout for rollout in found if not rollout.info["truncated"]]
    assert len(ended) > 3 and {rollout.info["turns"] for rollout in ended} == {2}, "what has learned nothing falls"
    for rollout in ended:
        assert rollout.output.turns[0].reply.text == "again"
        tokens, mask = rollout.payload["tokens"], rollout.mask
        assert IDS["again"] in tokens[~mask].tolist()


# --- being asked -----------------------------------------------------------------------------------


def test_the_models_own_yes_by_its_plain_forward_pass() -> None:
    judge = untrained(sample_tokens=150)
    tasks = asked("how many red", "what is up of red_disc", "which is odd")
    said = ["p4 = 1", "p1 p0 = red_disc", "p3 = red_plus"]
    asker = PolicyAsker(judge)
    found = asker.rightness(tasks, said)
    model: Any = judge.module
    for task, text, probability in zip(tasks, said, found, strict=True):
        (prompt,) = judge.renderer.prompts([Task("check", f"{task.prompt} check {text}", task.images)])
        ids = torch.cat([prompt.ids, torch.tensor([IDS["="]])])[None]
        kinds = torch.tensor([[0] * len(prompt.ids) + [1]])
        logits = model(input_ids=ids, pixel_values=prompt.inputs["pixel_values"][None], token_type_ids=kinds).logits
        pair = logits[0, -1, [IDS["yes"], IDS["no"]]].softmax(-1)
        assert probability == pytest.approx(pair[0].item(), rel=1e-4)
    assert Asking(judge)(tasks=tasks, completions=said) == found
    long = asker.rightness(tasks[:1], ["p1 " * 30 + "= 3"])
    assert long == pytest.approx(asker.rightness(tasks[:1], ["p1 " * 16])), "of rambling the beginning is read"


def test_votes_count_as_much_as_they_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    believed = {"p0 = 1": 0.2, "p1 = 1": 0.2, "p0 p1 = 2": 0.5, "p4 = red_disc": 0.1, "": 0.9, "p3 = 4": 0.3}
    monkeypatch.setattr(PolicyAsker, "rightness", lambda self, tasks, said: [believed[text] for text in said])
    reward = AskingConsensus(untrained())

    def scores(*rows: tuple[str, str]) -> list[float]:
        groups, said = [row[0] for row in rows], [row[1] for row in rows]
        return reward(tasks=asked(*["how many red"] * len(rows)), completions=said, groups=groups)

    two = (("a", "p0 = 1"), ("b", "p4 = red_disc"), ("a", "p1 = 1"), ("a", "p0 p1 = 2"))
    assert scores(*two) == [0, 1, 0, 1], "0.5 for 2 against 0.4 for 1"
    assert scores(*two, ("a", "p0 = 1")) == [1, 1, 1, 0, 1], "0.5 against 0.6"
    assert scores(("a", ""), ("a", "p3 = 4")) == [0, 1], "no answer is no vote, however believed"
    assert scores(("a", "")) == [0]


def test_a_model_of_ones_own_is_asked_in_words(tmp_path: Path) -> None:
    """P(yes) by hand from the model's own forward pass over the whole question."""
    model, processor = tiny_vlms.text("llama")
    judge = TokenPolicy.of(model, processor)
    task = Task("a", "what is red")
    (found,) = PolicyAsker(judge).rightness([task], ["blue"])
    prompt = judge.renderer.prompt(
        Task("b", "Question: what is red\nAnswer: blue\nIs the answer right? Answer yes or no.")
    )
    with torch.no_grad():
        logits = model(prompt.ids[None]).logits[0, -1]
    ids = [tokens_of(processor, word) for word in ("yes", "no")]
    yes, no = (logits[i].logsumexp(-1) for i in ids)
    assert found == pytest.approx(float((yes - no).sigmoid()), abs=1e-5)


# --- captions and operations (ViPER) ---------------------------------------------------------------


def test_what_comes_back_from_a_caption_is_paid_by_hand() -> None:
    """Of ROOM's five objects: all, two of three said, one wrong place, none."""

    def draw(captions: Sequence[str]) -> list[Any]:
        return [scenes.redraw(caption) or (0,) * 16 for caption in captions]

    class Eyes:
        """Reads scenes as they are, and pictures as ROOM."""

        def __call__(self, pictures: Sequence[Any]) -> list[Scene]:
            return [picture if isinstance(picture, tuple) else ROOM for picture in pictures]

    said = [scenes.caption(ROOM), "p0 red_disc p1 blue_plus p2 red_disc", "p3 red_disc", "p0 red", ""]
    found = viper.Redrawn(draw, Eyes(), 0.05)(completions=said, images=[(BLANK,)] * 5)
    assert found == pytest.approx([1.0, 0.05 + 0.95 * 2 * 2 / (5 + 3), 0.05, 0.0, 0.0])


def test_telling_an_operation_is_paid_by_hand() -> None:
    said = ["= p3 gone", "= p3 into red_plus", "= p3", "p3 gone", "p1 = p3 gone", "= p3 gone now and then"]
    assert viper.Operation(0.05)(completions=said, operation=["p3 gone"] * 6) == pytest.approx([1, 0.05, 0, 0, 0.95, 0])


def test_changes_are_made_in_what_the_start_reads() -> None:
    (task,) = asked("how many red")
    changed = viper.Changed(lambda index: task, Reader(), seed=3)(0)
    assert changed.prompt == f"change from {scenes.caption(ROOM)}" and changed.id == "q0/changed"
    told = changed.extra["operation"]
    assert set(changed.extra) == {"operation"} and changed.reference is None
    (again,) = (viper.Changed(lambda index: task, Reader(), seed=3)(0),)
    assert again.extra["operation"] == told and (again.images[0] == changed.images[0]).all()
    assert not (changed.images[0] == task.images[0]).all()
    described = viper.Described(lambda index: task)(0)
    assert (described.prompt, described.id) == ("describe", "q0/describe") and described.images is task.images


# --- right and sound answers (M-STaR) --------------------------------------------------------------


def test_right_answers_are_paid_by_how_sound_they_are() -> None:
    table = columns(
        ("a", "what is right of red_disc", "p0 p1 = blue_plus"),
        ("a", "what is right of red_disc", "p4 p1 = blue_plus"),  # right, but it begins and goes elsewhere
        ("a", "what is right of red_disc", "p0 p1 = red_disc"),
        ("a", "what is right of red_disc", "= blue_plus"),
    ) | {"references": ["blue_plus"] * 4}
    both = mstar.RightAndSound(Exact(), Rereading(Reader()))
    assert both(**table) == pytest.approx([1.0, 0.5 * (1 + 1 / 3), 0.0, 0.5])
    assert mstar.RightAndSound(Exact())(**table) == [1.0, 1.0, 0.0, 1.0]


def test_the_best_that_score_are_imitated() -> None:
    policy = untrained()
    rollouts = policy.encode(asked(*["how many red"] * 7), ["= 1"] * 7)
    for rollout, group, score in zip(rollouts, "aaaabbb", (0.5, 1.0, 0.75, 0.75, 0.0, 0.6, 0.0), strict=True):
        rollout.group, rollout.scores["total"] = group, score
    batch = mstar.Top(2)(policy.collate(rollouts))
    assert batch.columns["weight"].tolist() == [0, 1, 1, 0, 0, 1, 0]


class Fickle:
    """At temperature 1.3 the best two of eight have a right answer on all questions, else on the first alone."""

    def __init__(self) -> None:
        self.keys: list[Any] = []

    def act(self, tasks: Sequence[Task], n: int, *, key: Any, temperature: float) -> list[Rollout]:
        self.keys.append(key)
        ones = torch.ones(1)
        found = []
        for place, task in enumerate(tasks):
            for sample in range(n):
                sound = sample if temperature == 1.3 or place == 0 else -sample
                output = ("right" if sample == n - 2 else "wrong", sound)
                found.append(Rollout(task, output, {}, None, ones.bool(), ones.long()))
        return found


def fickle_reward(sound: bool = True) -> mstar.RightAndSound:
    right = lambda completions, **_: [float(said[0] == "right") for said in completions]  # noqa: E731
    return mstar.RightAndSound(right, (lambda completions, **_: [said[1] for said in completions]) if sound else None)


def test_the_temperature_that_pays_is_chosen_every_few_rounds() -> None:
    policy, tasks = Fickle(), asked("how many red", "how many blue")
    values, how = (0.5, 1.3, 0.9), {"start": 1.0, "every": 2, "seed": 4}
    tuner = Temperature(policy, tasks, fickle_reward(), values, **how)
    assert (tuner.reward_pass(1.3), tuner.reward_pass(0.5)) == (1.0, 0.5)
    assert tuner.value == 1.0
    policy.keys.clear()
    assert [tuner.update([]) for _ in range(3)] == [{"answers/temperature": 1.3}] * 3
    assert len(policy.keys) == 2 * 3 and len(set(policy.keys)) == 2, "before rounds 1 and 3, all at equal numbers"
    fresh = Temperature(policy, tasks, fickle_reward(), values, **how)
    fresh.load_state_dict(tuner.state_dict())
    assert (fresh.value, fresh.updates) == (1.3, 3)
    still = Temperature(policy, tasks, fickle_reward(), (), start=1.0, every=0)
    assert still.update([]) == {"answers/temperature": 1.0}
    unsound = Temperature(policy, tasks, fickle_reward(sound=False), values, **how)
    assert unsound.reward_pass(1.3) == 0.0, "without a second look the first two count"


def test_answers_are_sampled_at_the_chosen_temperature_and_imitated_at_one() -> None:
    policy, tasks = untrained(), asked("how many red")
    actor = Tempered(policy, Temperature(policy, [], fickle_reward(), (), start=0.7, every=1))
    sampled, plain = actor.act(tasks, 2, key=(1,)), policy.act(tasks, 2, key=(1,), temperature=0.7)
    assert [r.output for r in sampled] == [r.output for r in plain]
    assert [float(r.payload["temperature"]) for r in (*sampled, *plain)] == pytest.approx([1, 1, 0.7, 0.7])
    (greedy,) = actor.act(tasks, 1, mode="evaluate", greedy=True)
    assert greedy.output == policy.act(tasks, 1, greedy=True)[0].output


def test_validation_questions_come_from_the_other_end() -> None:
    def source(index: int) -> Task:
        return Task(str(index), "")

    assert [mstar.Backwards(source)(i).id for i in range(3)] == ["-1", "-2", "-3"]
    assert [mstar.Backwards([source(7), source(8)])(i).id for i in range(3)] == ["8", "7", "8"]


# --- published variants of the loss ----------------------------------------------------------------


def test_published_variants_of_the_loss() -> None:
    config = grpo.Config().resolved(small=True)
    offered = {"config": config, "longest": config.max_new_tokens}
    kinds = {name: make("objective", name, **offered) for name in ("grpo", "dr_grpo", "dapo", "gspo")}
    plain, dr, dapo, gspo = (objective for objective, _ in kinds.values())
    assert plain == PPOClip() and dr == PPOClip(aggregate=14), "by the longest answer of the default model"
    assert dapo == PPOClip(clip_high=0.28, aggregate="decision") and gspo == PPOClip(3e-4, 4e-4, level="sequence")
    longest, _ = make("objective", "dr_grpo", config=config, longest=20)
    assert longest == PPOClip(aggregate=20)
    rollouts = (policy := untrained()).encode(asked(*["how many red"] * 4), ["= 1"] * 4)
    for rollout, score in zip(rollouts, (1.0, 0.0, 0.0, 0.0), strict=True):
        rollout.group, rollout.scores["total"] = "a", score
    batch = policy.collate(rollouts)
    centred = torch.tensor([0.75, -0.25, -0.25, -0.25])
    torch.testing.assert_close(kinds["dr_grpo"][1](batch)[:, 0], centred)
    assert torch.allclose(kinds["grpo"][1](batch)[:, 0] / centred, torch.full((4,), 2.0), atol=0.6)


def test_a_scene_read_empty_can_still_be_changed(tmp_path: Path) -> None:
    (task,) = asked("how many red")
    changed = viper.Changed(lambda index: task, Reader(scene_of()), seed=0)(0)
    assert changed.prompt == "change from " and changed.extra["operation"].split()[1] == "new"
    assert changed.extra["operation"].split()[2] in KINDS


def shaken(policy: TokenPolicy) -> None:
    """Other weights."""
    with torch.no_grad():
        for number, weight in enumerate(policy.parameters()):
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))


def test_a_live_judge_has_the_weights_of_now_and_a_frozen_one_those_of_then() -> None:
    policy = untrained()
    tasks, said = asked("how many red", "which is odd"), ["p4 = 1", "p3 = red_plus"]
    live, then = Asking(policy, live=True), Asking(policy)
    before = then(tasks=tasks, completions=said)
    assert live(tasks=tasks, completions=said) == before
    policy.module.train()
    shaken(policy)
    after = live(tasks=tasks, completions=said)
    assert policy.module.training, "its mode is what it was"
    assert max(abs(a - b) for a, b in zip(after, before, strict=True)) > 1e-3
    assert then(tasks=tasks, completions=said) == before
    assert after == Asking(policy.fork("now"))(tasks=tasks, completions=said), "in eval mode for the time of asking"
    assert all(weight.grad is None for weight in policy.parameters())
    start = policy.fork("start")
    assert Asking(start).asker.policy is start, "what has nothing to train is frozen already"
    assert live.families == then.families == {"policy:self"}


def test_a_judge_in_words_asks_a_policy_as_any_other_asker() -> None:
    policy = TokenPolicy.of(*tiny_vlms.text("llama"))
    asker = PolicyAsker(policy)
    judge = YesNoJudge(asker=asker)
    answers = judge(prompts=["what is red", "what is red"], completions=["blue", "cat cat"])
    assert answers == pytest.approx(asker.rightness([Task("a", "what is red")] * 2, ["blue", "cat cat"]), abs=1e-6)
    assert len(set(answers)) == 2 and judge.families == {"policy:self"}
    with pytest.raises(UsageError, match="sees pictures before words"):
        asker([("words", Image.new("RGB", (4, 4)))])


# --- going on from a beginning ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["small", "llama"])
def test_a_continuation_goes_on_as_the_policy_would_have(kind: str) -> None:
    """Nearly greedy: cut anywhere, what follows is the rest of the greedy answer."""
    policy = untrained(horizon=8) if kind == "small" else TokenPolicy.of(*tiny_vlms.text("llama"), horizon=8)
    task = asked("how many red")[0] if kind == "small" else Task("a", "what is red")
    (whole,) = policy.act([task], 1, greedy=True)
    ids = whole.payload["tokens"].tolist()
    words = [policy.renderer.text(torch.tensor(ids[:cut])) for cut in (0, 2, 5)]
    if any(policy.renderer.tokens(text)[:-1].tolist() != ids[:cut] for text, cut in zip(words, (0, 2, 5), strict=True)):
        pytest.skip("what it says is not read as it was said")
    goes_on = Continuation(policy, temperature=1e-4)
    texts = goes_on([task] * 3, words, 2)
    assert texts == [[policy.renderer.text(torch.tensor(ids[cut:]))] * 2 for cut in (0, 2, 5)]


def test_continuations_are_drawn_apart_and_end_with_the_horizon() -> None:
    policy = untrained(horizon=6)
    (task,) = asked("how many red")
    goes_on = Continuation(policy, live=True)
    (four,) = goes_on([task], ["p4"], 4)
    assert len(set(four)) > 1 and goes_on([task], ["p4"], 4) == [four], "by task, beginning and sample alone"
    assert goes_on([task, task], ["p4 = 1", "p4"], 4)[1] == four, "whoever else is asked"
    assert all(len(text.split()) <= 5 for text in four)
    assert goes_on([task], ["p1 p2 p3 p4 p5 p6"], 2) == [["", ""]]


def test_rewards_that_need_the_policy_by_name() -> None:
    policy = untrained(horizon=6)
    start = policy.fork("start")
    (task,) = asked("how many red")
    rollouts = policy.act([task], 3)
    made = {name: make() for name, make in own_rewards(policy, start).items()}
    given = {"rollouts": rollouts, "tasks": [task] * 3, "completions": [r.output for r in rollouts]}
    given |= {"references": [task.reference] * 3, "groups": ["a"] * 3, "prompts": [task.prompt] * 3}
    assert made["log_ratio"](**given) == pytest.approx([0.0] * 3)
    shaken(policy)
    assert max(map(abs, made["log_ratio"](**given))) > 1e-3, "the live policy against its start"
    assert [len(reward(**given)) for reward in made.values()] == [3] * 4
    assert made["self_yes_no"].asker.policy is start
    assert own_rewards(policy, start, live=True)["self_yes_no"]().asker.policy is policy
