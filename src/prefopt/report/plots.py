"""The report's drawings: curves, bars with intervals, tokens. Each is SVG text for the page (`svg`).

matplotlib is imported when the first plot is drawn; pyplot and its global figures are not used. The output
holds no date and no random id: the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from prefopt.report.numerals import count, percent
from prefopt.report.series import PLOTTED_POINTS, FloatArray, Series, smooth, thin_out
from prefopt.report.svg import GRID, INK, MUTED, Caption, embed_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

DIRECT_LABELS = 6
"""Up to so many lines are labelled at their end, more get a legend."""
LABEL_LENGTH = 24
"""letters"""
MARKED_POINTS = 25
"""Evaluations that are few enough to carry a marker each."""
WIDTH = 6.2
"""inches of 72 SVG units"""
_STYLE: dict[RcKeyType, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prefopt",
    "svg.id": None,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.unicode_minus": True,
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "text.parse_math": False,
}
_LETTER = 0.58
"""Mean width of a letter in units of the font size, on the wide side."""


class Line(NamedTuple):
    """One curve."""

    label: str
    """Empty for a curve that its neighbour's label covers."""
    colour: str
    """As `run_colour` gives it."""
    series: Series
    dashed: bool = False
    held_out: bool = False
    """Drawn dotted and without smoothing: evaluations are few."""


class Bar(NamedTuple):
    """One final value with its interval."""

    label: str
    colour: str
    value: float
    low: float | None
    high: float | None
    text: str
    """Written beside the bar."""


def draw_curves(
    lines: Sequence[Line],
    caption: Caption,
    *,
    scale: Literal["value", "percent"],
    rule: float | None = None,
) -> str:
    """SVG of curves over optimiser steps: thin as logged, thick the moving average, dotted the evaluations.

    `rule` is a value worth a dotted line (chance, zero).
    """
    from matplotlib import rc_context

    labels = [_shortened(line.label) for line in lines if line.label]
    longest = max(map(len, labels), default=0)
    direct = len(labels) <= DIRECT_LABELS
    columns = max(1, int(WIDTH / (_width(longest) + 0.4)))
    rows = 0 if direct else -(-len(labels) // columns)
    with rc_context(_STYLE):
        margins = _Margins(
            left=0.62, right=_width(longest if direct else 0), bottom=0.5 + 0.2 * rows
        )
        figure, axes = _figure(WIDTH, 3.0 + 0.2 * rows, margins)
        averages = [_draw_line(axes, line) for line in lines]
        _limit(axes, lines, rule)
        if rule is not None:
            axes.axhline(rule, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.locator_params(axis="y", nbins=5)
        axes.ticklabel_format(useOffset=False, scilimits=(-4, 5))
        if scale == "percent":
            axes.yaxis.set_major_formatter(lambda value, _: percent(value, places=0))
        axes.set_xlabel("optimiser step")
        if direct:
            _label_ends(axes, lines, averages)
        else:
            axes.legend(
                loc="upper center",
                bbox_to_anchor=(0.5, -0.16),
                ncols=columns,
                frameon=False,
                fontsize=8.5,
            )
        return _svg(figure, caption)


def draw_bars(bars: Sequence[Bar], caption: Caption, *, proportion: bool) -> str:
    """SVG of horizontal bars from zero with 95% intervals and the numbers beside them."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        margins = _row_margins([bar.label for bar in bars], [bar.text for bar in bars])
        figure, axes = _figure(2 * WIDTH, 0.4 + 0.5 * len(bars), margins)
        for place, bar in enumerate(bars):
            axes.barh(place, bar.value, height=0.56, color=bar.colour, alpha=0.85, linewidth=0)
            edge = bar.value
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [place, place], color=INK, linewidth=1.4)
                axes.plot([bar.low, bar.high], [place, place], "|", color=INK, markersize=9)
                edge = max(edge, bar.high)
            axes.annotate(
                bar.text,
                (edge, place),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        _name_rows(axes, [bar.label for bar in bars])
        reach = max(
            [bar.value for bar in bars] + [bar.high for bar in bars if bar.high is not None]
        )
        lowest = min([0.0] + [bar.value if bar.low is None else bar.low for bar in bars])
        axes.set_xlim(lowest, 1.0 if proportion else max(reach, 1e-9) * 1.1)
        if proportion:
            axes.xaxis.set_major_formatter(lambda value, _: percent(value, places=0))
        return _svg(figure, caption)


def draw_tokens(rows: Sequence[tuple[str, str, float, float]], caption: Caption) -> str:
    """SVG that sets tokens stored in trees against separate rows, for each `(label, colour, rows, trees)`."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        texts = [
            f"{percent(1 - tree / separate)} saved: {count(tree)} instead of {count(separate)}"
            for _, _, separate, tree in rows
        ]
        margins = _row_margins([row[0] for row in rows], texts)
        figure, axes = _figure(2 * WIDTH, 0.6 + 0.5 * len(rows), margins._replace(bottom=0.5))
        for place, (_, colour, separate, tree) in enumerate(rows):
            axes.barh(place, separate, height=0.56, color=colour, alpha=0.22, linewidth=0)
            axes.barh(place, tree, height=0.56, color=colour, alpha=0.85, linewidth=0)
            axes.annotate(
                texts[place],
                (max(separate, tree), place),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
            )
        _name_rows(axes, [row[0] for row in rows])
        axes.set_xlim(0, max([max(row[2], row[3]) for row in rows] + [1.0]))
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
        axes.set_xlabel("tokens")
        return _svg(figure, caption)


class _Margins(NamedTuple):
    """Inches around the axes. Set by hand: measured text would be the plotting font's, not the page's."""

    left: float
    right: float
    bottom: float


def _figure(width: float, height: float, margins: _Margins) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    tall = height - margins.bottom - 0.1
    axes = figure.add_axes(
        (
            margins.left / width,
            margins.bottom / height,
            (width - margins.left - margins.right) / width,
            tall / height,
        )
    )
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=5)
    return figure, axes


def _width(letters: int) -> float:
    """Inches that a text of the usual size takes, with a gap before it."""
    return 0.15 + letters * _LETTER * 9.5 / 72


def _row_margins(labels: Sequence[str], texts: Sequence[str]) -> _Margins:
    left, right = (
        max((len(_shortened(t, 64)) for t in group), default=0) for group in (labels, texts)
    )
    return _Margins(_width(min(left, LABEL_LENGTH)), _width(right) + 0.1, 0.3)


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels=[_shortened(label) for label in labels])
    for tick in axes.get_yticklabels():
        tick.set_color(INK)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.spines["bottom"].set_visible(False)


def _draw_line(axes: Axes, line: Line) -> FloatArray:
    """Draw the curve; returns the thick line's values, by which the label is placed."""
    raw = thin_out(line.series)
    style = (0, (4, 2)) if line.dashed else "-"
    if line.held_out:
        marker = "s" if line.dashed else "o"
        axes.plot(
            *raw,
            color=line.colour,
            linestyle=(0, (1, 1.5)),
            linewidth=1.2,
            marker=marker if len(line.series.steps) <= MARKED_POINTS else None,
            markersize=4.5,
            label=_shortened(line.label) or None,
            zorder=4,
        )
        return line.series.values
    average = smooth(line.series.values)
    thick = thin_out(Series(line.series.steps, average), limit=PLOTTED_POINTS // 2)
    axes.plot(*raw, color=line.colour, linewidth=0.7, alpha=0.35, zorder=2)
    axes.plot(
        *thick,
        color=line.colour,
        linewidth=2,
        linestyle=style,
        label=_shortened(line.label) or None,
        zorder=3,
    )
    return average


def _limit(axes: Axes, lines: Sequence[Line], rule: float | None) -> None:
    """Room for all logged values but the most extreme hundredth: one wild value must not flatten the rest."""
    shown: list[FloatArray] = [np.array([] if rule is None else [rule])]
    for line in lines:
        finite = line.series.values[np.isfinite(line.series.values)]
        shown.append(np.percentile(finite, [0.5, 99.5]) if len(finite) else finite)
    every = np.concatenate(shown)
    if not len(every):
        return
    low, high = float(every.min()), float(every.max())
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    axes.set_ylim(low - room, high + room)


def _label_ends(axes: Axes, lines: Sequence[Line], averages: Sequence[FloatArray]) -> None:
    """Write each label at the right edge at its curve's last value, moved apart where labels would touch."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.075
    ends = sorted(
        (float(values[np.isfinite(values)][-1]), line.label, line.colour)
        for line, values in zip(lines, averages, strict=True)
        if line.label and np.isfinite(values).any()
    )
    heights = spread_apart([end for end, _, _ in ends], gap=gap, low=low, high=high)
    for height, (_, label, colour) in zip(heights, ends, strict=True):
        axes.annotate(
            _shortened(label),
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(7, 0),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def spread_apart(places: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """The rising `places` moved as little as needed to be `gap` apart, inside `low` to `high` if they fit."""
    moved = list(places)
    for place in range(1, len(moved)):
        moved[place] = max(moved[place], moved[place - 1] + gap)
    overshoot = max(0.0, moved[-1] - high) if moved else 0.0
    for place in range(len(moved) - 1, -1, -1):
        ceiling = high if place == len(moved) - 1 else moved[place + 1] - gap
        moved[place] = min(moved[place], ceiling) if overshoot else moved[place]
    return [max(value, low) for value in moved[:1]] + moved[1:]


def _shortened(label: str, length: int = LABEL_LENGTH) -> str:
    """The label without its middle when it is too long: names of runs often differ at the end."""
    half = length // 2
    return label if len(label) <= length else f"{label[: length - half - 1]}…{label[-half:]}"


def _svg(figure: Figure, caption: Caption) -> str:
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # Text stays text: a letter that the plotting font lacks is drawn by the reader's browser.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return embed_svg(buffer.getvalue(), caption)
