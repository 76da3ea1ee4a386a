"""Worked solutions: where their final answer stands, and the text without the marks of data sets."""

from __future__ import annotations

import re

ANSWER_MARK = "####"
"""What precedes the final answer in GSM8K."""
_CALCULATION = re.compile(r"<<[^<>]*>>")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*\{|[ ]+([^\s${}]+))")
"""`\\boxed{`, or the rare `\\boxed 5` of MATH, whose content is one word."""


def final_answer(text: str) -> str | None:
    """The final answer that a worked solution marks, None where it marks none."""
    if ANSWER_MARK in text:
        return _THOUSANDS.sub("", text.rpartition(ANSWER_MARK)[2].strip())
    box = last_box(text)
    return None if box is None else box.strip()


def worked_text(text: str) -> str:
    """The worked text without calculator marks and without GSM8K's last line."""
    return _CALCULATION.sub(
        "", text.rpartition(ANSWER_MARK)[0] if ANSWER_MARK in text else text
    ).strip()


def last_box(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` or `\fbox{...}` whose braces balance; None where there is none."""
    for box in reversed(list(_BOX.finditer(text))):
        if box.group(1) is not None:
            return box.group(1)
        end = _closing(text, box.end())
        if end is not None:
            return text[box.end() : end]
    return None


def _closing(text: str, start: int) -> int | None:
    """Position of the brace that closes the one before `start`; escaped braces do not count."""
    depth, at = 1, start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] in "{}":
            depth += 1 if text[at] == "{" else -1
            if depth == 0:
                return at
        at += 1
    return None
