"""A logged quantity over optimiser steps, and the few things the report asks of it. numpy only."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

PLOTTED_POINTS = 400
"""More points than this are thinned before plotting: a panel is about 450 pixels wide."""


class Series(NamedTuple):
    """One column of `metrics.jsonl`: n logged values."""

    steps: FloatArray
    """[n] optimiser steps, strictly increasing."""
    values: FloatArray
    """[n] values as logged; may hold nan and infinities."""


class Change(NamedTuple):
    """How a series moved from its first tenth to its last tenth."""

    start: float
    end: float
    error: float
    """Standard error of `end - start` from the scatter of the lines; 0 where one line is all there is."""

    @property
    def amount(self) -> float:
        """`end - start`."""
        return self.end - self.start

    @property
    def fell(self) -> bool:
        """Whether the fall is more than two standard errors."""
        return self.amount < -2 * self.error

    @property
    def rose(self) -> bool:
        """Whether the rise is more than two standard errors."""
        return self.amount > 2 * self.error


def change(series: Series | None) -> Change | None:
    """Means of the first and the last tenth of the finite values (three lines at least when there are six).

    None without a series or a finite value.
    """
    if series is None:
        return None
    values = series.values[np.isfinite(series.values)]
    if not len(values):
        return None
    tenth = len(values) // 10
    width = max(3, tenth) if len(values) >= 6 else 1
    head, tail = values[:width], values[-width:]
    spread = float(head.var(ddof=1) + tail.var(ddof=1)) / width if width > 1 else 0.0
    return Change(float(head.mean()), float(tail.mean()), math.sqrt(spread))


def window(length: int) -> int:
    """Lines on each side of the centre in the moving average of a series of that length."""
    return length // 24 if length < 1200 else 50


def smooth(values: FloatArray) -> FloatArray:
    """Centred moving average [n] over `2 window(n) + 1` values, fewer at the ends.

    Values that are not finite are left out; a place with nothing finite around it is nan.
    """
    length, half = len(values), window(len(values))
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    number = np.concatenate([[0], np.cumsum(finite)])
    centre = np.arange(length)
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half + 1, length)
    present = number[high] - number[low]
    mean = (total[high] - total[low]) / np.maximum(present, 1)
    return np.where(present > 0, mean, np.nan)


def thin_out(series: Series, *, limit: int = PLOTTED_POINTS) -> Series:
    """At most `limit` points that keep every peak: the lowest and the highest of each of `limit / 2` stretches.

    Values that are not finite become nan, so that a plotted line breaks there.
    """
    values = np.where(np.isfinite(series.values), series.values, np.nan)
    if len(values) <= limit:
        return Series(series.steps, values)
    kept: list[int] = []
    edges = np.linspace(0, len(values), limit // 2 + 1).astype(int)
    for begin, end in pairwise(edges):
        stretch = values[begin:end]
        if np.isnan(stretch).all():
            kept.append(int(begin))
            continue
        extremes = {int(np.nanargmin(stretch)), int(np.nanargmax(stretch))}
        kept.extend(int(begin) + place for place in sorted(extremes))
    return Series(series.steps[kept], values[kept])
