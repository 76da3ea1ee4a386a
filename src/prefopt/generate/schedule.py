"""Temperatures that rise with every newly written step (Step-Controlled DPO, arXiv 2407.00782).

A constant high temperature gives garbled texts; one that starts near 1 and rises gives wrong steps in whole sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from prefopt.config.mistakes import unknown_name
from prefopt.errors import ConfigError


class Rising(NamedTuple):
    """``T(i) = min(start + i * step, cap)`` for the i-th newly written step (or block), from 0."""

    start: float
    step: float
    cap: float

    def at(self, index: int) -> float:
        """Temperature of the `index`-th new step, rounded to 1e-9 so that equal steps have equal samplings."""
        return round(min(self.start + index * self.step, self.cap), 9)


PRESETS: Mapping[str, Rising] = {
    "paper": Rising(1.1, 0.05, 1.4),
    "code": Rising(1.1, 0.10, 1.4),
    "mathcoder-math": Rising(1.0, 0.05, 1.3),
    "internlm-math": Rising(1.0, 0.05, 1.2),
}
"""The paper's text; the official scripts for Mistral (GSM8K and MATH), MathCoder GSM8K and InternLM GSM8K; for
MathCoder MATH; for InternLM MATH and APE."""


def constant(temperature: float) -> Rising:
    """The same temperature for every step."""
    return Rising(temperature, 0.0, temperature)


def schedule(value: str | float) -> Rising:
    """A preset by name, or a constant temperature.

    Raises:
        ConfigError: an unknown name, or a number that is not positive.
    """
    if isinstance(value, str):
        if value not in PRESETS:
            raise unknown_name("temperature schedule", value, sorted(PRESETS))
        return PRESETS[value]
    if value <= 0:
        raise ConfigError(f"temperature schedule: {value} is no temperature; use more than 0")
    return constant(value)
