"""A curriculum: ranked or scored responses become pairs, and pairs become stages from easy to hard.

Curry-DPO (Pattnaik et al. 2024, arXiv 2403.07230) pairs the best response with each of the others and trains on the
pairs with the largest gap first. Everything here is a pure function of records; how easy a pair is, is measured in
`difficulty.py`, and stages are cut in `stages.py`. The paper is silent on ties, missing scores and unequal lists:
`CurriculumRules` has what is done about them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from prefopt.build.stages import CurriculumRules, StagedPair, in_stages, staying
from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.records import Pair, Preference, Response
from prefopt.text.nested import STAGE
from prefopt.text.pairing import annotated, candidates

EASE = "ease"
"""Key of `Preference.meta` that holds how easy the pair is."""

FEW = "fewer than two different scores or ranks"
NONE_LEFT = "no pair is left"
UNSCORED = "a response without a score or rank left out"
UNMEASURED = "a pair whose ease cannot be measured left out"
UNFIT = "a pair that training would drop for its length left out"
TIED = "a pair of equal scores left out"
EQUAL_TEXTS = "a pair of equal texts left out"
REPEATED = "a pair that was there before left out"
TOO_HARD = "a pair left out by drop_hardest"
ELSEWHERE = "a pair outside of the one stage left out"

Measure = Callable[[Sequence[Preference]], Sequence[tuple[float | None, ...]]]
"""How easy each pair of each record is, higher is easier; NaN where that cannot be said, None where training would drop
the pair for the length of its text."""


class Curriculum(NamedTuple):
    """The stages in the order of training; in each, pairs in the order of the data."""

    records: list[Preference]
    stages: list[list[StagedPair]]
    counts: dict[str, int]
    """Pairs and responses left out, by reason."""

    def file_of(self, stage: int) -> list[Preference]:
        """The records of one stage (from 1): a pair each, with the stage and the ease in `meta`."""
        return [_single(self.records[each.record], each, stage) for each in self.stages[stage - 1]]


def make_curriculum(
    records: Sequence[Preference], measure: Measure, rules: CurriculumRules, ledger: Ledger
) -> Curriculum:
    """Pairs of the records, in stages; every record gets a fate in the ledger.

    Args:
        records: with scores or ranks on the responses, or with pairs.
        measure: how easy pairs are; not called for stages that are `given`.
        rules: what to do with them.
        ledger: where the records have entered.

    Raises:
        RecordError: a score or a stage is missing, or no pair is left.
        ConfigError: there are fewer pairs than quantiles, or `only` names a stage that is not there.
    """
    counts: dict[str, int] = {}
    paired = list(_paired(records, rules, ledger, counts))
    found = _measured(paired, measure, rules, ledger, counts)
    if not found:
        reasons = ", ".join(f"{n} times {reason}" for reason, n in counts.items())
        raise RecordError(
            f"{ledger.source}: none of {len(records)} records has a pair: {reasons or FEW}; give responses with "
            "different scores or ranks, or pairs"
        )
    stages = in_stages(found, paired, rules)
    used = {each.record for stage in stages for each in stage}
    too_hard = len(found) - staying(len(found), rules)
    _count(counts, TOO_HARD, too_hard)
    _count(counts, ELSEWHERE, len(found) - too_hard - sum(map(len, stages)))
    for i in {each.record for each in found}:
        if i in used:
            ledger.keep(paired[i].id)
        else:
            ledger.drop(paired[i].id, reason=NONE_LEFT)
    return Curriculum(paired, [sorted(stage, key=_place) for stage in stages], counts)


def _place(each: StagedPair) -> tuple[int, int, int]:
    return each.record, each.pair.chosen, each.pair.rejected


def _count(counts: dict[str, int], reason: str, number: int = 1) -> None:
    if number:
        counts[reason] = counts.get(reason, 0) + number


def _paired(
    records: Sequence[Preference],
    rules: CurriculumRules,
    ledger: Ledger,
    counts: dict[str, int],
) -> Iterator[Preference]:
    """Records with all their pairs, ties too if they are kept; records without any are dropped by name."""
    seen: set[str] = set()
    for record in records:
        left_out: list[str] = []
        pairs = [
            pair
            for pair in record.pairs or _pairs_of_list(record, rules, left_out)
            if not _refused(record, pair, rules, seen, left_out)
        ]
        for reason in left_out:
            _count(counts, reason)
            ledger.note(record.id, reason=reason)
        if pairs:
            yield replace(record, pairs=tuple(pairs))
        else:
            few = not record.pairs and len(set(_values(record).values())) < 2
            _count(counts, FEW, int(few))
            ledger.drop(record.id, reason=FEW if few else NONE_LEFT)


def _pairs_of_list(
    record: Preference, rules: CurriculumRules, left_out: list[str]
) -> tuple[Pair, ...]:
    value = _values(record)
    missing = [i for i in range(len(record.responses)) if i not in value]
    if missing and rules.on_missing == "error":
        raise RecordError(
            f"{record.origin or record.id}: response {missing[0] + 1} has neither a score nor a rank; repair it, or "
            "set on_missing: drop"
        )
    left_out += [UNSCORED] * len(missing)
    if len(set(value.values())) < 2:
        return ()
    return tuple(Pair(a, b) for a, b in candidates(value, rules.pairing))


def _refused(
    record: Preference,
    pair: Pair,
    rules: CurriculumRules,
    seen: set[str],
    left_out: list[str],
) -> bool:
    """Whether the pair is left out; the reason is added to `left_out`."""
    sides = [_text(record.responses[i]) for i in (pair.chosen, pair.rejected)]
    key = repr((record.prompt, record.prefix, sides))
    if sides[0] == sides[1]:
        left_out.append(EQUAL_TEXTS)
    elif key in seen:
        left_out.append(REPEATED)
    elif rules.on_ties == "drop" and _tied(record, pair):
        left_out.append(TIED)
    else:
        seen.add(key)
        return False
    return True


def _text(response: Response) -> str:
    """What the response says, annotations aside."""
    return repr((response.text, response.turns, response.ends))


def _values(record: Preference) -> dict[int, float]:
    """Position -> score, or rank negated, of the responses that have one."""
    return {i: v for i, v in annotated(record.responses).items() if math.isfinite(v)}


def _tied(record: Preference, pair: Pair) -> bool:
    value, missing = _values(record), math.nan
    return value.get(pair.chosen, missing) == value.get(pair.rejected, missing)


def _measured(
    paired: Sequence[Preference],
    measure: Measure,
    rules: CurriculumRules,
    ledger: Ledger,
    counts: dict[str, int],
) -> list[StagedPair]:
    given = rules.stages == "given"
    eases = [(math.nan,) * len(r.pairs) for r in paired] if given else measure(paired)
    found: list[StagedPair] = []
    for i, (record, values) in enumerate(zip(paired, eases, strict=True)):
        kept = 0
        for pair, ease in zip(record.pairs, values, strict=True):
            if ease is None:
                _count(counts, UNFIT)
                ledger.note(record.id, reason=UNFIT)
                continue
            if not given and not math.isfinite(ease):
                _refuse_unmeasured(record, pair, rules)
                _count(counts, UNMEASURED)
                ledger.note(record.id, reason=UNMEASURED)
                continue
            kept += 1
            found.append(StagedPair(i, pair, ease, _tied(record, pair)))
        if not kept:
            ledger.drop(record.id, reason=NONE_LEFT)
    return found


def _refuse_unmeasured(record: Preference, pair: Pair, rules: CurriculumRules) -> None:
    if rules.on_missing == "error":
        raise RecordError(
            f"{record.origin or record.id}: the pair of responses {pair.chosen + 1} and {pair.rejected + 1} has no "
            "difficulty (a score is missing, or no number came back); repair it, choose another difficulty, or "
            "set on_missing: drop"
        )


def pair_record(record: Preference, pair: Pair) -> Preference:
    """The record with the two responses of one pair, as it is trained on."""
    return replace(
        record,
        id=f"{record.id}/{pair.chosen}-{pair.rejected}",
        responses=(record.responses[pair.chosen], record.responses[pair.rejected]),
        pairs=(replace(pair, chosen=0, rejected=1),),
    )


def _single(record: Preference, each: StagedPair, stage: int) -> Preference:
    """A pair with its stage and its ease in `meta`."""
    meta = {**record.meta, STAGE: stage}
    if math.isfinite(each.ease):
        meta[EASE] = each.ease
    return replace(pair_record(record, each.pair), meta=meta)
