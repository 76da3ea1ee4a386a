"""Degenerate roll-outs of an agent: what the clean data of DMPO leave out, as a rule that can be read.

The paper compares noisy with clean losing sides; its filter is not published. Here a roll-out is noise when it has a
turn without an action, takes one action again and again, or has a turn whose words repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from prefopt.agents.formats import Format
from prefopt.errors import ConfigError

NO_ACTION = "roll-outs dropped as noise: a turn without an action"
SAME_ACTION = "roll-outs dropped as noise: one action again and again"
SAME_WORDS = "roll-outs dropped as noise: a turn that repeats its words"
NOISE = (NO_ACTION, SAME_ACTION, SAME_WORDS)
"""The reasons, in the order in which they are looked for."""


@dataclass(frozen=True, slots=True)
class NoiseLimits:
    """From where on repetition is noise."""

    repeats: int = 4
    """Times the same action in a row."""
    distinct_bigrams: float = 0.3
    """A turn with a smaller share of different ones among its pairs of neighbouring words repeats itself."""

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise ConfigError(f"noise: repeats is {self.repeats}; use 2 or more")
        if not 0 <= self.distinct_bigrams <= 1:
            raise ConfigError(
                f"noise: distinct_bigrams is {self.distinct_bigrams}; use a share from 0 to 1"
            )


def find_noise(texts: Sequence[str], format: Format, limits: NoiseLimits) -> str | None:
    """Why a trajectory is noise, one of `NOISE`; None where it is not.

    Args:
        texts: of the agent's turns; text without spaces between words counts as one word.
        format: how an action is read in them.
        limits: from where on repetition is noise.
    """
    actions = [format.read(text) for text in texts]
    if None in actions:
        return NO_ACTION
    if longest_run(actions) >= limits.repeats:
        return SAME_ACTION
    if any(distinct_bigrams(text) < limits.distinct_bigrams for text in texts):
        return SAME_WORDS
    return None


def longest_run(items: Sequence[str | None]) -> int:
    """How often the same item comes in a row at most; 0 where there are none."""
    return max((len(list(group)) for _, group in groupby(items)), default=0)


def distinct_bigrams(text: str) -> float:
    """Share of different ones among the pairs of neighbouring words; 1 where there are none."""
    pairs = list(pairwise(text.split()))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
