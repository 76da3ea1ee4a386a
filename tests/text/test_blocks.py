"""Code-integrated solutions: literal serialised forms, reading back, cut points and filters (sheet: A6, P1-P7)."""

from __future__ import annotations

import pytest

from prefopt.errors import RecordError
from prefopt.text.blocks import (
    END_OF_MESSAGE,
    SPECIAL_TOKENS,
    Block,
    Fault,
    conversation,
    cut_points,
    execution_spans,
    has_apology,
    noise,
    parse_blocks,
    serialise,
    similar,
)

TEXT, CODE, OUTPUT = (
    Block("text", "Add them.\n"),
    Block("code", "print(1 + 2)"),
    Block("execution", "3"),
)
LAST = Block("text", "The answer is $\\boxed{3}$.")
SOLUTION = (TEXT, CODE, OUTPUT, LAST)
WRITTEN = (
    "<|text|>Add them.\n<|endofblock|><|code|>print(1 + 2)<|endofblock|><|execution|>3<|endofblock|>"
    "<|text|>The answer is $\\boxed{3}$.<|endofblock|>"
)


def test_the_published_form_of_a_conversation() -> None:
    assert conversation("Be exact.", "1 + 2?") + serialise(SOLUTION) + END_OF_MESSAGE == (
        "<|system|><|text|>Be exact.<|endofblock|><|endofmessage|>"
        "<|user|><|text|>1 + 2?<|endofblock|><|endofmessage|>"
        "<|assistant|><|text|>Add them.\n<|endofblock|><|code|>print(1 + 2)<|endofblock|>"
        "<|execution|>3<|endofblock|><|text|>The answer is $\\boxed{3}$.<|endofblock|><|endofmessage|>"
    )
    assert conversation("", "q").startswith(
        "<|system|><|text|><|endofblock|><|endofmessage|><|user|>"
    )


def test_with_nothing_kept_the_prompt_ends_in_a_bare_assistant_marker() -> None:
    assert (conversation("", "q") + serialise(())).endswith("<|endofmessage|><|assistant|>")


@pytest.mark.parametrize("kept", range(len(SOLUTION) + 1))
def test_front_and_tail_are_the_whole_byte_for_byte(kept: int) -> None:
    assert serialise(SOLUTION[:kept]) + serialise(SOLUTION[kept:]) == serialise(SOLUTION) == WRITTEN


def test_a_text_with_a_marker_is_refused_where_it_would_be_structure() -> None:
    with pytest.raises(
        RecordError, match=r"question: its text holds the marker <\|code\|> at character 2"
    ):
        conversation("", "a <|code|>")
    with pytest.raises(
        RecordError, match=r"block 1 \(execution\): .*<\|endofblock\|> at character 0"
    ):
        serialise([TEXT, Block("execution", "<|endofblock|>")])


def test_reading_back() -> None:
    assert parse_blocks(WRITTEN) == (SOLUTION, False, ())
    assert parse_blocks(WRITTEN + END_OF_MESSAGE) == (SOLUTION, True, ())
    assert parse_blocks("") == ((), False, ())
    assert parse_blocks(END_OF_MESSAGE) == ((), True, ())
    assert parse_blocks("<|text|><|endofblock|>").blocks == (Block("text", ""),)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("So: " + WRITTEN, Fault(0, "So: ", "no block")),
        (WRITTEN + "\n", Fault(len(WRITTEN), "\n", "no block")),
        (WRITTEN + "<|code|>x", Fault(len(WRITTEN), "<|code|>x", "a block without <|endofblock|>")),
        (
            WRITTEN + END_OF_MESSAGE + "more",
            Fault(len(WRITTEN), END_OF_MESSAGE + "more", "text after <|endofmessage|>"),
        ),
    ],
)  # fmt: skip
def test_what_is_no_block_is_reported_unchanged(text: str, fault: Fault) -> None:
    parsed = parse_blocks(text)
    assert parsed.blocks == SOLUTION
    assert parsed.faults == (fault,)
    assert not parsed.ended


def test_a_block_that_the_message_ends_in_is_a_fault_and_the_end_still_counts() -> None:
    assert parse_blocks("<|text|>a" + END_OF_MESSAGE) == (
        (),
        True,
        (Fault(0, "<|text|>a", "a block without <|endofblock|>"),),
    )


def test_execution_spans_are_the_interpreters_characters() -> None:
    text = WRITTEN + "<|text|>made up: <|execution|>9<|endofblock|><|execution|>cut"
    assert [text[start:end] for start, end in execution_spans(text)] == [
        "<|execution|>3<|endofblock|>",
        "<|execution|>cut",
    ]
    assert execution_spans("<|text|>none<|endofblock|>" + END_OF_MESSAGE) == []


def solution(*kinds: str) -> list[Block]:
    return [Block(kind, kind) for kind in kinds]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kinds", "starts"),
    [
        ("text code execution text code execution text", [0, 1, 3, 4]),
        ("text code execution", [0, 1]),
        ("text code", [0]),
        ("text", [0]),
        ("", [0]),
        ("code execution text", [0]),
        ("code execution text text", [0, 2]),
    ],
)
def test_cut_points(kinds: str, starts: list[int]) -> None:
    assert cut_points(solution(*kinds.split())) == starts


def test_similar_is_a_matter_of_length_only() -> None:
    short, long = [Block("text", "a" * 10)], [Block("text", "b" * 509)]
    assert similar(short, long)
    assert not similar(short, [Block("text", "b" * 510)])
    assert not similar(short, [*long, Block("text", "")])


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ([TEXT] * 22, None),
        ([TEXT] * 23, "more than 24 messages"),
        ([Block("text", "a" * 3000)], None),
        ([Block("text", "a" * 3001)], "a block of more than 3000 characters"),
        ([Block("text", "so <|execution|>3")], "made-up interpreter output"),
    ],
)
def test_noise(blocks: list[Block], reason: str | None) -> None:
    assert noise(blocks) == reason


@pytest.mark.parametrize(
    ("content", "found"),
    [("ZeroDivisionError: x", True), ("My Apologies", True), ("apolog", True), ("terror", True), ("fine", False)],
)  # fmt: skip
def test_apologies_and_errors(content: str, found: bool) -> None:
    assert has_apology([TEXT, Block("execution", content)]) is found


def test_the_special_tokens_are_those_of_the_format() -> None:
    assert set(SPECIAL_TOKENS) == {
        "<|user|>", "<|system|>", "<|assistant|>", "<|text|>", "<|code|>", "<|execution|>",
        "<|endofblock|>", "<|endofmessage|>",
    }  # fmt: skip
