"""Several answers of a model to each prompt: sampled, cleaned, and those left out that are no fair sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prefopt.generate.base import Completion, Generator, Request, Sampling
from prefopt.generate.journal import Journal, Progress, complete
from prefopt.records import Preference, Response

REFUSED = "refused by the writer"
CUT = "cut at the token limit"
SHORT = "shorter than min_characters"
LONG = "longer than max_characters"


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """Which samples count, and in which form; the defaults are those of the published code."""

    strip: bool = True
    """Take white space off both ends."""
    drop_cut: bool = True
    """Leave out what was cut at the token limit; else it stays, without an end token."""
    min_characters: int = 4
    """Of the stripped text."""
    max_characters: int | None = 6699
    """Of the stripped text."""


class LeftOut(NamedTuple):
    """A sample that does not count."""

    sample: int
    text: str
    why: str


class Answers(NamedTuple):
    """What became of the samples of one prompt."""

    prompt: Preference
    """Without responses."""
    responses: tuple[Response, ...]
    """Different ones, in the order in which they were first drawn."""
    times: tuple[int, ...]
    """How often each was drawn."""
    left_out: tuple[LeftOut, ...]

    def record(self) -> Preference:
        """Prompt and responses, to be scored."""
        p = self.prompt
        return Preference(p.id, p.prompt, self.responses, meta=p.meta, origin=p.origin)


def sample_answers(
    prompts: Sequence[Preference],
    generator: Generator,
    sampling: Sampling,
    *,
    samples: int,
    rules: AnswerRules,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[Answers]:
    """`samples` answers to each prompt, in the order of the prompts; what the journal holds is not drawn again.

    Raises:
        RecordError: two prompts have one id, or the generator cannot read one.
        StorageError: the journal cannot be written.
    """
    requests = [Request(p.id, k, p.prompt, meta=p.meta) for p in prompts for k in range(samples)]
    completions = complete(generator, requests, sampling, journal, progress=progress)
    return [
        _sorted_out(prompt, completions[i * samples : (i + 1) * samples], rules)
        for i, prompt in enumerate(prompts)
    ]


def _sorted_out(
    prompt: Preference, completions: Sequence[Completion], rules: AnswerRules
) -> Answers:
    drawn: Counter[Response] = Counter()
    left_out: list[LeftOut] = []
    for completion in completions:
        why = _fault(completion, rules)
        text = completion.text.strip() if rules.strip else completion.text
        if why:
            left_out.append(LeftOut(completion.sample, text, why))
        else:
            drawn[Response(text, ends=completion.finish_reason != "length")] += 1
    return Answers(prompt, tuple(drawn), tuple(drawn.values()), tuple(left_out))


def _fault(completion: Completion, rules: AnswerRules) -> str:
    """Why a sample does not count; empty where it does."""
    if completion.finish_reason == "error":
        return REFUSED
    if completion.finish_reason == "length" and rules.drop_cut:
        return CUT
    length = len(completion.text.strip())
    if length < rules.min_characters:
        return SHORT
    return LONG if rules.max_characters is not None and length > rules.max_characters else ""
