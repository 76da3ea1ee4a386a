from __future__ import annotations

import pytest

from prefopt.judge.agreement import Agreement, agreement_with_labels, agreement_with_pairs
from prefopt.records import Pair, Preference, Response

FOUR = tuple(Response(text) for text in "abcd")


def test_pairs_count_as_right_where_the_chosen_one_scores_higher() -> None:
    record = Preference(
        "r", "p", FOUR, (Pair(0, 1), Pair(1, 2), Pair(2, 0), Pair(0, 3), Pair(1, 0))
    )
    found = agreement_with_pairs([record], {"r": [2.0, 1.0, 1.0, None]})
    assert found == Agreement(right=1, total=4, ties=1, missing=1)
    assert found.interval == pytest.approx((0.0456, 0.6994), abs=1e-4)


def test_labels_agree_with_the_sign() -> None:
    labelled = tuple(
        Response(text, label=label) for text, label in zip("abc", (True, False, True), strict=True)
    )
    records = [Preference("r", "p", (*labelled, Response("d")))]
    found = agreement_with_labels(records, {"r": [0.5, 0.1, None, 3.0]})
    assert found == Agreement(right=1, total=2, ties=0, missing=1)


def test_a_score_of_0_repeats_neither_label() -> None:
    labelled = tuple(Response(text, label=text == "a") for text in "abc")
    records = [Preference("r", "p", labelled)]
    found = agreement_with_labels(records, {"r": [0.0, 0.0, -0.5]})
    assert found == Agreement(right=1, total=3, ties=2, missing=0)
