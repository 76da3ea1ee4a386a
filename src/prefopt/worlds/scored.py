"""Preference data of a world with a real-valued reward: a model's own samples with their scores, and pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from prefopt.errors import ConfigError
from prefopt.generate.base import Generator, Request, Sampling
from prefopt.generate.journal import Journal, Progress, complete
from prefopt.records import Message, Preference, Response
from prefopt.text.pairing import pair_responses


class Prompt(Protocol):
    """What is sampled on."""

    @property
    def id(self) -> str:
        """Unique within the set."""
        ...

    @property
    def prompt(self) -> str | tuple[Message, ...]:
        """What the model is shown."""
        ...


class PairedData(NamedTuple):
    """Records with pairs, and what became of the others."""

    records: list[Preference]
    tied: int
    """Records left out because their responses have equal scores."""


def scored_samples(
    prompts: Sequence[Prompt],
    generator: Generator,
    score: Callable[[str], float],
    *,
    samples: int,
    sampling: Sampling,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[Preference]:
    """One record per prompt with `samples` scored responses in the order of sampling, without pairs yet.

    A response that was cut at the token limit is scored as it is and does not end (`Response.ends` is false).

    Args:
        prompts: with unique ids.
        generator: whose samples.
        score: the reward of a text.
        samples: of each prompt.
        sampling: with a temperature above 0, or all samples of a prompt are the same text.
        journal: keeps the completions, so that an interrupted build goes on where it stopped.
        progress: called with (done, total).

    Raises:
        ConfigError: fewer than two samples, or greedy decoding.
        RecordError: two prompts have the same id, or one cannot be rendered.
    """
    if samples < 2:
        raise ConfigError(f"scored samples: samples is {samples}; a pair needs 2 or more")
    if sampling.temperature == 0:
        raise ConfigError(
            "scored samples: temperature is 0, which gives the same text every time; use 1.0"
        )
    requests = [Request(p.id, k, p.prompt) for p in prompts for k in range(samples)]
    completions = iter(complete(generator, requests, sampling, journal, progress=progress))
    records: list[Preference] = []
    for prompt in prompts:
        drawn = [next(completions) for _ in range(samples)]
        responses = tuple(
            Response(c.text, score=score(c.text), ends=c.finish_reason == "stop") for c in drawn
        )
        records.append(Preference(prompt.id, prompt.prompt, responses))
    return records


def first_two(records: Sequence[Preference]) -> PairedData:
    """One pair per record: its first two responses, the one of higher score chosen; ties are left out.

    The rule of the official ODPO code for sentiment and toxicity, which however keeps a tie, as a pair whose
    loss and gradient are zero. Amini et al. 2024, arXiv 2402.10571.
    """
    return _paired([replace(record, responses=record.responses[:2]) for record in records])


def all_pairs(records: Sequence[Preference]) -> PairedData:
    """Every two responses of a record whose scores differ, the one of higher score chosen."""
    return _paired(records)


def _paired(records: Sequence[Preference]) -> PairedData:
    paired = [replace(record, pairs=pair_responses(record.responses, "all")) for record in records]
    kept = [record for record in paired if record.pairs]
    return PairedData(kept, len(paired) - len(kept))
