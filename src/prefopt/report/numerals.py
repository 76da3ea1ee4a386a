"""How numbers are written in the report and in its tables. Pure text; a missing number is an en dash."""

from __future__ import annotations

import math

MISSING = "–"
MINUS = "\u2212"


def decimal(value: float | None, *, signed: bool = False) -> str:
    """`value` with three significant digits, never in exponent form between 0.001 and 100,000.

    Missing values give an en dash, infinities and not-a-number their names.
    """
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{MINUS if value < 0 else ''}∞"
    size = abs(value)
    if size == 0 or 1e-3 <= size < 1e5:
        places = 3 if size < 1 else 2 if size < 100 else 1
        text = f"{size:.{places}f}"
    else:
        text = f"{size:.2e}"
    return _sign(value, signed=signed and value != 0) + text


def percent(value: float | None, *, places: int = 1) -> str:
    """A fraction as a percentage, `0.8125` -> `81.2%`."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{_sign(value)}{abs(100 * value):.{places}f}%"


def interval(low: float | None, high: float | None, *, proportion: bool) -> str:
    """`80.5–87.0%` for a proportion, `1.20 to 1.45` otherwise; an en dash when an end is missing."""
    if low is None or high is None:
        return MISSING
    if proportion:
        return f"{100 * low:.1f}–{percent(high)}"
    return f"{decimal(low)} to {decimal(high)}"


def points(value: float) -> str:
    """A difference of two fractions in percentage points with its sign, `+3.8`."""
    return f"{_sign(round(value, 3), signed=True)}{abs(100 * value):.1f}"


def count(value: float | None) -> str:
    """A whole number with commas between thousands."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{_sign(value)}{abs(value):,.0f}"


def size(value: float | None) -> str:
    """Bytes in the largest binary unit that leaves at least 1: `1.5 GiB`."""
    if value is None or not math.isfinite(value):
        return MISSING
    amount = value
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def plural(number: float, noun: str) -> str:
    """`1 pair`, `360 pairs`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def _sign(value: float, *, signed: bool = False) -> str:
    if value < 0:
        return MINUS
    return "+" if signed else ""
