"""Steps and known errors of responses: literal cases."""

import json

import pytest

from prefopt.analysis.spans import (
    AMBIGUOUS,
    EMPTY_STEP,
    NO_ANNOTATION,
    NO_MARKERS,
    NOT_WRONG,
    locate_error,
    preferred,
    split_parts,
)
from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.records import Pair, Preference, Response
from prefopt.text.sources import load_preferences

TEXT = "Step 1: 2 + 3 = 5.\nStep 2: 5 * 2 = 11.\nThe answer is 11."


def texts(parts, whole):
    return [(p.number, p.kind, whole[p.start : p.end]) for p in parts]


def inner(parts, whole):
    return [whole[slice(*p.inner)] for p in parts]


def test_marked_steps_cover_the_text():
    whole = "Let us see. " + "\n" + TEXT
    parts = split_parts("", whole, len(whole))
    assert texts(parts, whole) == [
        (None, "opening", "Let us see. \n"),
        (1, "step", "Step 1: 2 + 3 = 5.\n"),
        (2, "step", "Step 2: 5 * 2 = 11.\nThe answer is 11."),
    ]
    assert inner(parts, whole)[1:] == [" 2 + 3 = 5.", " 5 * 2 = 11.\nThe answer is 11."]


def test_a_step_that_the_prefix_begins():
    prefix, text = TEXT[: TEXT.index(" 5 *")], " 5 * 2 = 11.\nStep 3: Done."
    rendered = text + "<eos>"
    parts = split_parts(prefix, text, len(rendered))
    assert texts(parts, rendered) == [
        (2, "step", " 5 * 2 = 11.\n"),
        (3, "step", "Step 3: Done.<eos>"),
    ]
    assert inner(parts, rendered) == [" 5 * 2 = 11.", " Done."]


def test_blocks_are_counted_with_those_of_the_prefix():
    prefix = "<|text|>Add.<|endofblock|>"
    text = (
        "<|code|>print(1)<|endofblock|><|execution|>1<|endofblock|>"
        "<|text|>So 1.<|endofblock|><|endofmessage|>"
    )
    parts = split_parts(prefix, text, len(text) + 5)
    assert [(p.number, p.kind) for p in parts] == [(2, "block"), (3, "execution"), (4, "block")]
    assert inner(parts, text) == ["print(1)", "1", "So 1."]
    assert parts[-1].end == len(text) + 5
    assert [p.ranked for p in parts] == [True, False, True]


def test_an_unfinished_block_is_one():
    parts = split_parts("", "<|text|>a<|endofblock|><|code|>b", 32)
    assert [(p.number, p.kind) for p in parts] == [(1, "block"), (2, "block")]


def test_lines_where_there_are_no_markers():
    text = "First.\n\n  Second.\nThird."
    parts = split_parts("Answer:\n", text, len(text))
    assert texts(parts, text) == [
        (1, "line", "First.\n\n"),
        (2, "line", "  Second.\n"),
        (3, "line", "Third."),
    ]
    assert inner(parts, text) == ["First.", "  Second.", "Third."]


def test_an_empty_response_is_one_part():
    assert [tuple(p)[:4] for p in split_parts("", "", 5)] == [(None, "opening", 0, 5)]


PAIRS = (Pair(0, 1),)


def record(meta, *responses, pairs=PAIRS, prefix=""):
    found = tuple(Response(text) for text in responses or ("right", TEXT))
    return Preference("r", "q", found, pairs, prefix=prefix, meta=meta, origin="f.jsonl:3")


def located(meta, response=1, **facts):
    one = record(meta, **facts)
    parts = split_parts(one.prefix, one.responses[response].text, len(one.responses[response].text))
    return locate_error(one, response, parts)


def test_the_number_of_a_step():
    span = located({"step": 2}).span
    assert span is not None
    assert TEXT[span.start : span.end] == " 5 * 2 = 11.\nThe answer is 11."
    assert span.part == 1
    assert located({"step": 2.0}).span == span
    assert located({"step": [None, 2]}).span == span


def test_given_characters():
    start = TEXT.index("11")
    span = located({"error_span": [start, start + 2], "step": 1}).span
    assert span == (start, start + 2, 1)
    assert located({"error_span": [None, [start, start + 2]]}).span == span


@pytest.mark.parametrize(
    ("meta", "response", "remark"),
    [
        ({}, 1, NO_ANNOTATION),
        ({"step": None}, 1, NO_ANNOTATION),
        ({"step": 2}, 0, NOT_WRONG),
        ({"step": [None, 2]}, 0, NOT_WRONG),
    ],
)
def test_nothing_known(meta, response, remark):
    assert located(meta, response) == (None, remark)


def test_one_number_for_two_rejected_responses():
    one = record({"step": 2}, "right", TEXT, TEXT + " ", pairs=(Pair(0, 1), Pair(0, 2)))
    parts = split_parts("", TEXT, len(TEXT))
    assert locate_error(one, 1, parts).remark == AMBIGUOUS


def test_a_text_without_markers_has_no_steps():
    one = record({"step": 1}, "right", "No steps\nhere")
    assert locate_error(one, 1, split_parts("", "No steps\nhere", 13)).remark == NO_MARKERS


def test_a_step_without_text():
    one = record({"step": 1}, "right", "Step 1:\nStep 2: x")
    assert locate_error(one, 1, split_parts("", "Step 1:\nStep 2: x", 17)).remark == EMPTY_STEP


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"step": 3}, "f.jsonl:3: 'meta.step' is 3, but the response has steps 1 to 2"),
        ({"step": 0}, "'meta.step' is 0, but the response has steps 1 to 2"),
        ({"step": "second"}, """'meta.step' is the text "second"; give a whole number"""),
        ({"step": True}, "'meta.step' is true; give a whole number"),
        ({"step": [1]}, "'meta.step' is a list of 1 items; give 2, one per response"),
        ({"error_span": [3, 3]}, "'meta.error_span' is [3, 3], but the response has characters 0"),
        ({"error_span": [0, 900]}, "'meta.error_span' is [0, 900]"),
        ({"error_span": [0.5, 3]}, "'meta.error_span' is the number 0.5; give a whole number"),
        ({"error_span": "here"}, "'meta.error_span' is the text"),
    ],
)
def test_wrong_annotations(meta, message):
    with pytest.raises(RecordError) as caught:
        located(meta)
    assert message in str(caught.value)


def test_which_responses_are_rejected():
    assert preferred(record({})) == ({0}, {1})
    unpaired = Preference("u", "q", (Response("a", label=True), Response("b", label=False)))
    assert preferred(unpaired) == ({0}, {1})
    assert preferred(Preference("s", "q", (Response("a"),))) == (set(), set())
    assert preferred(Preference("s", "q", (Response("a"),), meta={"step": 1})) == (set(), {0})


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("d.jsonl", '{"prompt": "Q", "chosen": "right", "rejected": TEXT, "meta": {"step": 2}}'),
        ("d.jsonl", '{"prompt": "Q", "chosen": "right", "rejected": TEXT, "step": 2}'),
        ("d.jsonl", '{"id": "a", "prompt": "Q", "responses": [{"text": "right"}, {"text": TEXT}], '
            '"pairs": [{"chosen": 0, "rejected": 1}], "meta": {"step": 2}}'),
        ("d.csv", "prompt,chosen,rejected,step\nQ,right,TEXT,2"),
        ("d.csv", 'prompt,chosen,rejected,meta\nQ,right,TEXT,"{""step"": 2}"'),
        ("d.csv", 'prompt,chosen,rejected,error_span\nQ,right,TEXT,"[26, 56]"'),
    ],
)  # fmt: skip
def test_the_annotation_in_files(name, rows, tmp_path):
    path = tmp_path / name
    text = json.dumps(TEXT) if name == "d.jsonl" else f'"{TEXT}"'
    path.write_text(rows.replace("TEXT", text) + "\n")
    (record,) = load_preferences(path, ledger=Ledger("x")).preferences
    span = locate_error(record, 1, split_parts("", TEXT, len(TEXT))).span
    assert span is not None
    assert TEXT[span.start : span.end] == " 5 * 2 = 11.\nThe answer is 11."


@pytest.mark.parametrize(
    ("meta", "span"),
    [
        ({"step": 2}, "step"),
        ({"meta": {"step": 2}}, "step"),
        ({"meta": '{"step": 2}'}, "step"),
        ({"step": "2"}, "step"),
        ({"step": "", "meta": {"step": 2}}, "step"),
        ({"step": 2, "meta": {"step": 1}}, "step"),
        ({"meta": {"step": 1, "error_span": [27, 37]}}, "span"),
        ({"error_span": "[27, 37]"}, "span"),
        ({"step": 1, "meta": {"error_span": [27, 37]}}, "span"),
        ({"step": "[null, 2]"}, "step"),
        ({"meta": "remarks"}, None),
        ({"meta": {"steps": 2}}, None),
        ({"meta": [2]}, None),
        ({"step": ""}, None),
    ],
)
def test_where_the_annotation_may_stand(meta, span):
    """In the record's own meta, in a column of that name as object or JSON text, or as the text of a table's cell."""
    record = Preference("r", "Q", (Response("right"), Response(TEXT)), (Pair(0, 1),), meta=meta)
    found = locate_error(record, 1, split_parts("", TEXT, len(TEXT)))
    if span is None:
        assert found == (None, NO_ANNOTATION)
    else:
        assert found.span is not None
        expected = {"step": " 5 * 2 = 11.\nThe answer is 11.", "span": "5 * 2 = 11"}[span]
        assert TEXT[found.span.start : found.span.end] == expected


def test_a_single_response_is_rejected_where_a_column_meta_says_what_is_wrong():
    record = Preference("r", "Q", (Response(TEXT),), meta={"meta": {"step": 2}})
    assert preferred(record) == (frozenset(), frozenset({0}))
    assert (
        preferred(Preference("r", "Q", (Response(TEXT),), meta={"meta": {"a": 2}}))[1]
        == frozenset()
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("two", 'the text "two"; give a whole number'),
        ("2.5", "the number 2.5; give a whole number"),
    ],
)
def test_a_cell_that_names_no_step_is_one_line(value, message):
    record = Preference("r", "Q", (Response(TEXT), Response(TEXT + " ")), (Pair(0, 1),),
                        meta={"step": value}, origin="d.csv:2")  # fmt: skip
    with pytest.raises(RecordError, match=f"d.csv:2: 'meta.step' is {message}"):
        locate_error(record, 1, split_parts("", TEXT, len(TEXT)))
