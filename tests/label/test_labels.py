"""The file of labels: what is appended, locked, repaired and refused."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest

from prefopt.errors import RecordError, StorageError
from prefopt.judge.human import read_labels
from prefopt.label.labels import Item, LabelStore, read_items
from tests.label.solutions import TEXT, rows, write


@pytest.fixture
def items(tmp_path):
    return read_items(write(tmp_path))


def verdict_of(store: LabelStore, item: Item) -> str:
    label = store.label_of(item)
    assert label is not None
    return label.verdict


def test_items_show_every_character_that_matters(items):
    assert [item.solution.id for item in items] == ["p1/s0", "p2/s0", "p3/s0"]
    assert items[0].steps == 3
    assert [(p.number, p.text) for p in items[0].pieces] == [
        (None, "Let's see."),
        (1, "2 + 3 = 5."),
        (2, "5 * 2 = 11."),
        (3, "The answer is 11."),
    ]
    assert len({item.digest for item in items}) == 3


def test_a_solution_without_markers_has_lines(tmp_path):
    (item,) = read_items(write(tmp_path, rows(1, "First.\n\nThen.")))
    assert item.steps == 0
    assert [p.text for p in item.pieces] == ["First.", "Then."]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no solutions"),
        (['{"id": "a", "question": "q"}'], "errors.jsonl:1: no 'text'; every line needs id,"),
        (["[]"], "errors.jsonl:1: the line is an empty list"),
        (['{"id"'], "errors.jsonl:1: broken JSON at column"),
        (['{"id": 3, "question": "q", "text": "t"}'], "errors.jsonl:1: 'id' is the number 3"),
        (['{"id": "a", "question": "q", "text": " "}'], "errors.jsonl:1: 'text' is empty"),
        (
            [json.dumps({"id": "a", "question": "q", "text": t}) for t in "tu"],
            "errors.jsonl:2: the id 'a' stands for another text in an earlier line",
        ),
    ],
)
def test_bad_files(tmp_path, lines, message):
    path = tmp_path / "errors.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(RecordError) as caught:
        read_items(path)
    assert message in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(StorageError, match="cannot read .*none.jsonl: No such file"):
        read_items(tmp_path / "none.jsonl")


def test_repeated_lines_are_shown_once(tmp_path, capsys):
    assert len(read_items(write(tmp_path, rows(2) + rows(2)))) == 2
    assert "2 repeated lines are shown once" in capsys.readouterr().err


def test_labels_are_lines_and_the_latest_counts(tmp_path, items):
    path = tmp_path / "deep" / "labels.jsonl"
    with LabelStore(path, annotator="ann") as store:
        store.add(items[0], "wrong step", step=2, note=" 5 * 2\n is  10 ")
        store.add(items[1], "skip")
        store.add(items[0], "no wrong step")
        assert verdict_of(store, items[0]) == "no wrong step"
        assert store.summary(items) == "2 of 3 labelled: 1 no wrong step, 1 skip"
        assert [store.is_open(item) for item in items] == [False, False, True]
        assert [store.is_open(item, skipped=True) for item in items] == [False, True, True]
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["id"], row["step"], row["verdict"]) for row in written] == [
        ("p1/s0", 2, "wrong step"),
        ("p2/s0", None, "skip"),
        ("p1/s0", None, "no wrong step"),
    ]
    assert written[0]["note"] == "5 * 2 is 10"
    assert list(written[0]) == ["id", "digest", "step", "verdict", "note", "annotator", "time"]
    assert written[0]["time"].endswith("+00:00") and written[0]["annotator"] == "ann"
    with LabelStore(path) as store:
        assert verdict_of(store, items[0]) == "no wrong step"


def test_a_label_does_not_apply_to_another_text(tmp_path, items):
    path = tmp_path / "labels.jsonl"
    with LabelStore(path) as store:
        store.add(items[0], "wrong step", step=1)
    (other, *_) = read_items(write(tmp_path, rows(1, TEXT.replace("11", "12"))))
    with LabelStore(path) as store:
        assert store.label_of(other) is None


@pytest.mark.parametrize(
    ("verdict", "step", "message"),
    [
        ("wrong step", 4, "there is no step 4; the solution has steps 1 to 3"),
        ("wrong step", 0, "there is no step 0"),
        ("wrong step", None, "no step is given; the solution has steps 1 to 3"),
        ("skip", 2, "'skip' names no step, but step 2 is given"),
    ],
)
def test_impossible_steps_are_refused(tmp_path, items, verdict, step, message):
    path = tmp_path / "labels.jsonl"
    with LabelStore(path) as store, pytest.raises(RecordError, match=message):
        store.add(items[0], verdict, step=step)
    assert path.read_text() == ""


def test_without_markers_no_step_can_be_named(tmp_path):
    (item,) = read_items(write(tmp_path, rows(1, "First.\nThen.")))
    with LabelStore(tmp_path / "labels.jsonl") as store:
        with pytest.raises(RecordError, match="no markers: the solution has no 'Step 1:'"):
            store.add(item, "wrong step", step=1)
        store.add(item, "unclear")


def test_one_labeller_at_a_time(tmp_path):
    path = tmp_path / "labels.jsonl"
    refused = pytest.raises(StorageError, match="another process is labelling into this file")
    with LabelStore(path), refused:
        LabelStore(path).__enter__()
    with LabelStore(path):
        pass


@pytest.mark.parametrize("torn", [b'{"id": "p2/s0", "dig', b'{"id": "k\xc3', b"{", b'{"a": "\\'])
def test_an_unfinished_line_is_taken_away(tmp_path, items, capsys, torn):
    path = tmp_path / "labels.jsonl"
    with LabelStore(path) as store:
        store.add(items[0], "wrong step", step=2)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    read = read_labels(path)
    assert len(read.labels) == 1 and read.size == len(whole)
    with LabelStore(path) as store:
        assert path.read_bytes() == whole
        store.add(items[1], "skip")
    assert "the last line was not finished (a labeller was killed)" in capsys.readouterr().err
    assert [label.id for label in read_labels(path).labels] == ["p1/s0", "p2/s0"]


def test_only_the_line_break_is_missing(tmp_path, items):
    path = tmp_path / "labels.jsonl"
    with LabelStore(path) as store:
        store.add(items[0], "wrong step", step=2)
    path.write_bytes(path.read_bytes()[:-1])
    with LabelStore(path) as store:
        store.add(items[1], "skip")
    assert [label.id for label in read_labels(path).labels] == ["p1/s0", "p2/s0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "bad"}, "labels.jsonl:1: 'verdict' is the text \"bad\"; known are wrong step"),
        ({"step": None}, "labels.jsonl:1: 'step' is null; give the number of the first wrong step"),
        ({"step": 0}, "labels.jsonl:1: 'step' is the number 0"),
        ({"verdict": "skip"}, "labels.jsonl:1: 'step' is the number 2; only the verdict"),
        ({"id": 5}, "labels.jsonl:1: 'id' is the number 5"),
        ({"digest": ...}, "labels.jsonl:1: the label has no 'digest'"),
    ],
)
def test_broken_labels_are_named(tmp_path, items, change, message):
    path = tmp_path / "labels.jsonl"
    with LabelStore(path) as store:
        store.add(items[0], "wrong step", step=2)
    row = {**json.loads(path.read_text()), **change}
    row = {key: value for key, value in row.items() if value is not ...}
    path.write_text(json.dumps(row) + "\n")
    for action in (read_labels, lambda p: LabelStore(p).__enter__()):
        with pytest.raises(RecordError) as caught:
            action(path)
        assert message in str(caught.value)
    path.write_text(json.dumps(row))
    with pytest.raises(RecordError):
        read_labels(path)


@pytest.mark.parametrize("key", ["id", "question", "text"])
def test_half_a_surrogate_pair_in_the_solutions_is_one_line(key, tmp_path):
    found = rows(2)
    found[1][key] += "\ud83d"
    path = tmp_path / "errors.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    with pytest.raises(
        RecordError, match=rf"errors\.jsonl:2: '{key}' holds \\ud83d, half of a"
    ) as e:
        read_items(path)
    assert "\n" not in str(e.value)


def test_half_a_surrogate_pair_in_a_note_is_replaced(tmp_path, items):
    """A page can post one; the file has to be readable afterwards."""
    path = tmp_path / "labels.jsonl"
    with LabelStore(path, annotator="a\udcff") as store:
        label = store.add(items[0], "skip", note="odd \ud83d 😀")
    assert (label.note, label.annotator) == ("odd \ufffd 😀", "a\ufffd")
    with LabelStore(path) as store:
        assert store.label_of(items[0]) == label


def test_a_full_disk_leaves_whole_lines(tmp_path, items):
    """A limit on the file's size stands for a full disk: the write is cut short."""
    path = tmp_path / "labels.jsonl"
    with LabelStore(path) as store:
        store.add(items[0], "skip")
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
        try:
            with pytest.raises(StorageError, match="the label cannot be saved"):
                store.add(items[1], "skip")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert path.read_bytes() == before
        assert store.label_of(items[1]) is None
        store.add(items[1], "skip")
    assert len(read_labels(path).labels) == 2


@pytest.mark.slow
def test_killed_while_labelling(tmp_path, items):
    """A process labels as fast as it can and is killed: what it reported is in the file, and the lock is gone."""
    path = tmp_path / "labels.jsonl"
    script = textwrap.dedent(
        f"""
        from prefopt.label.labels import LabelStore, read_items
        items = read_items({str(tmp_path / "errors.jsonl")!r})
        with LabelStore({str(path)!r}) as store:
            for n in range(10**6):
                store.add(items[n % 3], "wrong step", step=n % 3 + 1, note=str(n))
                print(n, flush=True)
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = -1
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            for _ in range(20):
                told = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            left = process.stdout.read().split()
            told = int(left[-1]) if left and left[-1].isdecimal() else told
        with LabelStore(path) as store:
            store.add(items[0], "skip", note="between")
        notes = [label.note for label in read_labels(path).labels]
        last = len(notes) - 1
        assert notes[last] == "between"
        assert int(notes[last - 1]) >= told
