"""Step markers: only at line starts, only in order, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.text.steps import Step, cut_at_step, join_steps, prefix_before, split_steps, take_step

TEXT = "Let's think step by step.\nStep 1: 3 + 4 = 7\nStep 2: 7 - 2 = 5\nThe answer is 5."


def test_split_is_literal() -> None:
    assert split_steps(TEXT) == (
        "Let's think step by step.\n",
        (
            Step(1, "Step 1:", " 3 + 4 = 7\n"),
            Step(2, "Step 2:", " 7 - 2 = 5\nThe answer is 5."),
        ),
    )


def test_prefix_ends_with_the_marker_of_the_step() -> None:
    assert prefix_before(TEXT, 1) == "Let's think step by step.\nStep 1:"
    assert prefix_before(TEXT, 2) == "Let's think step by step.\nStep 1: 3 + 4 = 7\nStep 2:"


def test_cut_leaves_line_breaks_to_the_rest() -> None:
    assert cut_at_step(TEXT, 1) == (
        "Let's think step by step.\nStep 1:",
        " 3 + 4 = 7",
        "\nStep 2: 7 - 2 = 5\nThe answer is 5.",
    )
    assert cut_at_step(TEXT, 2).step == " 7 - 2 = 5\nThe answer is 5."


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Step 1: as Step 2: says\nStep 2: b", [" as Step 2: says\n", " b"]),
        ("Step 1: a\nStep 3: is far\nStep 2: b", [" a\nStep 3: is far\n", " b"]),
        (
            "Step 1: a\nStep 2: b\nStep 1: was fine\nStep 3: c",
            [" a\n", " b\nStep 1: was fine\n", " c"],
        ),
        ("**Step 1:** a\n### Step 2. b", [" a\n", " b"]),
        ("step 1: a\r\n  Step 2 : b", [" a\r\n", " b"]),
        ("**Step 1**: a\n__Step 2__. b\n**Step 3** : c", [" a\n", " b\n", " c"]),
        ("**Step 1: Add**\na\n### Step 2: b", [" Add**\na\n", " b"]),
        ("Step 1) a\nStep 2) b", [" a\n", " b"]),
        ("Step 1: a\nStep 2.5 is b\nStep 2. c", [" a\nStep 2.5 is b\n", " c"]),
        ("Step 1 is a\nStep 2, too", []),
        ("Steps 1: a", []),
        ("Step 12: a", []),
        ("", []),
    ],
)
def test_markers(text: str, steps: list[str]) -> None:
    assert [step.text for step in split_steps(text).steps] == steps


def test_a_text_that_starts_in_the_middle() -> None:
    assert [s.number for s in split_steps("Step 4: a\nStep 5: b", first=4).steps] == [4, 5]


def test_a_continuation_ends_before_the_next_step() -> None:
    assert take_step(" 7 - 2 = 5\n\nStep 3: 5", 2) == " 7 - 2 = 5"
    assert (
        take_step(" see Step 3: below\nThe answer is 5.\n", 2)
        == " see Step 3: below\nThe answer is 5.\n"
    )


def test_absent_steps_are_named() -> None:
    with pytest.raises(ValueError, match="no step 3: the text has steps 1 to 2"):
        prefix_before(TEXT, 3)
    with pytest.raises(ValueError, match="no step 1: the text has no steps"):
        cut_at_step("The answer is 5.", 1)


@given(
    st.lists(
        st.sampled_from(
            ["Step 1:", "Step 2:", "Step 3", ":", ".", ")", "\n", " x", "5", "**", "\r\n"]
        )
    )
)
def test_nothing_is_lost(parts: list[str]) -> None:
    text = "".join(parts)
    solution = split_steps(text)
    assert join_steps(*solution) == text
    for step in solution.steps:
        assert "".join(cut_at_step(text, step.number)) == text
