"""The pairs of ranked and scored lists, and of records that bring theirs: which there are, and which are left out.

The first half of a curriculum; how easy the pairs are and which stages they become is in `curriculum.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from prefopt.build.stages import CurriculumRules
from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.records import Pair, Preference, Response
from prefopt.text.pairing import annotated, candidates

FEW = "fewer than two different scores or ranks"
NONE_LEFT = "no pair is left"
UNSCORED = "a response without a score or rank left out"
TIED = "a pair of equal scores left out"
EQUAL_TEXTS = "a pair of equal texts left out"
REPEATED = "a pair that was there before left out"


class Listed(NamedTuple):
    """A record with its pairs."""

    record: Preference
    prompt: bytes | None
    """Digest of its prompt where it is a row of one pair, which may be one of several; None for lists."""


def pairs_of(
    records: Sequence[Preference],
    rules: CurriculumRules,
    ledger: Ledger,
    counts: dict[str, int],
) -> Iterator[Listed]:
    """Records with all their pairs, ties too if they are kept; records without any are dropped by name.

    Raises:
        RecordError: a response of a list has neither a score nor a rank, and `on_missing` is `error`.
    """
    seen: set[bytes] = set()
    for record in records:
        left_out: list[str] = []
        prompt = _prompt_key(record)
        pairs = tuple(_distinct(record, prompt, rules, seen, left_out))
        for reason in left_out:
            count(counts, reason)
            ledger.note(record.id, reason=reason)
        if pairs:
            alone = len(record.pairs) == 1 or (not record.pairs and len(record.responses) == 2)
            yield Listed(replace(record, pairs=pairs), prompt if alone else None)
        else:
            few = not record.pairs and len(set(_values(record).values())) < 2
            count(counts, FEW, int(few))
            ledger.drop(record.id, reason=FEW if few else NONE_LEFT)


def count(counts: dict[str, int], reason: str, number: int = 1) -> None:
    """Add to what is counted under that reason."""
    if number:
        counts[reason] = counts.get(reason, 0) + number


def groups_of(listed: Sequence[Listed]) -> list[int]:
    """The index of the first record of each record's group, see `StagedPair.group`."""
    first: dict[bytes, int] = {}
    return [
        i if each.prompt is None else first.setdefault(each.prompt, i)
        for i, each in enumerate(listed)
    ]


def tied(record: Preference, pair: Pair) -> bool:
    """Whether both responses of the pair have the same score or rank."""
    value, missing = _values(record), math.nan
    return value.get(pair.chosen, missing) == value.get(pair.rejected, missing)


def require_annotated(record: Preference) -> None:
    """Nothing, if every response of the list has a score or a rank.

    Raises:
        RecordError: one has neither.
    """
    value = _values(record)
    missing = [i for i in range(len(record.responses)) if i not in value]
    if missing:
        raise RecordError(
            f"{record.origin or record.id}: response {missing[0] + 1} has neither a score nor a rank; repair it, or "
            "set on_missing: drop"
        )


def _distinct(
    record: Preference,
    prompt: bytes,
    rules: CurriculumRules,
    seen: set[bytes],
    left_out: list[str],
) -> Iterator[Pair]:
    """The pairs that stay; why others do not is added to `left_out`."""
    for pair in record.pairs or _pairs_of_list(record, rules, left_out):
        sides = [_text(record.responses[i]) for i in (pair.chosen, pair.rejected)]
        key = _key(prompt, *sides)
        if sides[0] == sides[1]:
            left_out.append(EQUAL_TEXTS)
        elif key in seen:
            left_out.append(REPEATED)
        elif rules.on_ties == "drop" and tied(record, pair):
            left_out.append(TIED)
        else:
            seen.add(key)
            yield pair


def _pairs_of_list(
    record: Preference, rules: CurriculumRules, left_out: list[str]
) -> tuple[Pair, ...]:
    value = _values(record)
    if rules.on_missing == "error":
        require_annotated(record)
    left_out += [UNSCORED] * (len(record.responses) - len(value))
    if len(set(value.values())) < 2:
        return ()
    return tuple(Pair(a, b) for a, b in candidates(value, rules.pairing))


def _text(response: Response) -> str:
    """What the response says, annotations aside."""
    return repr((response.text, response.turns, response.ends))


def _values(record: Preference) -> dict[int, float]:
    """Position -> score, or rank negated, of the responses that have one."""
    return {i: v for i, v in annotated(record.responses).items() if math.isfinite(v)}


def _prompt_key(record: Preference) -> bytes:
    """The same for records whose responses continue the same text."""
    meta = [record.meta.get(name) for name in ("tools", "chat_template_kwargs")]
    return _key(repr((record.prompt, record.prefix, meta)))


def _key(*parts: str | bytes) -> bytes:
    """A digest, since the texts of all pairs would take more memory than the data."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part if isinstance(part, bytes) else part.encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.digest()
