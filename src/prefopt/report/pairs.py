"""Example pairs: which of the samples are shown, and where two responses part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prefopt.report.folder import Sample

LARGEST, SMALLEST, WRONG = 4, 3, 4
"""How many pairs of each kind are shown per run."""
PROMPT_SHOWN = 600
SHARED_SHOWN = 600
RESPONSE_SHOWN = 2000
LINE_SHOWN = 160
"""Characters shown of each part of a pair."""
UNSPACED_SCRIPTS = "\u2e80"
"""From this code point on (CJK and later) words are not spaced: responses part between any two characters."""


class Continuation(NamedTuple):
    """One response from the line on which the two part."""

    same: str
    """Beginning of that line, common to both; of a long one only its last characters."""
    step: str
    """The rest of that line: the step that differs. Empty when the response ends here."""
    rest: str
    """The lines after it."""
    hidden: int
    """Characters not shown at the end."""


class Parting(NamedTuple):
    """Two responses laid side by side."""

    shared: str
    """Whole lines that both begin with, after the prefix if there is one."""
    chosen: Continuation
    rejected: Continuation


class Example(NamedTuple):
    """A pair as the page shows it."""

    sample: Sample
    prompt: str
    """Beginning of the prompt."""
    prompt_rest: str
    """What is folded away."""
    parting: Parting

    @property
    def wrong(self) -> bool:
        """Whether the trained policy ranks the rejected response higher."""
        return self.sample.margin is not None and self.sample.margin < 0


def choose_examples(samples: Sequence[Sample]) -> list[Example]:
    """The pairs with the largest margins, the ones nearest to zero and the most wrong ones, by falling margin.

    Samples without a margin keep their order and come last.
    """
    ranked = [sample for sample in samples if sample.margin is not None]
    falling = sorted(ranked, key=lambda sample: -(sample.margin or 0.0))
    nearest = sorted(ranked, key=lambda sample: abs(sample.margin or 0.0))
    wrong = [sample for sample in reversed(falling) if (sample.margin or 0.0) < 0]
    shown = {id(s) for s in (*falling[:LARGEST], *nearest[:SMALLEST], *wrong[:WRONG])}
    unranked = [sample for sample in samples if sample.margin is None]
    chosen = [sample for sample in falling if id(sample) in shown]
    return [
        _example(s)
        for s in (*chosen, *unranked[: max(0, LARGEST + SMALLEST + WRONG - len(chosen))])
    ]


def common_prefix(first: str, second: str) -> int:
    """Characters that both texts begin with, counted back to a word boundary.

    `14 + 5 = 19` and `14 + 5 = 13` share 9 characters, not 10: a word or number differs as a whole.
    """
    length = next(
        (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    while (
        length
        and _in_word(first[length - 1])
        and (_in_word(first[length : length + 1]) or _in_word(second[length : length + 1]))
    ):
        length -= 1
    return length


def part(chosen: str, rejected: str, *, prefix: str = "") -> Parting:
    """Where two responses part: the common lines, the common beginning of the next line, the step, the rest."""
    length = common_prefix(chosen, rejected)
    line = chosen.rfind("\n", 0, length) + 1
    shared = prefix + chosen[:line]
    if len(shared) > SHARED_SHOWN:
        shared = "… " + shared[-SHARED_SHOWN:]
    return Parting(
        shared, _continuation(chosen, line, length), _continuation(rejected, line, length)
    )


def _continuation(text: str, line: int, length: int) -> Continuation:
    leading = len(text) - length - len(text[length:].lstrip("\n"))
    end = text.find("\n", length + leading)
    end = len(text) if end < 0 else end
    stop = min(len(text), length + RESPONSE_SHOWN)
    same = text[line:length]
    same = same if len(same) <= LINE_SHOWN else "… " + same[-LINE_SHOWN:]
    return Continuation(same, text[length : min(end, stop)], text[end:stop], len(text) - stop)


def _example(sample: Sample) -> Example:
    cut = len(sample.prompt)
    if cut > PROMPT_SHOWN * 4 // 3:
        word = sample.prompt.rfind(" ", PROMPT_SHOWN // 2, PROMPT_SHOWN)
        cut = PROMPT_SHOWN if word < 0 else word
    parting = part(sample.chosen, sample.rejected, prefix=sample.prefix)
    return Example(sample, sample.prompt[:cut], sample.prompt[cut:], parting)


def _in_word(character: str) -> bool:
    return character.isalnum() and character < UNSPACED_SCRIPTS
