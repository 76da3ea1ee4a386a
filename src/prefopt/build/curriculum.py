"""A curriculum: ranked or scored responses become pairs, and pairs become stages from easy to hard.

Curry-DPO (Pattnaik et al. 2024, arXiv 2403.07230) pairs the best response with each of the others and trains on the
pairs with the largest gap first. Everything here is a pure function of records; how easy a pair is, is measured in
`difficulty.py`, and stages are cut in `stages.py`. The paper is silent on ties, missing scores and unequal lists:
`CurriculumRules` has what is done about them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from prefopt.build.listed_pairs import (
    FEW,
    NONE_LEFT,
    Listed,
    count,
    groups_of,
    pairs_of,
    tied,
)
from prefopt.build.stages import (
    OWN_STAGE,
    CurriculumRules,
    StagedPair,
    in_stages,
    says_stage,
    staying,
)
from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.records import Pair, Preference

EASE = "curriculum_ease"
"""Key of `Preference.meta` that holds how easy the pair is; the data may have an `ease` of their own."""

UNMEASURED = "a pair whose ease cannot be measured left out"
UNFIT = "a pair that training would drop left out"
TOO_LONG = "a pair that is too long for the model of the difficulty left out"
TOO_HARD = "a pair left out by drop_hardest"
ELSEWHERE = "a pair outside of the one stage left out"

Measure = Callable[[Sequence[Preference]], Sequence[tuple[float | None, ...]]]
"""How easy each pair of each record is, higher is easier; NaN where that cannot be said, None where the model that
would say it drops the pair for the length of its text."""

Unfit = Callable[[Sequence[Preference]], Sequence[str | None]]
"""Why training would drop each of these records of one pair; None where it would not."""


class Curriculum(NamedTuple):
    """The stages in the order of training; in each, pairs in the order of the data."""

    records: list[Preference]
    stages: list[list[StagedPair]]
    counts: dict[str, int]
    """Pairs and responses left out, by reason."""
    remarks: list[str]
    """What a user should know about the layout: what was put together, and what of the rules had nothing to do."""

    def file_of(self, stage: int) -> list[Preference]:
        """The records of one stage (from 1): a pair each, with the stage and the ease in `meta`."""
        return [_single(self.records[each.record], each, stage) for each in self.stages[stage - 1]]


def make_curriculum(
    records: Sequence[Preference],
    measure: Measure,
    rules: CurriculumRules,
    ledger: Ledger,
    *,
    unfit: Unfit | None = None,
) -> Curriculum:
    """Pairs of the records, in stages; every record gets a fate in the ledger.

    Args:
        records: with scores or ranks on the responses, or with pairs.
        measure: how easy pairs are; not called for stages that are `given`.
        rules: what to do with them.
        ledger: where the records have entered.
        unfit: which pairs cannot be trained on, since a stage of nothing else would end a run that has begun; None: all
            can.

    Raises:
        RecordError: a score or a stage is missing, or no pair is left.
        ConfigError: there are fewer pairs than quantiles, or `only` names a stage that is not there.
    """
    counts: dict[str, int] = {}
    listed = list(pairs_of(records, rules, ledger, counts))
    if unfit is not None:
        listed = list(_fitting(listed, unfit, ledger, counts))
    paired = [each.record for each in listed]
    found = _measured(listed, measure, rules, ledger, counts) if listed else []
    if not found:
        reasons = ", ".join(f"{n} times {reason}" for reason, n in counts.items())
        raise RecordError(
            f"{ledger.source}: none of {len(records)} records has a pair: {reasons or FEW}; give responses with "
            "different scores or ranks, or pairs"
        )
    stages = in_stages(found, paired, rules)
    too_hard = len(found) - staying(len(found), rules)
    count(counts, TOO_HARD, too_hard)
    count(counts, ELSEWHERE, len(found) - too_hard - sum(map(len, stages)))
    used = {each.record for stage in stages for each in stage}
    for i in {each.record for each in found}:
        if i in used:
            ledger.keep(paired[i].id)
        else:
            ledger.drop(paired[i].id, reason=NONE_LEFT)
    ordered = [sorted(stage, key=_place) for stage in stages]
    return Curriculum(paired, ordered, counts, list(_remarks(records, found, rules)))


def _remarks(
    records: Sequence[Preference], found: Sequence[StagedPair], rules: CurriculumRules
) -> Iterator[str]:
    sizes = Counter(each.group for each in found)
    if rules.stages == "ranks":
        # Some rows of a prompt may have been left out by now: those count that are there.
        rows = Counter(group for group, _ in {(each.group, each.record) for each in found})
        shared = [number for number in rows.values() if number > 1]
        if shared:
            yield (
                f"{sum(shared)} rows of one pair each are taken for the pairs of {len(shared)} prompts, which "
                "they share"
            )
        if max(sizes.values()) == 1:
            chosen = "stages: ranks" if rules.only is None else f"only: {rules.only}"
            yield (
                f"note: no prompt has two pairs, so {chosen} has nothing to choose and this is ordinary DPO on all of "
                "them; stages: quantiles orders pairs across prompts"
            )
    stated = sum(says_stage(record, rules.stage_column) for record in records)
    if stated and rules.stages != "given":
        yield (
            f"note: {stated} of {len(records)} records say their stage, which stages: {rules.stages} does not use; "
            "stages: given does"
        )


def _place(each: StagedPair) -> tuple[int, int, int]:
    return each.record, each.pair.chosen, each.pair.rejected


def _fitting(
    listed: Sequence[Listed], unfit: Unfit, ledger: Ledger, counts: dict[str, int]
) -> Iterator[Listed]:
    """Records with those pairs that can be trained on; the others are counted with the reason."""
    reasons = iter(unfit([pair_record(e.record, pair) for e in listed for pair in e.record.pairs]))
    for each in listed:
        kept: list[Pair] = []
        for pair in each.record.pairs:
            reason = next(reasons)
            if reason is None:
                kept.append(pair)
            else:
                count(counts, f"{UNFIT}: {reason}")
                ledger.note(each.record.id, reason=f"{UNFIT}: {reason}")
        if kept:
            yield each._replace(record=replace(each.record, pairs=tuple(kept)))
        else:
            ledger.drop(each.record.id, reason=NONE_LEFT)


def _measured(
    listed: Sequence[Listed],
    measure: Measure,
    rules: CurriculumRules,
    ledger: Ledger,
    counts: dict[str, int],
) -> list[StagedPair]:
    given = rules.stages == "given"
    paired, groups = [each.record for each in listed], groups_of(listed)
    eases = [(math.nan,) * len(r.pairs) for r in paired] if given else measure(paired)
    found: list[StagedPair] = []
    for i, (record, values) in enumerate(zip(paired, eases, strict=True)):
        kept = 0
        for pair, ease in zip(record.pairs, values, strict=True):
            if ease is None:
                count(counts, TOO_LONG)
                ledger.note(record.id, reason=TOO_LONG)
                continue
            if not given and not math.isfinite(ease):
                _refuse_unmeasured(record, pair, rules)
                count(counts, UNMEASURED)
                ledger.note(record.id, reason=UNMEASURED)
                continue
            kept += 1
            found.append(StagedPair(i, pair, ease, tied(record, pair), groups[i]))
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
    meta = {**record.meta, OWN_STAGE: stage}
    if math.isfinite(each.ease):
        meta[EASE] = each.ease
    return replace(pair_record(record, each.pair), meta=meta)
