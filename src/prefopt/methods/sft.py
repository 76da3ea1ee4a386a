"""Supervised fine-tuning: the mean negative log-likelihood of response tokens."""

from __future__ import annotations

from dataclasses import replace

from prefopt.config import RunConfig
from prefopt.objectives import sft
from prefopt.records import Preference
from prefopt.runs.method import Method


class SftConfig(RunConfig):
    """Recipe of a supervised run. With preference data, the chosen responses are trained on."""


def preferred(preference: Preference, config: SftConfig) -> Preference:
    """The record with only those responses that are preferred to another one; all, where there are no pairs.

    Of a longer ranking that is the best response: what another one is preferred to is left out.
    """
    del config
    if not preference.pairs:
        return preference
    chosen = {pair.chosen for pair in preference.pairs}
    best = chosen - {pair.rejected for pair in preference.pairs}
    kept = tuple(preference.responses[i] for i in sorted(best or chosen))
    return replace(preference, responses=kept, pairs=())


METHOD = Method(
    name="sft",
    summary="supervised fine-tuning on the response tokens (prompts are never scored)",
    paper="",
    config=SftConfig,
    objective=lambda config: sft,
    pair=preferred,
)
