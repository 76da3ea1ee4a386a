"""Labelling in a terminal: real input through a pipe, real files."""

import io

import pytest
from rich.console import Console

from prefopt.judge.human import read_labels
from prefopt.label.labels import LabelStore, read_items
from prefopt.label.terminal import Command, label_in_terminal, read_command
from tests.label.solutions import rows, write


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("3\n", Command("label", "wrong step", 3)),
        (" 12 # carries wrongly # twice\n", Command("label", "wrong step", 12, "carries wrongly # twice")),
        ("0", Command("label", "no wrong step")),
        ("N # All Right", Command("label", "no wrong step", None, "All Right")),
        ("u", Command("label", "unclear")),
        ("s#later", Command("label", "skip", None, "later")),
        ("", Command("next")),
        ("# only a note", Command("note", note="only a note")),
        ("b", Command("back")),
        ("j 7", Command("jump", number=7)),
        ("j7", Command("jump", number=7)),
        ("g", Command("gold")),
        ("?", Command("help")),
        ("q", Command("quit")),
        ("3 4", Command("unknown")),
        ("-1", Command("unknown")),
        ("x", Command("unknown")),
        ("three", Command("unknown")),
    ],
)  # fmt: skip
def test_lines_of_input(line, command):
    assert read_command(line) == command


def session(tmp_path, typed, *, found=None, terminal=False, skipped=False):
    items = read_items(write(tmp_path, found))
    written = io.StringIO()
    console = Console(file=written, width=100, force_terminal=terminal, color_system=None)
    read = iter([line + "\n" for line in typed])
    path = tmp_path / "labels.jsonl"
    with LabelStore(path, annotator="ann") as store:
        label_in_terminal(
            items, store, console=console, read=lambda: next(read, ""), skipped=skipped
        )
    return written.getvalue(), [(x.id, x.step, x.verdict, x.note) for x in read_labels(path).labels]


def test_three_labels(tmp_path):
    shown, labels = session(tmp_path, ["2 # no", "n", "u"])
    assert labels == [
        ("p1/s0", 2, "wrong step", "no"),
        ("p2/s0", None, "no wrong step", ""),
        ("p3/s0", None, "unclear", ""),
    ]
    for text in (
        "1/3 · 0 labelled · p1/s0",
        "What is 2 + 3, times 1?",
        "Right answer: 10",
        "   2  5 * 2 = 11.",
        "Saved: first wrong step 2, note: no.",
        "3/3 · 2 labelled · p3/s0",
        "All solutions have a label.",
        "3 of 3 labelled: 1 no wrong step, 1 unclear, 1 wrong step",
    ):
        assert text in shown
    assert "Worked solution" not in shown


def test_it_goes_on_where_it_stopped(tmp_path):
    session(tmp_path, ["1", "q"])
    shown, labels = session(tmp_path, ["3"])
    assert "2/3 · 1 labelled · p2/s0" in shown and "1/3" not in shown
    assert [label[:2] for label in labels] == [("p1/s0", 1), ("p2/s0", 3)]
    session(tmp_path, ["s"])
    shown, _ = session(tmp_path, ["1"])
    assert "Nothing is left to label." in shown
    shown, labels = session(tmp_path, ["1"], skipped=True)
    assert "Labelled so far: skip." in shown
    assert labels[-1] == ("p3/s0", 1, "wrong step", "")


def test_back_and_changing_ones_mind(tmp_path):
    shown, labels = session(tmp_path, ["1", "b", "2", "q"])
    assert "Labelled so far: first wrong step 1." in shown
    assert [label[:2] for label in labels] == [("p1/s0", 1), ("p1/s0", 2)]
    assert "1 of 3 labelled" in shown


def test_a_note_for_the_label_there_is(tmp_path):
    shown, labels = session(tmp_path, ["# too early", "1", "b", "# why", "q"])
    assert "Not saved: give a verdict with the note" in shown
    assert labels[-1] == ("p1/s0", 1, "wrong step", "why")


def test_jumps_wrap_around_to_what_is_left(tmp_path):
    shown, labels = session(tmp_path, ["j 3", "1", "1", "1", "j 9"])
    assert [label[0] for label in labels] == ["p3/s0", "p1/s0", "p2/s0"]
    shown, _ = session(tmp_path, ["j 9"], skipped=True)
    assert "Nothing is left" in shown


def test_mistakes_are_explained(tmp_path):
    shown, labels = session(tmp_path, ["9", "x", "", "j 9", "?", "g", "q"])
    assert labels == []
    for text in (
        "Not saved: there is no step 9; the solution has steps 1 to 3.",
        "That is no answer.",
        "It has no label yet.",
        "There are solutions 1 to 3.",
        "Worked solution",
        "Step 2: 5 * 2 = 10.",
    ):
        assert text in shown


def test_enter_keeps_a_label(tmp_path):
    shown, labels = session(tmp_path, ["1", "b", "", "q"])
    assert len(labels) == 1 and shown.count("2/3") == 2


def test_without_markers(tmp_path):
    shown, labels = session(tmp_path, ["1", "n"], found=rows(1, "First.\nThen [bold]."))
    assert "no markers: the solution has no 'Step 1:'" in shown
    assert "Then [bold]." in shown
    assert labels == [("p1/s0", None, "no wrong step", "")]


def test_a_cleared_screen_still_shows_what_was_saved(tmp_path):
    shown, _ = session(tmp_path, ["1", "q"], terminal=True)
    last = shown.split("\x1b[2J")[-1]
    assert "2/3" in last and "Saved: first wrong step 1." in last
