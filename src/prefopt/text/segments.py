"""Solutions as segments that may be written anew: `Step k:` steps, or lines. Joined they are the text; no torch.

Code-integrated solutions have blocks instead (`prefopt.text.blocks`).
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from prefopt.text.steps import split_steps

How = Literal["auto", "markers", "lines"]
Kind = Literal["markers", "lines"]

STOPS: dict[Kind, tuple[str, ...]] = {
    "markers": ("\nStep", "\n**Step", "\n### Step", "\n## Step"),
    "lines": ("\n",),
}
"""Strings that begin the next segment, for generators that write one segment at a time. Servers take four at most."""


class Segments(NamedTuple):
    """A text taken apart."""

    parts: tuple[str, ...]
    """Joined they are the text. Every part but the last ends with its line break."""
    kind: Kind


def split_segments(text: str, how: How = "auto", *, opening: str = "") -> Segments:
    """The text as its steps or its lines; `auto` takes steps where there is a marker `Step 1:`, else lines.

    What precedes the first marker belongs to the first step, a blank line to the line before it.

    Args:
        text: a whole solution; an empty one has no parts.
        how: what a segment is.
        opening: given text that the solution starts with; it never stands alone, but belongs to the first segment
            that goes beyond it.
    """
    steps = split_steps(text).steps if how != "lines" else ()
    if how == "markers" or steps:
        cuts = [len(step.marker + step.text) for step in steps[1:]]
        parts: list[str] = []
        for length in reversed(cuts):
            text, part = text[:-length], text[-length:]
            parts.insert(0, part)
        return Segments(_beyond(opening, [text, *parts]), "markers")
    return Segments(_beyond(opening, _lines(text)), "lines")


def cut_points(count: int, *, leave: int = 1) -> range:
    """How many segments of a solution of `count` may be kept while at least `leave` are written anew: 0, 1, ...

    0 is the whole solution, always. The published code for code-integrated solutions leaves two blocks
    (`prefopt.text.blocks.cut_points`), for instance the code and the text after it; a step or a line of reasoning is
    a whole on its own, hence one.
    """
    return range(max(1, count - leave + 1))


def _lines(text: str) -> list[str]:
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    parts: list[str] = []
    for line in lines:
        if parts and (not line.strip() or not parts[-1].strip()):
            parts[-1] += line
        else:
            parts.append(line)
    return parts


def _beyond(opening: str, parts: list[str]) -> tuple[str, ...]:
    """The parts, the first ones joined until they reach beyond the opening; empty ones left out."""
    head = 1
    while head < len(parts) and len("".join(parts[:head])) <= len(opening):
        head += 1
    joined = ["".join(parts[:head]), *parts[head:]]
    return tuple(part for part in joined if part)
