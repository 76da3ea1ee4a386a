"""Scores that are null or NaN are missing: in every layout, in files of texts, in pairing and in the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.records import Pair, Preference, Response
from prefopt.text.pairing import comparable, count_ties, pair_responses
from prefopt.text.sources import load_preferences
from prefopt.values import read_number, read_score

NAN = float("nan")
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
LEFT_OUT = "responses without a score are in no pair"


def read(path: Path, row: dict[str, Any], **options: Any) -> tuple[Preference, dict[str, int]]:
    """The record of a row and the notes about it."""
    file = path / "data.jsonl"
    file.write_text(json.dumps(row) + "\n")
    ledger = Ledger("data")
    (preference,) = load_preferences(file, ledger=ledger, **options).preferences
    return preference, ledger.notes


def test_a_score_is_a_number_or_missing() -> None:
    assert [read_score(value, "score", "x:1") for value in (2, 0.5, None, NAN)] == [
        2,
        0.5,
        None,
        None,
    ]
    for value, shown in ((float("inf"), "inf"), (-float("inf"), "-inf")):
        with pytest.raises(
            RecordError, match=f"^x:1: 'score' is the number {shown}; give a finite number, or null"
        ):
            read_score(value, "score", "x:1")
    with pytest.raises(RecordError, match="'score' is true"):
        read_score(True, "score", "x:1")
    with pytest.raises(RecordError, match="'weight' is the number nan"):
        read_number(NAN, "weight", "x:1")


ROWS: dict[str, tuple[dict[str, Any], tuple[float | None, ...]]] = {
    "list": ({"prompt": "q", "responses": ["a", "b", "c"], "scores": [4, None, NAN]}, (4.0, None, None)),
    "whole list": ({"prompt": "q", "responses": ["a", "b"], "scores": None}, (None, None)),
    "objects": (
        {"prompt": "q", "answers": [{"text": "a", "score": NAN}, {"text": "b", "score": None}, {"text": "c"}]},
        (None, None, None),
    ),
    "next key of all objects": (
        {"prompt": "q", "answers": [{"text": "a", "score": NAN, "rating": 3}, {"text": "b", "rating": 1}]},
        (3.0, 1.0),
    ),
    "next key of one object": (
        {"prompt": "q", "answers": [{"text": "a", "score": NAN, "rating": 3}, {"text": "b", "score": 1}]},
        (None, 1.0),
    ),
    "sides": ({**PAIR, "score_chosen": NAN, "score_rejected": 2}, (None, 2.0)),
    "null sides": ({**PAIR, "score_chosen": 1, "score_rejected": None}, (1.0, None)),
    "own records": (
        {"id": "x", "prompt": "q", "responses": [{"text": "a", "score": NAN}, {"text": "b", "score": 1}]},
        (None, 1.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_null_and_nan_are_missing(name: str, tmp_path: Path) -> None:
    row, scores = ROWS[name]
    preference, _ = read(tmp_path, row)
    assert tuple(response.score for response in preference.responses) == scores


def test_empty_and_nan_cells_of_a_table_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("prompt,chosen,rejected,score_chosen,score_rejected\nq,a,b,,3\nr,a,b,nan,3\n")
    for preference in load_preferences(path, ledger=Ledger("x")).preferences:
        assert [response.score for response in preference.responses] == [None, 3.0]
    path.write_text('prompt,responses,scores\nq,"[""a"", ""b""]",\nr,"[""a"", ""b""]","[1, NaN]"\n')
    first, second = load_preferences(path, ledger=Ledger("x")).preferences
    assert [response.score for response in first.responses] == [None, None]
    assert [response.score for response in second.responses] == [1.0, None]


@pytest.mark.parametrize(
    ("scores", "pairs", "notes"),
    [
        ([4, None, 2, NAN], (Pair(0, 2),), {LEFT_OUT: 1}),
        ([None, 1, 2, 3], (Pair(3, 2), Pair(3, 1)), {LEFT_OUT: 1}),
        ([4, None, 4, None], (), {LEFT_OUT: 1, "no pair: every score or rank is equal": 1}),
        ([None, None, 2, None], (), {LEFT_OUT: 1, "no pair: only one response has a score": 1}),
        ([None, NAN, None, NAN], (), {"no pair: several responses without a score or rank for each": 1}),
        ([4, 4, 2, 1], (Pair(0, 2), Pair(0, 3)), {"some pairs left out by pairing: equal scores or ranks": 1}),
        ([4, 3, 2, 2], (Pair(0, 1), Pair(0, 2), Pair(0, 3)), {}),
    ],
)  # fmt: skip
def test_pairs_of_a_list_with_missing_scores(
    scores: list[float | None], pairs: tuple[Pair, ...], notes: dict[str, int], tmp_path: Path
) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c", "d"], "scores": scores}
    preference, found = read(tmp_path, row)
    assert (preference.pairs, found) == (pairs, notes)
    assert len(preference.responses) == 4


def test_whole_ranks_decide_where_scores_are_missing() -> None:
    responses = [
        Response("a", score=1.0, rank=1),
        Response("b", rank=2),
        Response("c", score=9.0, rank=3),
    ]
    assert comparable(responses) == {0: -1.0, 1: -2.0, 2: -3.0}
    assert comparable([Response("a", score=1.0), Response("b", rank=2)]) == {0: 1.0}
    assert comparable([Response("a", rank=1), Response("b")]) == {}


@pytest.mark.parametrize(
    ("pairing", "ties"), [("best_vs_rest", 1), ("best_worst", 0), ("all", 2), ("adjacent", 2)]
)
def test_ties_are_counted_per_pairing(pairing: str, ties: int) -> None:
    responses = [Response(str(i), score=s) for i, s in enumerate([5.0, None, 1.0, 5.0, 1.0])]
    assert count_ties(responses, pairing) == ties


@pytest.mark.parametrize("pairing", ["best_vs_rest", "best_worst", "all", "adjacent"])
def test_no_pairs_of_fewer_than_two(pairing: str) -> None:
    for responses in ([], [Response("a", score=1.0)], [Response("a"), Response("b", score=1.0)]):
        assert pair_responses(responses, pairing) == ()
        assert count_ties(responses, pairing) == 0
