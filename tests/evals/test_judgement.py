"""Tables of numbers from verdicts and grades, against counts by hand."""

import pytest

from prefopt.evals.judgement import grade_table, rate_table
from prefopt.grade.winrate import combine_positions
from prefopt.judge.asking import Spent
from prefopt.judge.outputs import Contest
from prefopt.judge.pairwise import Compared, Seen
from prefopt.judge.single import Graded
from tests.judge.judged import exchange


def judged_twice(name, turn, first, second):
    """Verdicts about the model when its answer came first, and when it came second."""
    seen = (Seen(True, first, "", ""), Seen(False, second, "", ""))
    return Compared(name, turn, combine_positions(first, second), seen, "", Spent())


def judged_once(name, verdict, turn=1):
    return Compared(name, turn, verdict, (Seen(True, verdict, "", ""),), "", Spent())


def contests(*named, answers=("a",)):
    """Contests of a name and a category each."""
    return [
        Contest(
            exchange(name, category=category)._replace(answers=answers, questions=("?",) * len(answers)),
            exchange(name)._replace(answers=("bb",) * len(answers), questions=("?",) * len(answers)),
        )
        for name, category in named
    ]  # fmt: skip


def test_categories_have_both_rates_and_what_changed_with_the_order():
    pytest.importorskip("sklearn")
    # The judge prefers whatever comes first in `words`, and the model in `sums`.
    found = rate_table(
        [
            *[judged_twice(f"w{k}", 1, "win", "loss") for k in range(4)],
            *[judged_twice(f"s{k}", 1, "win", "win") for k in range(2)],
            judged_twice("s2", 1, "win", "missing"),
        ],
        contests(*[(f"w{k}", "words") for k in range(4)], *[(f"s{k}", "sums") for k in range(3)]),
        both=True,
    )
    assert found.adjusted and found.adjusted.inconsistent == 4
    words, sums = found.by_category["words"], found.by_category["sums"]
    assert words.raw and words.adjusted and sums.raw and sums.adjusted
    assert (words.raw.value, words.raw.wins, words.raw.losses) == (50.0, 4, 4)
    assert (words.adjusted.ties, words.adjusted.inconsistent, words.turns) == (4, 4, 4)
    assert (sums.raw.wins, sums.raw.missing, sums.adjusted.wins, sums.adjusted.missing) == (5, 1, 2, 1)  # fmt: skip
    assert found.by_category["words"].to_json()["adjusted"] == words.adjusted._asdict()


@pytest.mark.parametrize("both", [True, False])
def test_categories_without_a_verdict_stay(both):
    pytest.importorskip("sklearn")
    verdicts = (
        [judged_twice("x", 1, "win", "win"), judged_twice("y", 1, "missing", "missing")]
        if both
        else [judged_once("x", "win"), judged_once("y", "missing")]
    )
    found = rate_table(verdicts, contests(("x", "a"), ("y", "b")), both=both)
    assert found.by_category["b"] == (None, None, 1)
    assert (found.by_category["a"].adjusted is None) == (not both)
    assert found.by_category["b"].to_json() == {"raw": None, "adjusted": None, "turns": 1}


def test_turns_of_a_conversation_do_not_narrow_the_length_controlled_interval():
    pytest.importorskip("sklearn")
    said = ["win", "loss", "win", "win", "tie", "win", "win", "loss", "win", "win", "win"] * 6
    turns = [judged_once(f"c{k}", v, turn) for k, v in enumerate(said) for turn in (1, 2)]
    conversations = contests(*[(f"c{k}", "") for k in range(66)], answers=("a", "a"))
    together = rate_table(turns, conversations, both=False).length_controlled
    alone = rate_table(
        [judged_once(f"c{k}", v) for k, v in enumerate(said * 2)],
        contests(*[(f"c{k}", "") for k in range(132)]),
        both=False,
    ).length_controlled
    assert together.low and together.high and alone.low and alone.high
    assert together.value == alone.value
    # 66 conversations, not 132 answers: wider by the root of 2, up to the draws.
    assert 1.25 < (together.high - together.low) / (alone.high - alone.low) < 1.6


def test_equal_grades_leave_something_open():
    graded = [Graded("x", 1, 7.0, "", "", Spent())]
    found = grade_table(graded, [exchange("x")]).all
    # Of one grade: other grades may be up to 79.345 percent of all (Wilson), and lie between 1 and 10.
    assert (found.value, found.low, found.high) == pytest.approx((7.0, 2.2393, 9.3804), abs=1e-3)
    four = [Graded("x", turn, 10.0, "", "", Spent()) for turn in (1, 2, 3, 4)]
    found = grade_table(four, [exchange("x")]).all
    # Turns of one question count as one.
    assert (found.low, found.high) == pytest.approx((2.859, 10.0), abs=1e-3)
    # So do turns with different grades: 8 - 7 * 0.79345 and 8 + 2 * 0.79345.
    two = [Graded("x", 1, 7.0, "", "", Spent()), Graded("x", 2, 9.0, "", "", Spent())]
    found = grade_table(two, [exchange("x")]).all
    assert (found.value, found.low, found.high) == pytest.approx((8.0, 2.4459, 9.5869), abs=1e-3)


def test_the_purest_bias_for_a_position_has_an_interval():
    pytest.importorskip("sklearn")
    compared = [judged_twice(f"c{k}", 1, "win", "loss") for k in range(60)]
    found = rate_table(compared, contests(*[(f"c{k}", "") for k in range(60)]), both=True)
    assert found.raw and found.adjusted and found.first_preferred == 100
    for rate in (found.raw, found.adjusted):
        assert (rate.value, rate.low, rate.high) == pytest.approx((50, 46.991, 53.009), abs=1e-3)
