"""Tokens one after the other, and the memory that they are read into: by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autotelic.errors import UsageError
from autotelic.vlm.decoding import check_temperature, choose, decode
from autotelic.vlm.memory import Fold, Growing

END = 3
SHARES = torch.tensor([0.25, 0.25, 0.375, 0.125]).log()


class Counter:
    """After token t come t + 1 most likely; its state is how many tokens each row has read since."""

    def __init__(self) -> None:
        self.renderer = SimpleNamespace(ends={END}, reach=None)
        self.backbone: Any = self
        self.shares = True
        self.asked: list[int] = []

    def static_for(self, state: torch.Tensor) -> None:
        """It is not decoded in fixed shapes."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def after(self, token: int) -> torch.Tensor:
        return SHARES.roll(token)

    def rows(self, state: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return state[kept]

    def read_on(self, state: torch.Tensor, last: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert last.shape == mask.shape == (len(state), 1) and mask.all()
        self.asked.append(len(state))
        outputs = torch.stack([self.after(int(token)) for token in last[:, 0]])
        return outputs[:, None], state + 1


def test_rows_end_by_their_end_or_their_limit() -> None:
    """Likeliest are 2, then after a 2 the 0, after that the 2 again; a row that begins at 1 says 3 and ends."""
    counter: Any = Counter()
    hidden = torch.stack([counter.after(0), counter.after(1), counter.after(0)])
    state: Any = torch.zeros(3)
    tokens, log_probs, lengths = decode(counter, hidden, state, torch.tensor([4, 4, 2]), None, 1.0)
    assert tokens.tolist() == [[2, 0, 2, 0], [3, 0, 0, 0], [2, 0, 0, 0]] and lengths.tolist() == [4, 1, 2]
    most = math.log(0.375)
    wanted = [[most] * 4, [most, 0, 0, 0], [most, most, 0, 0]]
    torch.testing.assert_close(log_probs, torch.tensor(wanted))
    assert counter.asked == [2, 1, 1], "rows that ended are not read on"


def test_a_temperature_divides_the_logits() -> None:
    """At 1/2 the shares are squared: 4, 4, 9 and 1 of 18; noise below 4/18 is the first, from 17/18 on the last."""
    counter: Any = Counter()
    state: Any = torch.zeros(6)
    noise = torch.tensor([0.0, 3.9, 4.1, 8.1, 16.9, 17.1])[:, None] / 18
    tokens, log_probs, _ = decode(counter, SHARES.expand(6, 4), state, torch.ones(6).long(), noise, 0.5)
    assert tokens[:, 0].tolist() == [0, 0, 1, 2, 2, 3]
    shares = torch.tensor([4, 4, 4, 9, 9, 1]) / 18
    torch.testing.assert_close(log_probs[:, 0], shares.log())
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="a temperature is above 0 and finite"):
            check_temperature(wrong)
    check_temperature(1e-3)


def test_noise_says_which_quantile_is_taken() -> None:
    noise = torch.tensor([0.0, 0.249, 0.251, 0.499, 0.501, 0.874, 0.876, 1.0], dtype=torch.float64)
    chosen, taken = choose(SHARES.double().expand(8, 4), noise, torch.ones(8).bool())
    assert chosen.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    torch.testing.assert_close(taken, SHARES.double()[chosen])
    # Thirds stay thirds where their rounded logarithms add up to 0.997.
    noise = torch.tensor([0.333, 0.334, 0.666, 0.667])
    chosen, _ = choose(torch.zeros(4, 3, dtype=torch.bfloat16), noise, torch.ones(4).bool())
    assert chosen.tolist() == [0, 1, 1, 2]


# --- memory ----------------------------------------------------------------------------------------


def tokens_of(*values: float) -> torch.Tensor:
    """Keys or values [1, 1, T, 1]."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1)


def said(layer: Growing, *values: float) -> tuple[list[float], list[float]]:
    with torch.no_grad():
        keys, more = layer.update(tokens_of(*values), -tokens_of(*values))
    assert keys is layer.keys and more is layer.values
    return keys.flatten().tolist(), more.flatten().tolist()


def test_what_is_read_on_from_twice_is_not_overwritten() -> None:
    """Copies share the room; who comes second from the same length moves out, and nobody sees the other's tokens."""
    first = Growing(tokens_of(1, 2), -tokens_of(1, 2))
    assert said(first, 3) == ([1, 2, 3], [-1, -2, -3])
    second, third = first.again(), first.again()
    assert said(first, 4)[0] == [1, 2, 3, 4]
    assert said(second, 5, 6) == ([1, 2, 3, 5, 6], [-1, -2, -3, -5, -6])
    assert said(third, 7)[0] == [1, 2, 3, 7]
    for layer, last in ((first, [1, 2, 3, 4]), (second, [1, 2, 3, 5, 6]), (third, [1, 2, 3, 7])):
        assert layer.keys.flatten().tolist() == last
    assert said(first, 8)[0] == [1, 2, 3, 4, 8]


def test_a_token_is_written_into_room_until_that_is_full() -> None:
    """For 32 tokens more than are known, or for half as much again where that is more."""
    layer = Growing(tokens_of(1, 2), tokens_of(1, 2))
    rooms = []
    for token in range(3, 110):
        assert said(layer, token)[0] == list(range(1, token + 1))
        rooms.append(layer.keys.untyped_storage().nbytes() // 4)
    assert rooms == [35] * 33 + [36 + 32] * 33 + [69 * 3 // 2] * 35 + [104 * 3 // 2] * 6


def test_with_a_gradient_memory_is_copied() -> None:
    layer = Growing(tokens_of(1, 2), tokens_of(1, 2))
    said(layer, 3)
    before, new = layer.again(), tokens_of(4).requires_grad_()
    keys, _ = layer.update(new, new)
    keys.sum().backward()
    assert new.grad is not None and keys.flatten().tolist() == [1, 2, 3, 4]
    assert said(before, 5)[0] == [1, 2, 3, 5] and keys.flatten().tolist() == [1, 2, 3, 4]


def test_completions_of_one_prompt_see_it_and_their_own_tokens() -> None:
    """Two completions each of two prompts of three tokens, the first of which is padded in front."""
    mask = torch.tensor([[False, True, True], [True, True, True]])
    fold = Fold(2, 3, 0, mask[:, None, None].expand(-1, -1, 2, -1))
    assert fold.folded(torch.arange(4)).tolist() == [[0, 1], [2, 3]]
    twice = fold.further().further()
    assert (twice.times, twice.shared, twice.steps) == (2, 3, 2)
    mine, other = [True, False] * 2, [False, True] * 2
    for row, prompt in enumerate(mask.tolist()):
        assert twice.seen[row, 0].tolist() == [prompt + mine, prompt + other]
    assert [Fold(2, 3, steps, fold.seen).pays() for steps in (0, 6, 7)] == [True, True, False]
