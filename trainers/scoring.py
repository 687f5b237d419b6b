"""Calling a reward on rollouts: columns in, checked scores out, whatever policy, reward or machine does meanwhile.

What a policy caused is scored with the reward's minimum: an output that is not finite or cannot be read is never handed
over, and one that breaks the reward, again when it is asked alone, while it scores others, broke it. What a machine
caused (a connection, a time limit) is tried once more, then None. What breaks the reward for every output is the
user's, and ends in one line.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..calling import Shown, call, check_columns, completion_of, settled
from ..errors import OutputError, RewardError, UsageError
from ..families import name_of
from ..returned import scores_of
from ..types import RewardFunction, Rollout, Score, TrainerState
from .distributed import gather
from .faults import is_machines, of_environment, place_of, unreadable
from .metrics import Mean, everywhere, joined

__all__ = ["RewardError", "columns", "score", "tell_state", "total_of"]

ALONE = 4
"""So many samples in a row that a machine fails on end the asking one by one."""
SPREAD = 16
"""So many samples, evenly spread, that all break a reward which never worked, are taken for all."""

_state: ContextVar[TrainerState] = ContextVar("trainer_state")
_known: WeakKeyDictionary[Any, tuple[Rollout, float | None]] = WeakKeyDictionary()
"""Per reward a rollout that it could score, and the lowest score that it gave."""


def tell_state(state: TrainerState) -> None:
    """How far the run is, for rewards that ask for ``trainer_state``."""
    _state.set(state)


def score(rollouts: Sequence[Rollout], reward: RewardFunction, *, together: bool = False) -> dict[str, float]:
    """Fill ``rollout.scores``, ``total`` included, and return the means: "reward", and "reward/TERM" of its terms.

    Beside them what the reward logged, as "logged/NAME", and where there were faults their shares of the rollouts:
    "faults/policy" and "faults/environment", an episode that could not go on (both scored with the minimum;
    ``info["fault"]`` says why), and "faults/infrastructure" (None). The
    minimum is the reward's ``minimum``, or where it declares none the lowest score of the round, or if nothing was
    scored the lowest that this process saw of it. None for all is a round without a reward. No rollouts, no scores.

    Args:
        together: every process scores its own at this moment; the means, and the lowest score, are of all of them.

    Raises:
        RewardError: with every rollout still whole: the reward raised for all of them or raised UsageError, or returned
            what is no score (see ``returned``), or data of one's own have a reserved column.
    """
    check_columns({id(rollout.task): rollout.task for rollout in rollouts}.values())
    broken = [of_environment(rollout.output) for rollout in rollouts]
    reasons = [fault or unreadable(rollout.output) for fault, rollout in zip(broken, rollouts, strict=True)]
    sound = [row for row, reason in enumerate(reasons) if reason is None]
    found = _asked([rollouts[row] for row in sound], reward) if sound else _Answer()
    places = dict(zip(sound, range(len(sound)), strict=True))
    for row, place in places.items():
        reasons[row] = found.broken.get(place)
    named = _filled(reward, found, reasons, places, together)
    for row, rollout in enumerate(rollouts):
        rollout.scores |= {key: scores[row] for key, scores in named.items()}
        rollout.info.pop("fault", None)
        if reasons[row] is not None:
            rollout.info["fault"] = reasons[row]
        if row in places:
            rollout.info |= {f"logged/{name}": values[places[row]] for name, values in found.log.extra.items()}
    faults = {"environment": sum(fault is not None for fault in broken), "infrastructure": len(found.unscored)}
    faults["policy"] = sum(reason is not None for reason in reasons) - faults["environment"]
    told = _told_of(reward, named, faults, found.log, len(rollouts)) if rollouts else {}
    (metrics,) = everywhere(told) if together else [joined([told])]
    return {name: value for name, value in metrics.items() if value or not name.startswith("faults/")}


def _told_of(
    reward: RewardFunction, named: Mapping[str, Sequence[Score]], faults: Mapping[str, int], log: Log, count: int
) -> dict[str, float]:
    """What this process tells of so many rollouts."""
    alone = set(named) <= {name_of(reward), "total"} and not hasattr(reward, "terms")
    terms = {f"reward/{key}": _mean(scores) for key, scores in named.items() if key != "total"}
    metrics: dict[str, float] = {**({} if alone else terms), "reward": _mean(named["total"])}
    metrics |= {f"faults/{who}": Mean(number, count) for who, number in faults.items()}
    logged = {name: math.fsum(values) / len(values) for name, values in log.metrics.items()}
    return metrics | {f"logged/{name}": Mean(value * count, count) for name, value in logged.items()}


def total_of(rollout: Rollout, name: str = "total") -> float | None:
    """A rollout's score as one number, that of its segments summed; None where it does not apply."""
    value = rollout.scores.get(name)
    return None if value is None else torch.as_tensor(value, dtype=torch.float64).detach().sum().item()


@dataclass
class Log:
    """What a reward tells beside its scores, by TRL's ``log_metric`` and ``log_extra``."""

    metrics: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    extra: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"log_metric": self.metric, "log_extra": self.column}

    def metric(self, name: str, value: Any) -> None:
        """One number of the whole call; means are reported."""
        self.metrics[str(name)].append(float(value))

    def column(self, name: str, values: Sequence[Any]) -> None:
        """One value per sample; kept in the rollouts' ``info``."""
        self.extra[str(name)] = list(values)


def columns(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """What a reward is called with: keyword columns with one entry per rollout, and TRL's three arguments."""
    tasks = [r.task for r in rollouts]
    outputs = [r.output for r in rollouts]
    extra = dict.fromkeys(key for task in tasks for key in task.extra)
    table: dict[str, Any] = {key: [task.extra.get(key) for task in tasks] for key in extra}
    table |= {"tasks": tasks, "prompts": [t.prompt for t in tasks], "references": [t.reference for t in tasks]}
    table |= {
        "outputs": outputs,
        "completions": [completion_of(r.task, r.output) for r in rollouts],
        "episodes": outputs,
    }
    table["images"] = Shown(tasks)
    table["completion_ids"] = [_ids(r) for r in rollouts]
    table["groups"] = [r.group_key for r in rollouts]
    table["players"] = [r.player for r in rollouts]
    table["log_probs"] = [r.log_probs for r in rollouts]
    table["rollouts"] = list(rollouts)
    return table | {"trainer_state": _state.get(TrainerState())} | Log().arguments


def _ids(rollout: Rollout) -> list[int] | None:
    tokens = rollout.payload.get("tokens") if isinstance(rollout.output, str) else None
    return None if tokens is None else tokens.tolist()


# --- asking -----------------------------------------------------------------------------------------------------------


@dataclass
class _Answer:
    """What a reward said of some rollouts.

    Attributes:
        named: scores by name, None for who is broken or unscored.
        broken: place -> why, of outputs that broke the reward.
        unscored: places on which a machine failed.
    """

    named: dict[str, list[Score]] = field(default_factory=dict)
    log: Log = field(default_factory=Log)
    broken: dict[int, str] = field(default_factory=dict)
    unscored: set[int] = field(default_factory=set)

    def spread(self, places: Sequence[int], count: int) -> _Answer:
        """The answer about some of ``count`` rollouts, put in their places."""
        named: dict[str, list[Score]] = {}
        for key, scores in self.named.items():
            named[key] = [None] * count
            for place, value in zip(places, scores, strict=True):
                named[key][place] = value
        extra: dict[str, list[Any]] = {}
        for key, values in self.log.extra.items():
            extra[key] = [None] * count
            for place, value in zip(places, values, strict=True):
                extra[key][place] = value
        return _Answer(named, Log(self.log.metrics, extra))


def _call(rollouts: Sequence[Rollout], reward: RewardFunction) -> _Answer:
    """The checked answer of one call, whatever is raised in it."""
    log, name = Log(), name_of(reward)
    table = columns(rollouts) | log.arguments
    before = _versions(rollouts)
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not getattr(reward, "differentiable", False)):
            named = scores_of(name, settled([lambda: call(reward, table)])[0], table)
    except SystemExit as error:  # such as of a parser of arguments
        raise RuntimeError(f"SystemExit: {error.code}").with_traceback(error.__traceback__) from error
    if _versions(rollouts) != before:
        raise RewardError(f"reward {name} changes the pictures that it is handed: it has to work on a copy (clone)")
    for key, scores in named.items():
        for rollout, value in zip(rollouts, scores, strict=True):
            _check_segments(name if key == "total" else key, value, rollout)
    named = {key: [_plain(value) for value in scores] for key, scores in named.items()}
    for key, values in log.extra.items():
        if len(values) != len(rollouts):
            raise RewardError(f"reward {name} logged {len(values)} values of {key} for {len(rollouts)} samples")
    return _Answer(named, log)


def _versions(rollouts: Sequence[Rollout]) -> list[int]:
    """Of each tensor, how often it was changed in place; those of inference mode do not count."""
    tensors = [rollout.output for rollout in rollouts if isinstance(rollout.output, Tensor)]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


def _check_segments(name: str, value: Score, rollout: Rollout) -> None:
    if not isinstance(value, Sequence):
        return
    segments = int(rollout.segments.max()) + 1 if len(rollout.segments) else 0
    if len(value) != segments:
        whose = f"{segments} segment{'' if segments == 1 else 's'} of sample {rollout.task.id}"
        raise RewardError(f"reward {name} returned {len(value)} numbers for the {whose}")


def _plain(value: Score) -> Score:
    if not isinstance(value, Tensor):
        return value
    rows: Any = value.detach().tolist()
    return None if isinstance(rows, float) and math.isnan(rows) else rows


def _asked(rollouts: Sequence[Rollout], reward: RewardFunction) -> _Answer:
    """The answer, after what the module says of errors."""
    try:
        found = _call(rollouts, reward)
    except Exception as error:
        _refuse_what_a_person_gave(reward, rollouts, error)
        first = error
    else:
        _remember(reward, rollouts[0], found)
        return found
    if is_machines(first):
        try:
            return _call(rollouts, reward)
        except Exception as again:
            _refuse_what_a_person_gave(reward, rollouts, again)
            first = again
    works = _works_elsewhere(reward)
    if len(rollouts) > 2 * SPREAD and not works and not is_machines(first):
        some = _one_by_one(rollouts[:: len(rollouts) // SPREAD], reward, machines=False)
        if all(isinstance(single, Exception) and not is_machines(single) for single in some):
            raise _users(reward, rollouts, first) from first
    singles = _one_by_one(rollouts, reward, machines=is_machines(first))
    failed = {place: single for place, single in enumerate(singles) if isinstance(single, Exception)}
    unscored = {place for place, error in failed.items() if is_machines(error)}
    broken = {place: f"reward {_told(reward, error)}" for place, error in failed.items() if place not in unscored}
    fine = [place for place in range(len(rollouts)) if place not in failed]
    if broken and not fine and not works:
        raise _users(reward, rollouts, failed[min(broken)]) from failed[min(broken)]
    if not fine:
        return _Answer({}, Log(), broken, unscored)
    found = _together(rollouts, reward, fine, singles, first if not failed else None)
    found.broken, found.unscored = broken, unscored
    _remember(reward, rollouts[fine[0]], found)
    return found


def _together(
    rollouts: Sequence[Rollout],
    reward: RewardFunction,
    fine: Sequence[int],
    singles: Sequence[_Answer | Exception],
    nobodys: Exception | None,
) -> _Answer:
    """The answer about those that were fine alone: of one call, for rewards that compare, or else of each alone.

    Raises:
        RewardError: the call fails again although no single sample is to blame (``nobodys`` is how it failed before).
    """
    count = len(rollouts)
    try:
        return _call([rollouts[place] for place in fine], reward).spread(fine, count)
    except Exception as error:
        _refuse_what_a_person_gave(reward, rollouts, error)
        if nobodys is not None and not is_machines(error):
            raise _users(reward, rollouts, error) from error
    whole = _Answer()
    for place in fine:
        single = singles[place]
        assert isinstance(single, _Answer)
        for key, scores in single.named.items():
            whole.named.setdefault(key, [None] * count)[place] = scores[0]
    return whole


def _one_by_one(rollouts: Sequence[Rollout], reward: RewardFunction, *, machines: bool) -> list[_Answer | Exception]:
    """Each sample's answer alone, or how it failed; twice, unless a machine had two chances already."""
    found: list[_Answer | Exception] = []
    for rollout in rollouts:
        last = found[-ALONE:]
        if machines and len(last) == ALONE and all(isinstance(one, Exception) and is_machines(one) for one in last):
            found.append(last[-1])
            continue
        answer: _Answer | Exception | None = None
        for _ in range(1 if machines else 2):
            try:
                answer = _call([rollout], reward)
                break
            except Exception as error:
                _refuse_what_a_person_gave(reward, [rollout], error)
                answer = error
        assert answer is not None
        found.append(answer)
    return found


def _remember(reward: RewardFunction, rollout: Rollout, found: _Answer) -> None:
    lowest = _least(_before(reward)[1], _lowest(found.named["total"]))
    try:
        _known[reward] = replace(rollout, graph=None, scores={}, info={}), lowest
    except TypeError:  # what has no weak reference is not known to have worked
        return


def _before(reward: RewardFunction) -> tuple[Rollout | None, float | None]:
    try:
        return _known.get(reward, (None, None))
    except TypeError:
        return None, None


def _works_elsewhere(reward: RewardFunction) -> bool:
    """Whether it still scores an output that it scored before: then what breaks it now is to blame."""
    witness, _ = _before(reward)
    if witness is None:
        return False
    try:
        _call([witness], reward)
    except Exception:
        return False
    return True


# --- telling ----------------------------------------------------------------------------------------------------------


def _refuse_what_a_person_gave(reward: RewardFunction, rollouts: Sequence[Rollout], error: Exception) -> None:
    if isinstance(error, RewardError):
        raise error
    if isinstance(error, UsageError) and not isinstance(error, OutputError):
        who, where = _culprit(reward, rollouts, error)
        raise RewardError(f"reward {who}: {error}{f' (at sample {where})' if where else ''}") from error


def _users(reward: RewardFunction, rollouts: Sequence[Rollout], error: Exception) -> RewardError:
    who, _ = _culprit(reward, rollouts[:1], error)
    return RewardError(f"reward {_told(who, error)}")


def _told(reward: Any, error: Exception) -> str:
    who = reward if isinstance(reward, str) else name_of(reward)
    said = " ".join(str(error).split())[:300]
    return f"{who} raised {type(error).__name__}{said and f': {said}'} ({place_of(error)})"


def _culprit(reward: Any, rollouts: Sequence[Rollout], error: Exception) -> tuple[str, str]:
    """The name of the term that raises, and at which single sample; empty if none does alone."""
    terms = [term for _, term in getattr(reward, "terms", [])]
    guilty = next((term for term in terms if _raises(term, rollouts, error)), reward)
    samples = (rollout.task.id for rollout in rollouts if _raises(guilty, [rollout], error))
    return name_of(guilty), next(samples, "")


def _raises(reward: RewardFunction, rollouts: Sequence[Rollout], error: Exception) -> bool:
    try:
        _call(rollouts, reward)
    except Exception as again:
        return type(again) is type(error)
    return False


# --- filling ----------------------------------------------------------------------------------------------------------


def _filled(
    reward: RewardFunction, found: _Answer, reasons: Sequence[str | None], places: Mapping[int, int], together: bool
) -> dict[str, list[Score]]:
    """Scores of all rollouts by name: those that were found, the minimum for whom there is a reason, else None."""
    named = found.named or {"total": [None] * len(places)}
    lows = [{key: _lowest(scores) for key, scores in named.items()}]
    lows = gather(lows) if together else lows
    whole: dict[str, list[Score]] = {}
    for key, scores in named.items():
        lowest = _least(*(low.get(key) for low in lows))
        if key == "total":
            lowest = _least(_declared(reward), _before(reward)[1] if lowest is None else lowest)
        rows: list[Score] = [None if reason is None else lowest for reason in reasons]
        for row, place in places.items():
            if reasons[row] is None:
                rows[row] = scores[place]
        whole[key] = rows
    return whole


def _lowest(scores: Sequence[Score]) -> float | None:
    return min((_sum(value) for value in scores if value is not None), default=None)


def _declared(reward: RewardFunction) -> float | None:
    minimum: float | None = getattr(reward, "minimum", None)
    if minimum is not None and not math.isfinite(minimum):
        raise RewardError(f"reward {name_of(reward)} declares the minimum {minimum}: it has to be finite")
    return minimum


def _least(*numbers: float | None) -> float | None:
    return min((float(number) for number in numbers if number is not None), default=None)


def _sum(value: Score) -> float:
    return math.fsum(value) if isinstance(value, Sequence) else float(value)  # type: ignore[arg-type]


def _mean(scores: Sequence[Score]) -> Mean:
    return Mean.of_numbers([_sum(value) for value in scores if value is not None], empty=math.nan)
