"""Records that carry an implicit reward: annotated by it, and as they were annotated before.

What people said stays in `meta`, however often a record is scored: `given_scores`, `given_ranks` and `given_pairs`.
`implicit_reward` says what the scores that are there now are made of, `earlier_rewards` the same of each scoring before
it, with its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prefopt.errors import RecordError
from prefopt.judge.implicit import ImplicitReward, ImplicitScore
from prefopt.records import JsonValue, Preference, preference_from_json, preference_to_json
from prefopt.text.pairing import pair_responses
from prefopt.values import read_list, read_object, refuse

REWARD, EARLIER = "implicit_reward", "earlier_rewards"
_SCORES, _RANKS, _PAIRS = "given_scores", "given_ranks", "given_pairs"


def with_reward(
    record: Preference,
    scores: Sequence[ImplicitScore],
    reward: ImplicitReward,
    *,
    pairing: str | None = None,
) -> Preference:
    """A record `as_given` with rewards for scores and no ranks, which would contradict them where one is missing.

    Args:
        record: with the annotations of people.
        scores: of its responses.
        reward: what they are.
        pairing: makes pairs by the rewards; None: those that are there.

    Raises:
        RecordError: the record's own `meta` has a key that its annotations would take.
    """
    responses = tuple(
        replace(response, score=score.reward, rank=None)
        for response, score in zip(record.responses, scores, strict=True)
    )
    facts: dict[str, JsonValue] = {
        "policy": reward.models.policy,
        "reference": reward.models.reference,
        "beta": reward.beta,
        "policy_logps": [score.policy for score in scores],
        "reference_logps": [score.reference for score in scores],
        "tokens": [score.tokens for score in scores],
        "missing": [score.missing or None for score in scores],
    }
    pairs = record.pairs
    if pairing is not None:
        facts["pairing"] = pairing
        pairs = pair_responses(responses, pairing)
    given = _given(record, new_pairs=pairing is not None)
    return replace(
        record, responses=responses, pairs=pairs, meta={**record.meta, REWARD: facts, **given}
    )


def as_given(record: Preference) -> Preference:
    """The record with the annotations that it had before it was first given a reward; others stay as they are.

    Raises:
        RecordError: what its `meta` keeps of them does not fit its responses.
    """
    facts = record.meta.get(REWARD)
    if not isinstance(facts, dict):
        return record
    where = _place(record)
    row = preference_to_json(record)
    responses = [
        {**read_object(each, "responses", where), "score": None}
        for each in read_list(row["responses"], "responses", where)
    ]
    for key, name in (("score", _SCORES), ("rank", _RANKS)):
        if name not in record.meta:
            continue
        given = record.meta[name]
        if not isinstance(given, list) or len(given) != len(responses):
            refuse(
                given, f"meta.{name}", where, f"give one for each of the {len(responses)} responses"
            )
        for response, value in zip(responses, given, strict=True):
            response[key] = value
    row["responses"] = [*responses]
    if "pairing" in facts:  # those that are there are by the reward
        row["pairs"] = record.meta.get(_PAIRS, [])
    rewards: list[JsonValue] = [response.score for response in record.responses]
    earlier = record.meta.get(EARLIER, [])
    done: list[JsonValue] = [*(earlier if isinstance(earlier, list) else [earlier])]
    kept = {k: v for k, v in record.meta.items() if k not in {REWARD, _SCORES, _RANKS, _PAIRS}}
    row["meta"] = {**kept, EARLIER: [*done, {**facts, "scores": rewards}]}
    return replace(preference_from_json(row, origin=where), origin=record.origin)


def _given(record: Preference, *, new_pairs: bool) -> dict[str, JsonValue]:
    """What a record's annotations are called in `meta` once others take their places."""
    columns: dict[str, list[JsonValue]] = {
        _SCORES: [response.score for response in record.responses],
        _RANKS: [response.rank for response in record.responses],
    }
    found: dict[str, JsonValue] = {
        name: values for name, values in columns.items() if any(v is not None for v in values)
    }
    if new_pairs and record.pairs:
        found[_PAIRS] = preference_to_json(record)["pairs"]
    for name in (REWARD, *found):
        if name in record.meta:
            raise RecordError(
                f"{_place(record)}: meta has {name} already, where what the responses are annotated with would go; "
                "rename it"
            )
    return found


def _place(record: Preference) -> str:
    return record.origin or f"record {record.id!r}"
