"""What a person said becomes a location."""

import json

import pytest

from prefopt.errors import RecordError
from prefopt.judge.base import Location, WrongSolution
from prefopt.judge.human import HumanLocator, solution_digest

TEXT = "Step 1: 2 + 3 = 5.\nStep 2: 5 * 2 = 11."


def solution(name, text=TEXT):
    return WrongSolution(name, "How much?", "", "10", text)


def row(name, verdict, step=None, *, text=TEXT, note=""):
    return {
        "id": name,
        "digest": solution_digest("How much?", text),
        "step": step,
        "verdict": verdict,
        "note": note,
    }


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.jsonl"
    rows = [
        row("found", "wrong step", 1),
        row("found", "wrong step", 2, note="5 * 2 = 10"),
        row("none", "no wrong step"),
        row("unclear", "unclear", note="what is asked?"),
        row("skipped", "skip"),
        row("changed", "wrong step", 1, text="Step 1: another text"),
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_every_verdict(labels):
    names = ["unseen", "changed", "skipped", "unclear", "none", "found"]
    seen = []
    found = HumanLocator(labels).locate(
        [solution(name) for name in names],
        journal=None,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found == [
        Location(None, "missing", "not labelled yet"),
        Location(None, "missing", "labelled for another text of this id"),
        Location(None, "undecided", "skipped"),
        Location(None, "undecided", "unclear: what is asked?"),
        Location(None, "none", ""),
        Location(2, "found", "5 * 2 = 10"),
    ]
    assert seen == [(n, 6) for n in range(1, 7)]


def test_right_solutions_are_nothing_that_people_were_asked_about(labels):
    found = HumanLocator(labels).locate([solution("found"), solution("new")], right=True)
    assert [x.verdict for x in found] == ["missing", "missing"]
    assert found[0].remark.startswith("not asked: people label solutions that end wrong")


def test_no_file_yet(tmp_path):
    locator = HumanLocator(tmp_path / "labels.jsonl")
    assert locator.locate([solution("a")]) == [Location(None, "missing", "not labelled yet")]


def test_an_unfinished_line_is_said_and_left_alone(labels, capsys):
    torn = labels.read_text() + '{"id": "no'
    labels.write_text(torn)
    assert HumanLocator(labels).locate([solution("found")])[0].number == 2
    assert "the unfinished last line is left out" in capsys.readouterr().err
    assert labels.read_text() == torn


def test_a_step_that_is_not_there(labels):
    labels.write_text(json.dumps(row("a", "wrong step", 3)) + "\n")
    with pytest.raises(RecordError, match="the label of 'a' names step 3, but the solution has 2"):
        HumanLocator(labels).locate([solution("a")])


def test_the_digest_tells_texts_apart():
    assert solution_digest("a", "b") == "d8d5ab45c089fd0b", "labels of earlier days still apply"
    assert solution_digest("a", "bc") != solution_digest("ab", "c")
