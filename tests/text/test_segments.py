"""Segments join to the text; cut points leave something to write."""

from __future__ import annotations

import pytest

from prefopt.text.segments import cut_points, split_segments

STEPS = "Let us see.\nStep 1: 1 + 2 = 3\nso 3\nStep 2: 3 + 3 = 6\n\nStep 3: done\nThe answer is 6\n"


def test_steps_keep_their_further_lines_and_the_opening_goes_to_the_first() -> None:
    assert split_segments(STEPS) == (
        (
            "Let us see.\nStep 1: 1 + 2 = 3\nso 3\n",
            "Step 2: 3 + 3 = 6\n\n",
            "Step 3: done\nThe answer is 6\n",
        ),
        "markers",
    )


def test_lines_keep_blank_lines_and_line_breaks() -> None:
    parts, kind = split_segments("\n\na\n \nb\r\n\nc")
    assert (parts, kind) == (("\n\na\n \n", "b\r\n\n", "c"), "lines")


TEXTS = [
    *("", "\n", "\n\n", "one", "one\n", STEPS, "x\n" * 5 + "\n\ny"),
    *("Step 2: no first", "**Step 1:** a\n**Step 2:** b"),
]


@pytest.mark.parametrize("how", ["auto", "markers", "lines"])
@pytest.mark.parametrize("text", TEXTS)
def test_joined_they_are_the_text(text: str, how: str) -> None:
    parts, _ = split_segments(text, how)  # pyright: ignore[reportArgumentType]
    assert "".join(parts) == text
    assert all(parts)


def test_a_single_line_is_one_segment_with_start_0_only() -> None:
    """P10: no step markers."""
    assert split_segments("so it is 6") == (("so it is 6",), "lines")
    assert list(cut_points(1)) == [0]
    assert list(cut_points(0)) == [0]


def test_cut_points_leave_at_least_so_many() -> None:
    assert list(cut_points(4)) == [0, 1, 2, 3]
    assert list(cut_points(4, leave=2)) == [0, 1, 2]
    assert list(cut_points(4, leave=9)) == [0]


def test_an_opening_never_stands_alone() -> None:
    opening = "Let us think\nstep by step.\n"
    parts, _ = split_segments(opening + "a\nb", opening=opening)
    assert parts == (opening + "a\n", "b")
    marked = opening + "Step 1:"
    assert split_segments(marked + " x\nStep 2: y", opening=marked).parts == (
        marked + " x\n",
        "Step 2: y",
    )
