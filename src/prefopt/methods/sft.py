"""Supervised fine-tuning: the mean negative log-likelihood of response tokens."""

from __future__ import annotations

from prefopt.config import RunConfig
from prefopt.objectives import sft
from prefopt.runs.method import Method


class SftConfig(RunConfig):
    """Recipe of a supervised run. With preference data, the chosen responses are trained on."""


METHOD = Method(
    name="sft",
    summary="supervised fine-tuning on the response tokens (prompts are never scored)",
    paper="",
    config=SftConfig,
    objective=lambda config: sft,
)
