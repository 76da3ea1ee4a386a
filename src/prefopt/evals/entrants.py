"""Judged files of answers, read for win rates: folders of `prefopt judge --against`, and AlpacaEval's annotations.

Each becomes the verdicts on one model's answers against a baseline's, prompt by prompt (`evals/given.py`). Annotations
are read in `evals/annotations.py`, the numbers made in `evals/winrates.py`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from prefopt.errors import RecordError, StorageError
from prefopt.evals.annotations import read_annotations
from prefopt.evals.given import Entrant, Given, prompts_asked
from prefopt.grade.winrate import Verdict
from prefopt.judge.outputs import Contest, join_outputs, read_outputs
from prefopt.records import parse_line
from prefopt.text.files import SourceRow, read_rows
from prefopt.text.questions import read_questions
from prefopt.values import JsonValue, read_object, read_text, refuse

RESULT_FILE = "judgement.json"
VERDICTS_FILE = "verdicts.jsonl"
_AGAIN = "judge again (what the journal holds is not asked twice)"


def read_entrants(paths: Sequence[Path]) -> list[Entrant]:
    """All that were judged, with names that differ from each other.

    Raises:
        StorageError: a file is not there or cannot be read.
        RecordError: one is not what is needed, or was changed after it was judged; the message names it.
    """
    found = [
        entrant
        for path in paths
        for entrant in ([_of_folder(path)] if path.is_dir() else read_annotations(path))
    ]
    names = Counter(entrant.name for entrant in found)
    baselines = {entrant.baseline for entrant in found}
    named = [
        e._replace(name=f"{e.name} ({e.source})")
        if names[e.name] > 1 or (e.name in baselines and not e.itself)
        else e
        for e in found
    ]
    for name, count in Counter(entrant.name for entrant in named).items():
        if count > 1:
            raise RecordError(f"{name} is given {count} times; give each input once")
    return named


class _Baseline(NamedTuple):
    """The rows of a baseline's file, in its order."""

    place: dict[str, int]
    """By id."""
    prompts: list[Hashable]
    numbers: list[JsonValue]
    """The field `index` of each, which only AlpacaEval's data files need."""
    origins: list[str]


def _of_folder(folder: Path) -> Entrant:
    where = str(folder / RESULT_FILE)
    result = _result(folder / RESULT_FILE)
    settings = read_object(result.get("settings"), "settings", where)
    if settings.get("kind") != "pairwise":
        raise RecordError(
            f"{where}: these are grades and no comparisons; give a folder that `prefopt judge --against` wrote"
        )
    digests = settings.get("outputs_sha256"), settings.get("baseline_sha256")
    outputs = _unchanged(result.get("outputs"), digests[0], "outputs", where)
    baseline = _unchanged(result.get("baseline"), digests[1], "baseline", where)
    others = read_outputs(baseline)
    rows = _Baseline(
        {exchange.id: place for place, exchange in enumerate(others)},
        prompts_asked([(e.opening, e.questions) for e in others]),
        [question.values.get("index") for question in read_questions(baseline)],
        [exchange.origin for exchange in others],
    )
    by = "id" if settings.get("join") == "id" else "question"
    joined = join_outputs(read_outputs(outputs), others, by=by)
    contests = {contest.id: contest for contest in joined.contests if contest is not None}
    verdicts = read_rows(folder / VERDICTS_FILE).rows
    both = settings.get("order") == "both"
    given = [_given(row, contests, rows, both=both) for row in verdicts]
    name = read_text(result.get("name"), "name", where)
    itself = digests[0] == digests[1]
    return Entrant(
        name=name,
        baseline=name if itself else baseline.stem,
        source=folder,
        given=[each for some in given for each in some],
        left_out=sum(not some for some in given),
        places=len(others),
        itself=itself,
        judge=settings,
    )


def _given(
    row: SourceRow, contests: Mapping[str, Contest], rows: _Baseline, *, both: bool
) -> list[Given]:
    turns = _items(row.values.get("turns"), "turns", row.origin)
    if not turns:
        return []
    contest = contests.get(str(row.values.get("id")))
    if contest is None or len(turns) != len(contest.model.answers):
        raise RecordError(
            f"{row.origin}: the files that were judged have no such row with {len(turns)} turns; {_AGAIN}"
        )
    place = rows.place[contest.baseline.id]
    found: list[Given] = []
    for turn, value in enumerate(turns, start=1):
        verdict, orders = _said(read_object(value, "turns", row.origin), row.origin, both=both)
        answers = contest.model.answers[turn - 1], contest.baseline.answers[turn - 1]
        found.append(
            Given(
                prompt=rows.prompts[place],
                turn=turn,
                judged=verdict,
                orders=orders,
                answers=answers,
                place=place,
                number=rows.numbers[place],
                origin=rows.origins[place],
            )
        )
    return found


def _result(path: Path) -> dict[str, JsonValue]:
    try:
        return parse_line(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(
            f"{path}: cannot be read ({error}); give a folder that `prefopt judge --against` wrote"
        ) from error


def _items(value: JsonValue, name: str, origin: str) -> list[JsonValue]:
    if not isinstance(value, list):
        refuse(value, name, origin, "give a list")
    return value


def _unchanged(name: JsonValue, digest: JsonValue, what: str, where: str) -> Path:
    path = Path(read_text(name, what, where))
    if not path.is_file():
        raise StorageError(
            f"{where}: {path}, whose answers were judged, is not there; questions and lengths are read from it: "
            "start the command in the folder where `prefopt judge` ran, or put the file back"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise RecordError(f"{where}: {path} was changed after it was judged; {_AGAIN}")
    return path


def _said(
    turn: Mapping[str, JsonValue], origin: str, *, both: bool
) -> tuple[Verdict, tuple[Verdict, Verdict] | None]:
    verdict = _verdict(turn.get("verdict"), origin)
    if not both:
        return verdict, None
    seen = [read_object(s, "seen", origin) for s in _items(turn.get("seen"), "seen", origin)]
    if not seen:  # equal answers: a tie in any order
        return verdict, (verdict, verdict)
    by_order: dict[str, Verdict] = {
        str(each.get("model")): _verdict(each.get("verdict"), origin) for each in seen
    }
    return verdict, (by_order.get("first", "missing"), by_order.get("second", "missing"))


def _verdict(value: JsonValue, origin: str) -> Verdict:
    if value not in {"win", "tie", "loss", "missing"}:
        refuse(value, "verdict", origin, "give win, tie, loss or missing")
    return cast("Verdict", value)
