"""Supervised fine-tuning: the mean negative log-likelihood of response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from prefopt.config import RunConfig
from prefopt.config.schema import Text
from prefopt.objectives import sft
from prefopt.records import Preference
from prefopt.runs.method import Method
from prefopt.text.blocks import SPECIAL_TOKENS
from prefopt.train.terms import Term


class SftConfig(RunConfig):
    """Recipe of a supervised run. Of preference data, the best responses are trained on."""

    special_tokens: Literal["blocks"] | list[Text] | None = None
    """Markers that tokenizer and model learn as special tokens, where they lack them; blocks: those of code-integrated
    solutions. A new embedding starts as the mean of the old ones."""


def preferred(preference: Preference, config: SftConfig) -> Preference | str:
    """The record with only those responses that are preferred to another one; all, where there are no pairs.

    Of a longer ranking that is the best response: what another one is preferred to is left out, and so are
    responses labelled undesirable. A record without any other is dropped for the reason returned.
    """
    del config
    if not preference.pairs:
        wanted = tuple(r for r in preference.responses if r.label is not False)
        return replace(preference, responses=wanted) if wanted else "labelled undesirable"
    chosen = {pair.chosen for pair in preference.pairs}
    best = chosen - {pair.rejected for pair in preference.pairs}
    kept = tuple(preference.responses[i] for i in sorted(best or chosen))
    return replace(preference, responses=kept, pairs=())


def wanted_tokens(config: SftConfig) -> Sequence[str]:
    """The special tokens that the recipe asks for."""
    wanted = config.special_tokens
    return SPECIAL_TOKENS if wanted == "blocks" else wanted or ()


METHOD = Method(
    name="sft",
    summary="supervised fine-tuning on the response tokens (prompts are never scored)",
    paper="",
    config=SftConfig,
    objectives=lambda config: [Term(sft)],
    pair=preferred,
    special_tokens=wanted_tokens,
)
