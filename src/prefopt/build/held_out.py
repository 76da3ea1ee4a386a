"""Which questions a build holds out: none of them is trained on, in whatever row of whatever file it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from prefopt.build.step_data import question_of
from prefopt.records import Preference
from prefopt.text.problems import Problem

P = TypeVar("P", bound=Problem)


def belongs_to_share(name: str, share: float) -> bool:
    """Whether the digest of a name falls into the given share of all digests."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def is_held_out(problem: Problem, share: float) -> bool:
    """Whether a problem is held out.

    Its question alone decides, whatever white space it is written with, and not its id: repeats of a question are on
    one side, and a question is on the same side in every file of a build and in every later build.
    """
    return belongs_to_share(_question(problem), share)


def split_held_out(
    records: Sequence[Preference], problems: Sequence[Problem], share: float
) -> tuple[list[Preference], list[Preference]]:
    """The records to train on and those held out, by the problem whose id is in their `meta`, in their order."""
    held = {problem.id for problem in problems if is_held_out(problem, share)}
    out = [record.meta["problem"] in held for record in records]
    kept = [r for r, is_out in zip(records, out, strict=True) if not is_out]
    return kept, [r for r, is_out in zip(records, out, strict=True) if is_out]


def repeated_questions(problems: Sequence[P]) -> list[P]:
    """The problems whose question an earlier one has too."""
    seen: set[str] = set()
    repeated: list[P] = []
    for problem in problems:
        question = _question(problem)
        if question in seen:
            repeated.append(problem)
        seen.add(question)
    return repeated


def _question(problem: Problem) -> str:
    return " ".join(question_of(problem).split())
