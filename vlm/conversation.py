"""Conversations: the policy speaks, an environment answers, and the policy goes on from what it has read.

A user, a tool, a critic or the same model in another role: whatever answers is a function of the task and the turns
so far. What it says stands among the rollout's tokens, masked, so that objectives see the policy's words alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import UsageError
from ..trainers.actors import SystemWrapper
from ..trainers.randomness import generator
from ..types import Key, Mode, Rollout, Task
from .backbone import Prompt, State
from .decoding import check_temperature, decode
from .policy import TokenPolicy
from .renderer import SHOWN, Renderer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Reply:
    """What an environment answers.

    Attributes:
        text, images: read by the policy before it speaks again.
        done: the conversation ends here; the policy does not read the reply.
        info: for rewards and reports.
    """

    text: str = ""
    images: tuple[Any, ...] = ()
    done: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Turn:
    """What the policy said, and what it was answered: None where it was not, at a limit."""

    text: str
    reply: Reply | None = None


Environment = Callable[[Task, Sequence[Turn]], Reply]
"""The task and the turns so far -> the answer to the last of them, whose ``reply`` is still None."""


class Transcript(str):
    """A conversation as rewards see it: a string, the policy's last words, so that any reward for texts works.

    Attributes:
        turns: all of it.
    """

    turns: tuple[Turn, ...]

    def __new__(cls, turns: Sequence[Turn]) -> Self:
        transcript = super().__new__(cls, turns[-1].text if turns else "")
        transcript.turns = tuple(turns)
        return transcript

    def messages(self) -> list[dict[str, str]]:
        """What the policy said and what it was told, in turn, as TRL has completions of chats."""
        found = []
        for turn in self.turns:
            found.append({"role": "assistant", "content": turn.text})
            if turn.reply is not None and not turn.reply.done:
                found.append({"role": "user", "content": turn.reply.text})
        return found

    def __getnewargs__(self) -> tuple[tuple[Turn, ...]]:  # type: ignore[override]  # str's own gives its text
        return (self.turns,)


@dataclass(frozen=True)
class Script:
    """An environment that says the same to everyone: line k after turn k, and nothing after the last.

    ``Script(("There may be a mistake above. Try again.",))`` makes two attempts of one (SCoRe).
    """

    lines: tuple[str, ...]

    def __call__(self, task: Task, turns: Sequence[Turn]) -> Reply:
        spoken = len(turns) - 1
        return Reply(self.lines[spoken]) if spoken < len(self.lines) else Reply(done=True)


class Conversation(SystemWrapper):
    """An actor: a token policy in conversation with an environment.

    A rollout's tokens are everything after the first prompt, the environment's masked; its segments are the turns;
    its output is a ``Transcript``. With turns=1 it is what the policy alone would do, number for number.
    Replies are read together with the turn that they answer, in one pass on what was read before. Only a reply with
    images makes its row be read anew, as one prompt, and trained by reading it whole.

    Args:
        policy: its ``horizon``, or the task's, limits each turn; its ``mask_truncated`` applies to the whole.
        environment: asked for every turn but the last.
        turns: most turns.
        longest: most tokens after the prompt; a conversation that would need more ends there, and so does one that
            would pass what the model can read.

    A conversation cut short by a limit of tokens says so in ``info["truncated"]``, its number of turns is
    ``info["turns"]``. Where the environment raises, the conversation ends there and ``info["broke"]`` says why, which
    ``watch.Watch`` counts; its ``UsageError`` ends the run.
    """

    def __init__(self, policy: TokenPolicy, environment: Environment, *, turns: int = 4, longest: int = 4096) -> None:
        if turns < 1:
            raise ValueError(f"a conversation has 1 or more turns, not {turns}")
        self.policy, self.environment = policy, environment
        self.turns, self.longest = turns, longest

    def act(
        self,
        tasks: Sequence[Task],
        n: int,
        *,
        key: Key = (0,),
        mode: Mode = "train",
        greedy: bool = False,
        temperature: float = 1.0,
    ) -> list[Rollout]:
        """n conversations per task, in task order; random numbers depend on (key, task id, sample, turn) alone."""
        check_temperature(temperature)
        policy, rollouts = self.policy, list[Rollout]()
        horizon = max([policy.horizon, *(task.horizon or 0 for task in tasks)])
        likely = min(self.longest, 2 * self.turns * horizon)  # replies as long as turns
        with policy.inference():
            work = partial(self._converse, key=None if greedy else key, temperature=temperature)
            for rows, prompts, samples in policy.together(tasks, n, likely):
                rollouts += policy.within_memory(work, [tasks[row] for row in rows], prompts, samples, likely)
        return rollouts

    def _converse(
        self, tasks: Sequence[Task], prompts: Sequence[Prompt], samples: range, *, key: Key | None, temperature: float
    ) -> list[Rollout]:
        backbone, renderer = self.policy.backbone, self.policy.renderer
        logs = []
        for task, prompt in zip(tasks, prompts, strict=True):
            room = self._room(task, prompt)
            logs += [_Log(task, sample, prompt, room) for sample in samples]
        hidden, state = backbone.read(prompts)
        work = [_Pool(logs, hidden, state, torch.arange(len(logs)) // len(samples))]
        while work:
            pool = work.pop()
            self._speak(pool, key, temperature)
            going = [row for row, log in enumerate(pool.logs) if self._answered(log)]
            seeing = [row for row in going if pool.logs[row].sees]
            listening = [row for row in going if not pool.logs[row].sees]
            if seeing:
                hidden, state = backbone.read([pool.logs[row].whole(renderer) for row in seeing])
                work.append(_Pool([pool.logs[row] for row in seeing], hidden, state, torch.arange(len(seeing))))
            if listening:
                work.append(self._listen(pool, listening))
        if broken := [log for log in logs if log.broke]:
            told = (len(broken), len(logs), broken[0].broke, broken[0].task.id)
            logger.warning("the environment broke down in %d of %d conversations: %s (task %s)", *told)
        return [log.rollout(temperature, self.policy.mask_truncated) for log in logs]

    def _room(self, task: Task, prompt: Prompt) -> int:
        """Most tokens after a prompt; a first turn that cannot be spoken in full is refused."""
        renderer = self.policy.renderer
        renderer.check_room(prompt, min(task.horizon or self.policy.horizon, self.longest))
        reach = renderer.reach
        return self.longest if reach is None or not reach.hard else min(self.longest, reach.tokens - len(prompt.ids))

    def _speak(self, pool: _Pool, key: Key | None, temperature: float) -> None:
        """One turn of every row of a pool."""
        policy = self.policy
        room = [min(log.task.horizon or policy.horizon, log.longest - len(log)) for log in pool.logs]
        noise = None if key is None else torch.stack([log.noise(key, max(room)) for log in pool.logs])
        hidden, state = pool.hidden[pool.place.to(pool.hidden.device)], policy.backbone.rows(pool.state, pool.place)
        said = decode(policy, hidden, state, torch.tensor(room), noise, temperature)
        for log, tokens, log_probs, length in zip(pool.logs, *said, strict=True):
            ids = tokens[:length].clone()
            log.truncated = int(ids[-1]) not in policy.renderer.ends
            log.speak(ids, log_probs[:length].clone())
            log.turns.append(Turn(policy.renderer.text(ids)))

    def _answered(self, log: _Log) -> bool:
        """Ask the environment; False where the conversation is over."""
        if log.truncated or len(log.turns) == self.turns:
            return False
        try:
            reply = self.environment(log.task, tuple(log.turns))
        except UsageError:
            raise
        except Exception as error:  # what a policy says can break what somebody wrote for it
            log.broke = f"{type(error).__name__}: {error}"
            return False
        log.turns[-1] = replace(log.turns[-1], reply=reply)
        if reply.done:
            return False
        ids, inputs = self._heard(reply)
        ids = torch.cat([self.policy.renderer.closing(int(log.parts[-1][-1])), ids])
        if len(log) + len(ids) >= log.longest:
            log.truncated = True
            return False
        log.listen(ids, inputs)
        return True

    def _heard(self, reply: Reply) -> tuple[Tensor, dict[str, Tensor]]:
        """A reply as the model reads it; where a tool made pictures that it cannot read, the model is told so."""
        renderer: Renderer = self.policy.renderer
        try:
            return renderer.reply(reply.text, reply.images)
        except UsageError as error:
            if not (reply.images and renderer.sees):
                raise
            logger.warning("the images of a reply cannot be shown: %s", error)
            return renderer.reply(f"{reply.text}\nerror: the images cannot be shown: {error}")

    def _listen(self, pool: _Pool, rows: Sequence[int]) -> _Pool:
        """Read a turn and its reply from where the turn began."""
        backbone, logs = self.policy.backbone, [pool.logs[row] for row in rows]
        new = [torch.cat(log.parts[-2:]) for log in logs]
        lengths = torch.tensor([len(ids) for ids in new])
        held = torch.arange(int(lengths.max())) < lengths[:, None]
        device = pool.hidden.device
        state = backbone.rows(pool.state, pool.place[list(rows)])
        outputs, state = backbone.read_on(state, pad_sequence(new, batch_first=True).to(device), held.to(device))
        everyone = torch.arange(len(logs))
        return _Pool(logs, outputs[everyone, lengths - 1], state, everyone)

    def encode(self, tasks: Sequence[Task], transcripts: Sequence[Sequence[Turn]]) -> list[Rollout]:
        """Conversations as rollouts without log-probabilities; every turn but the last needs a reply.

        Raises:
            ValueError: a turn in the middle was not answered.
        """
        renderer, rollouts = self.policy.renderer, []
        for task, turns in zip(tasks, transcripts, strict=True):
            log = _Log(task, 0, renderer.prompts([task])[0], self.longest, list(turns))
            for place, turn in enumerate(turns):
                log.speak(renderer.tokens(turn.text), None)
                if place + 1 == len(turns):
                    break
                if turn.reply is None or turn.reply.done:
                    raise ValueError(f"task {task.id}: turn {place + 1} of {len(turns)} has no reply")
                ids, inputs = renderer.reply(turn.reply.text, turn.reply.images)
                log.listen(ids, inputs)
            rollouts.append(replace(log.rollout(1.0, False), log_probs=None))
        return rollouts


@dataclass(eq=False)
class _Log:
    """One conversation so far, of at most ``longest`` tokens: ``parts``, turns and replies in alternation."""

    task: Task
    sample: int
    prompt: Prompt
    longest: int
    turns: list[Turn] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)
    log_probs: list[Tensor] = field(default_factory=list)
    shown: list[tuple[int, int, Mapping[str, Tensor]]] = field(default_factory=list)
    truncated: bool = False
    broke: str = ""

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def speak(self, ids: Tensor, log_probs: Tensor | None) -> None:
        self.parts.append(ids)
        self.log_probs.append(torch.zeros(len(ids)) if log_probs is None else log_probs)

    def listen(self, ids: Tensor, inputs: Mapping[str, Tensor]) -> None:
        if inputs:
            self.shown.append((len(self), len(self) + len(ids), inputs))
        self.parts.append(ids)
        self.log_probs.append(torch.zeros(len(ids)))

    @property
    def sees(self) -> bool:
        """Whether the newest tokens are a reply with images."""
        return bool(self.shown) and self.shown[-1][1] == len(self)

    def noise(self, key: Key, longest: int) -> Tensor:
        """[T] in 0..1; that of the first turn is the policy's own."""
        turn = (len(self.turns),) if self.turns else ()
        return torch.rand(longest, generator=generator(*key, self.task.id, self.sample, *turn))

    def payload(self, temperature: float) -> dict[str, Tensor]:
        ids = torch.cat(self.parts)
        found = {"tokens": ids, "length": torch.tensor([len(ids)]), "temperature": torch.tensor([temperature])}
        for place, (reply, after, inputs) in enumerate(self.shown):
            found[f"{SHOWN}.{place}.tokens"] = torch.tensor([reply, after])
            found |= {f"{SHOWN}.{place}.{name}": values for name, values in inputs.items()}
        return found

    def whole(self, renderer: Renderer) -> Prompt:
        """Everything said and shown so far as one prompt, when the newest reply shows images."""
        return renderer.stretches(self.prompt, self.payload(1.0))[-1][0]

    def rollout(self, temperature: float, mask_truncated: bool) -> Rollout:
        spoken = [torch.full((len(part),), place % 2 == 0) for place, part in enumerate(self.parts)]
        mask = torch.cat(spoken) & (not (self.truncated and mask_truncated))
        segments = [torch.full((len(part),), place // 2) for place, part in enumerate(self.parts)]
        return Rollout(
            task=self.task,
            output=Transcript(self.turns),
            payload=self.payload(temperature),
            log_probs=torch.cat(self.log_probs) * mask,
            mask=mask,
            segments=torch.cat(segments),
            info={"truncated": self.truncated, "turns": len(self.turns), "broke": self.broke},
        )


@dataclass(eq=False)
class _Pool:
    """Conversations that stand at the same turn on one state; ``place`` [B] is each one's row of it."""

    logs: list[_Log]
    hidden: Tensor
    state: State
    place: Tensor
