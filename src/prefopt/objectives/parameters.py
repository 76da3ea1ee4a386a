"""Ranges of the objectives' parameters: what a caller may pass, checked where it is passed.

Parameters are Python numbers, so these checks never touch a device.
"""

from __future__ import annotations

import math


def positive(objective: str, **values: float) -> None:
    """Nothing when every value is finite and > 0; raises `ValueError` otherwise."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{objective}: {name} is {value}; it must be a finite number > 0")


def non_negative(objective: str, **values: float) -> None:
    """Nothing when every value is finite and >= 0; raises `ValueError` otherwise."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{objective}: {name} is {value}; it must be a finite number >= 0")


def fraction(objective: str, *, below: float | None = None, **values: float) -> None:
    """Nothing when 0 <= value <= 1 (or 0 <= value < `below`) for every value; raises `ValueError` otherwise."""
    for name, value in values.items():
        if not (0 <= value <= 1 if below is None else 0 <= value < below):
            allowed = "from 0 to 1" if below is None else f"at least 0 and below {below:g}"
            raise ValueError(f"{objective}: {name} is {value}; it must be {allowed}")
