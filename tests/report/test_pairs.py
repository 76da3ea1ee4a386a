import pytest

from prefopt.report.folder import Sample
from prefopt.report.pairs import choose_examples, common_prefix, part


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("14 + 5 = 19", "14 + 5 = 13", "14 + 5 = "),
        ("a cat", "a cats", "a "),
        ("the end", "the end.", "the end"),
        ("same", "same", "same"),
        ("", "x", ""),
        ("答案是四", "答案是五", "答案是"),
        ("x = 4\ny", "x = 4 y", "x = 4"),
    ],
)
def test_common_prefix_ends_between_words(first, second, shared):
    assert first[: common_prefix(first, second)] == shared


def test_part_marks_the_step_that_differs():
    parting = part(
        "Step 2: 4 + 3 = 7\nStep 3: 7 + 4 = 11\nAnswer: 11",
        "Step 2: 4 + 3 = 7\nStep 3: 7 + 4 = 12\nAnswer: 12",
        prefix="Step 1: 2 + 2 = 4\n",
    )
    assert parting.shared == "Step 1: 2 + 2 = 4\nStep 2: 4 + 3 = 7\n"
    assert parting.chosen == ("Step 3: 7 + 4 = ", "11", "\nAnswer: 11", 0)
    assert parting.rejected == ("Step 3: 7 + 4 = ", "12", "\nAnswer: 12", 0)


def test_part_where_one_response_ends():
    parting = part("Yes.", "Yes.\nAnd no.")
    assert parting.chosen == ("Yes.", "", "", 0)
    assert parting.rejected == ("Yes.", "\nAnd no.", "", 0)


def test_part_shows_the_beginning_of_long_responses():
    parting = part("a" * 3000, "b " + "c" * 10)
    assert len(parting.chosen.step) == 2000
    assert parting.chosen.hidden == 1000
    assert parting.rejected.hidden == 0


def test_part_keeps_the_end_of_long_shared_text():
    parting = part("x", "y", prefix="p" * 1000 + "end")
    assert parting.shared == "… " + "p" * 597 + "end"
    line = part("w " * 200 + "x", "w " * 200 + "y").chosen
    assert line.same == "… " + "w " * 80


def sample(margin: float | None, number: int = 0) -> Sample:
    return Sample(f"{number}:{margin}", "p", "", "c", "r", None, None, margin)


def test_examples_are_the_largest_the_nearest_and_the_wrong_ones():
    margins = [-9, -8, -7, -6, -5, -4, -0.1, 0.2, 0.3, 3, 4, 5, 6, 7, 8, 9]
    examples = choose_examples([sample(margin) for margin in margins])
    assert [e.sample.margin for e in examples] == [9, 8, 7, 6, 0.3, 0.2, -0.1, -6, -7, -8, -9]
    assert [e.wrong for e in examples].count(True) == 5


def test_examples_of_one_margin_are_not_shown_twice():
    assert len(choose_examples([sample(1.0, number) for number in range(3)])) == 3


def test_examples_without_margins_keep_their_order():
    examples = choose_examples([sample(None, number) for number in range(30)])
    assert [e.sample.id for e in examples][:2] == ["0:None", "1:None"]
    assert len(examples) == 11


def test_long_prompts_are_folded():
    row = sample(1.0)._replace(prompt="x" * 5000)
    example = choose_examples([row])[0]
    assert (len(example.prompt), len(example.prompt_rest)) == (600, 4400)
