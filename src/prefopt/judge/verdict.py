"""What a judge's text says: the first wrong step out of a list such as `Step 1: correct; Step 2: incorrect`.

Two sets of rules: those of the published Step-DPO pipeline, reproduced with what they lose, and corrected ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

Rules = Literal["official", "corrected"]
Reason = Literal[
    "found", "none", "no verdict", "unclear", "contradiction", "count0", "count1", "count2"
]

_HEADER = re.compile(r"final\s+decision", re.IGNORECASE)
_NUMBERS = r"\d{1,4}(?:\s*(?:,|&|-|–|to|and)(?:\s*and)?\s*(?:steps?\s*)?\d{1,4})*"
_MARKS = "✅✔✓☑👍🟢❌✗✘✖❎✕👎🔴🟡⚠➖\ufe0f"
"""Pictures around a verdict; they say nothing that the word beside them does not."""
_RIGHT_MARKS, _WRONG_MARKS = "✅✔✓☑👍🟢", "❌✗✘✖✕👎🔴"
"""Those that are a verdict where no word is."""
_VERDICT = r"(?:not\s+correct|incorrect|wrong|correct|neutral)"
_MENTION = re.compile(
    rf"(?:\A|(?<=[;,\n|.→>:){_MARKS}])|(?<=correct)|(?<=wrong)|(?<=neutral))"
    rf"[\s*_`#>|)\-\d.{_MARKS}]{{0,64}}(?:and\s+)?[*_`]*"
    rf"\bsteps?\s*(?:\#\s*)?({_NUMBERS})(?!\w)",
    re.IGNORECASE,
)
"""At the start of an entry: a step that is spoken of in the middle of a remark is none. Runs are bounded, so that the
search is linear in the text."""
_RANGE = re.compile(r"(\d+)\s*(?:-|–|to)\s*(?:steps?\s*)?(\d+)", re.IGNORECASE)
_BRACKETS = r"(?:\((?:[^()\n;]|\([^()\n;]{0,80}\)){1,160}\)|\[[^\[\]\n;]{1,160}\])"
_GAP = rf"[\s:|*_`(\[)\].=>→\-–—\"'{_MARKS}]{{0,64}}"
_SAID = rf"{_GAP}(?:(?:is|are|was)\s+)?[*_`(\[\"'{_MARKS}]{{0,16}}(?P<word>{_VERDICT})\b"
_END = rf"[*_`)\]|.\"']*[^\S\n]{{0,8}}[{_MARKS}]{{0,8}}\s*(?:$|[;,\n(|\-–—:])"
_WORDS = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        # A title that begins with a verdict, `Step 2 (correct the sign): incorrect`; `Step 2 (correct): fine` has none.
        rf"[\s*_`]{{0,4}}(?=[(\[])(?!.\W{{0,9}}{_VERDICT}\W{{0,9}}[)\]]){_BRACKETS}[\s*_`]{{0,4}}:{_SAID}(?={_END})",
        rf"\s{{1,4}}[-–—]\s{{1,4}}(?!{_VERDICT}\s*:)[^:;|\n]{{1,80}}:{_SAID}(?={_END})",
        # Any other title, or none.
        rf"(?:[\s*_`]{{0,4}}(?![(\[]\W{{0,9}}(?:not\s|incorrect|wrong|correct|neutral)){_BRACKETS})?{_SAID}",
        rf"\s{{1,4}}[-–—]\s{{1,4}}(?:(?!{_VERDICT})[^:;|\n]){{1,80}}:{_SAID}",
    )
)
"""The verdict on a step, from behind its number on; the first form that fits counts."""
_MARKED = re.compile(
    rf"(?:[\s*_`]{{0,4}}{_BRACKETS})?[\s:|*_`(\[=>→\-–—\"']{{0,64}}(?P<mark>[{_RIGHT_MARKS}]+|[{_WRONG_MARKS}]+)"
    rf"\ufe0f?{_END}",
    re.MULTILINE,
)
_STRICT_END = re.compile(_END, re.MULTILINE)
_NAMED = re.compile(
    r"\W*(?:reasoning\s+)?steps?(?:\s*(?:#|no\.?|number|index|id))?\W*", re.IGNORECASE
)
_NUMBERED = re.compile(r"\W*(?:#|no\.?|nr\.?|number)\W*", re.IGNORECASE)
_JUDGED = re.compile(
    r"\b(?:verdict|decision|judg\w*|correct\w*|status|assessment|evaluation|label)\b", re.IGNORECASE
)
_BARE = re.compile(rf"[*_`#\s]*(?:steps?\s*)?({_NUMBERS})[*_`.\s]*", re.IGNORECASE)
_WRONG = re.compile(r"\b(?:not\s+correct|incorrect|wrong)", re.IGNORECASE)


class Reading(NamedTuple):
    """What a judge's text says."""

    number: int | None
    """The first wrong step, from 1; None unless the reason is `found`."""
    reason: Reason
    """`found`, or why there is no number.

    Corrected rules: `none` (a list without a wrong step), `no verdict` (no list), `unclear` (a list that cannot be
    read to its first wrong step), `contradiction` (one step with two verdicts). Official rules: `count0`, `count1`,
    `count2`, the counters of the published script."""


def parse_verdict(text: str, *, rules: Rules = "corrected") -> Reading:
    """The first wrong step that a judge names.

    Corrected rules. The list after the last header `Final Decision` that is followed by one counts; without such a
    header, every `Step i: verdict` of the text. Entries may be separated in any way, carry Markdown or a title
    (`Step 1 (set up): correct`), be rows of a table or have a mark for a word (`Step 2: ❌`); one entry may speak of
    several steps (`Steps 1-3: correct`).
    `neutral` is no error. The lowest step called incorrect is taken, whatever is said of steps after it: the judge was
    asked to stop there. Before it nothing may be unreadable.

    Official rules (arXiv 2406.18629, `prepare_for_correction.py` of the published code): lower case; the text after
    the last `final decision` and the last `summary decision:`; dropped without `neutral` and `incorrect` (`count0`);
    of what precedes the first of these words the last line, and of this the part after the last `;`; dropped where it
    holds `step` twice (`count1`: lists separated by commas); the integer between `step` and `:`, or dropped
    (`count2`). A neutral step so counts as wrong.
    """
    return _official(text) if rules == "official" else _corrected(text)


def _official(text: str) -> Reading:
    text = text.lower().rpartition("final decision")[2].rpartition("summary decision:")[2].strip()
    if "neutral" not in text and "incorrect" not in text:
        return Reading(None, "count0")
    before = text.split("neutral")[0].split("incorrect")[0]
    entry = before.rpartition("\n")[2].rpartition(";")[2]
    if entry.count("step") > 1:
        return Reading(None, "count1")
    number = entry.rpartition("step")[2].partition(":")[0].strip()
    try:
        return Reading(int(number), "found")
    except ValueError:
        return Reading(None, "count2")


def _without_tables(text: str) -> str:
    """The text with the rows of tables with a column `Step`, or `#` and `Verdict`, as entries `Step 1 | correct`."""
    lines, header = text.split("\n"), list[str]()
    for number, line in enumerate(lines):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) < 2:
            header = []
        elif _columns(cells):
            header = cells
        elif header:
            lines[number] = _as_entry(line, cells, header)
    return "\n".join(lines)


def _columns(header: Sequence[str]) -> list[int]:
    """The columns that may hold the number of a step, the likeliest first; none where the row heads no such table."""
    named = [i for i, cell in enumerate(header) if _NAMED.fullmatch(cell)]
    judged = any(_JUDGED.search(cell) for cell in header)
    numbered = [i for i, cell in enumerate(header) if _NUMBERED.fullmatch(cell)] if judged else []
    return [*named, *(i for i in numbered if i not in named)]


def _as_entry(line: str, cells: list[str], header: list[str]) -> str:
    for at in _columns(header):
        bare = _BARE.fullmatch(cells[at]) if at < len(cells) else None
        if bare is not None:
            others = range(at + 1, len(cells))
            judged = (i for i in others if i < len(header) and _JUDGED.search(header[i]))
            first = next(judged, at + 1)
            return f"Step {bare[1]} | {' | '.join(cells[first:])} |"
    return line


class _Entry(NamedTuple):
    steps: tuple[int, ...]
    word: Literal["correct", "neutral", "incorrect", "unreadable"]


def _corrected(text: str) -> Reading:
    text = _without_tables(text)
    headers = list(_HEADER.finditer(text))
    ends = [header.start() for header in headers[1:]] + [len(text)]
    for header, end in reversed(list(zip(headers, ends, strict=False))):
        section = text[header.end() : end]
        entries = _entries(section)
        if any(entry.word != "unreadable" for entry in entries):
            return _decide(entries, section)
    return _decide([e for e in _entries(text, strict=True) if e.word != "unreadable"], text)


def _entries(section: str, *, strict: bool = False) -> list[_Entry]:
    """What the text says of steps, in its order.

    With `strict` a verdict has to stand alone after its step, as in a list: `Step 3 is incorrect because` in the
    middle of a sentence does not.
    """
    mentions = list(_MENTION.finditer(section))
    ends = [mention.start() for mention in mentions[1:]] + [len(section)]
    marks = _marks_after(section, mentions)
    found: list[_Entry] = []
    for mention, end, mark in zip(mentions, ends, marks, strict=False):
        tried = (form.match(section, mention.end(), end) for form in _WORDS)
        match = next((fits for fits in tried if fits), None)
        alone = match is not None and _STRICT_END.match(section, match.end()) is not None
        word = _verdict(match["word"]) if match and (alone or not strict) else "unreadable"
        if match is None and mark is not None:
            word = mark
        found.append(_Entry(_steps(mention[1]), word))
    return found


def _marks_after(
    section: str, mentions: Sequence[re.Match[str]]
) -> list[Literal["correct", "incorrect"] | None]:
    """What the picture after each step says; None where there is none, or where pictures stand before the steps."""
    begins = [mention.start() + mention[0].lower().index("step") for mention in mentions]
    if not mentions or re.search(f"[{_MARKS}]", section[mentions[0].start() : begins[0]]):
        return [None] * len(mentions)
    found: list[Literal["correct", "incorrect"] | None] = []
    for mention, end in zip(mentions, [*begins[1:], len(section)], strict=True):
        match = _MARKED.match(section[mention.end() : end].rstrip(" \t*_`#"))
        right = match is not None and match["mark"][0] in _RIGHT_MARKS
        found.append(None if match is None else "correct" if right else "incorrect")
    return found


def _verdict(word: str) -> Literal["correct", "neutral", "incorrect"]:
    word = word.lower()
    if word in {"correct", "neutral"}:
        return "correct" if word == "correct" else "neutral"
    return "incorrect"


def _steps(numbers: str) -> tuple[int, ...]:
    """The steps that `1, 2 and 4` or `1-3` speaks of."""
    found = [int(n) for n in re.findall(r"\d+", numbers)]
    for first, last in _RANGE.findall(numbers):
        # No solution has a thousand steps: such a number is no step.
        found.extend(range(int(first), min(int(last), int(first) + 1000)))
    return tuple(sorted(set(found)))


def _decide(entries: Sequence[_Entry], section: str) -> Reading:
    readable = [entry for entry in entries if entry.word != "unreadable"]
    if not readable:
        return Reading(None, "no verdict")
    wrong = [entry.steps[0] for entry in readable if entry.word == "incorrect"]
    first = min(wrong, default=None)
    right = {step for entry in readable if entry.word != "incorrect" for step in entry.steps}
    if first is None:
        untitled = _WORDS[0].sub(lambda said: said["word"], section)
        unclear = len(readable) < len(entries) or _WRONG.search(untitled) is not None
        return Reading(None, "unclear" if unclear else "none")
    if first in right:
        return Reading(None, "contradiction")
    unread = (step for entry in entries if entry.word == "unreadable" for step in entry.steps)
    if any(step < first and step not in right for step in unread):
        return Reading(None, "unclear")
    return Reading(first, "found")
