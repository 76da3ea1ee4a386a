"""Making a drawing part of the page: colours by CSS variable, ids of its own, nothing that names an address.

Colours are drawn as sentinels and replaced by `var(--run-0)` and the like, so that the page's light and dark
schemes apply to the plots as well.
"""

from __future__ import annotations

import re
from html import escape
from typing import NamedTuple

RUN_COLOURS = 8
"""Distinct run colours in the style sheet; later runs use them again."""
INK, MUTED, GRID, BASE = "#fe0101", "#fe0102", "#fe0103", "#fe0104"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", BASE: "run-base"} | {
    f"#fe00{run:02x}": f"run-{run}" for run in range(RUN_COLOURS)
}


class Caption(NamedTuple):
    """What a reader who cannot see the plot is told. `name` is unique on the page and prefixes all ids."""

    name: str
    title: str
    description: str


def run_colour(place: int | None) -> str:
    """The colour of the run at that place of the report; None is the starting point, which is grey."""
    return BASE if place is None else f"#fe00{place % RUN_COLOURS:02x}"


def css_colour(colour: str) -> str:
    """The same colour as a CSS value: `var(--run-0)`."""
    return f"var(--{_VARIABLES[colour]})"


def embed_svg(source: str, caption: Caption) -> str:
    """The SVG file that matplotlib wrote, as an element for an HTML page.

    Drops the XML header, the document type and the metadata (they name addresses), ids that nothing refers to
    and the fixed size; prefixes the other ids with `caption.name`; puts title and description first; replaces
    the sentinel colours by CSS variables.
    """
    svg = source[source.index("<svg") :].replace("xlink:href", "href")
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    svg = re.sub(
        r' id="([^"]*)"', lambda m: f' id="{caption.name}-{m[1]}"' if m[1] in used else "", svg
    )
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{caption.name}-", svg)
    svg = re.sub(r"#fe0[01][0-9a-f]{2}", lambda m: css_colour(m[0]), svg)
    svg = re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*(; )?", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
    box = re.search(r'viewBox="([^"]+)"', svg)
    opening = (
        f'<svg viewBox="{box[1] if box else "0 0 1 1"}" role="img" '
        f'aria-labelledby="{caption.name}-title {caption.name}-description">'
        f'<title id="{caption.name}-title">{escape(caption.title)}</title>'
        f'<desc id="{caption.name}-description">{escape(caption.description)}</desc>'
    )
    return re.sub(r"\n\s*", "\n", opening + svg[svg.index(">") + 1 :]).strip()
