"""Where continuations stop ending right: the odds against an independent integral, and a writer with known rates."""

from fractions import Fraction
from math import comb

import pytest

from prefopt.errors import ConfigError
from prefopt.generate.base import Completion, Sampling
from prefopt.generate.journal import Journal
from prefopt.judge.base import Location, WrongSolution
from prefopt.judge.oracle import OracleLocator
from prefopt.judge.rollout import RolloutScorer
from prefopt.judge.turning import RolloutLocator, wrong_step_odds
from prefopt.progress import counted

SAMPLING = Sampling(temperature=1.0, purpose="roll-outs")


def exact_odds(right, drawn, *, ends_right=False):
    """The integral over p term by term, in fractions: powers of p under a sum over (1 - p/20)^n."""
    if ends_right:
        right, drawn = [*right, 1], [*drawn, 1]
    weights = []
    for e in range(1, len(right) + 1):
        hits, misses = sum(right[:e]), sum(drawn[:e]) - sum(right[:e])
        late, none = sum(right[e:]), sum(drawn[e:]) - sum(right[e:])
        total = Fraction(0)
        for k in range(none + 1):  # (1 - p/20)^none; beta integrals of p^a (1 - p)^b
            a, b = hits + late + k, misses
            total += comb(none, k) * Fraction(-1, 20) ** k / ((a + b + 1) * comb(a + b, a))
        weights.append(total * Fraction(1, 20) ** late)
    return [float(w / sum(weights)) for w in weights]


@pytest.mark.parametrize(
    ("right", "drawn"),
    [
        ([3, 4, 0, 0], [8, 8, 8, 8]),
        ([1, 0, 0], [8, 16, 8]),
        ([0, 2, 1, 0, 1], [8, 8, 8, 64, 8]),
        ([0, 0], [0, 3]),
        ([5], [8]),
    ],
)
@pytest.mark.parametrize("ends_right", [False, True])
def test_odds_are_those_of_the_integral(right, drawn, ends_right):
    found = wrong_step_odds(right, drawn, ends_right=ends_right)
    # The sum over 200 rates stands for the integral.
    assert found == pytest.approx(exact_odds(right, drawn, ends_right=ends_right), abs=2e-3)
    assert len(found) == len(right) + ends_right and sum(found) == pytest.approx(1)


def test_a_hard_problem_is_no_wrong_step_and_one_lucky_hit_is_no_right_one():
    assert max(range(4), key=wrong_step_odds([2, 1, 2, 0], [16, 16, 16, 64]).__getitem__) == 2
    assert max(range(4), key=wrong_step_odds([12, 11, 0, 1], [16, 16, 16, 16]).__getitem__) == 1


class Writer:
    """Ends right in `hits` of every 8 samples up to the first wrong step, and never after it."""

    identity = "writer"

    def __init__(self, wrong, hits, refuse=()):
        self.wrong, self.hits, self.refuse = wrong, hits, refuse
        self.asked = []

    def generate(self, requests, sampling):
        for r in requests:
            self.asked.append((r.prefix.count("Step"), r.sample))
            step = r.prefix.count("Step")
            if step in self.refuse:
                yield Completion(r.id, r.sample, "busy", "error", 0)
                continue
            right = step < self.wrong and r.sample % 8 in self.hits
            yield Completion(r.id, r.sample, "so 5" if right else "so 4", "stop", 2)


class Local(Writer):
    def room(self, requests):
        return [1] * len(requests)


def solution(steps, id="a"):
    text = "Well.\n" + "\n".join(f"Step {k}: x" for k in range(1, steps + 1))
    return WrongSolution(id, "q", "", "5", text)


def locator(writer, samples=8, effort=8, sampling=SAMPLING):
    scorer = RolloutScorer(
        writer, lambda xs: [t.endswith("so 5") for _, t in xs], prompt=lambda s: s.question,
        samples=samples, sampling=sampling,
    )  # fmt: skip
    return RolloutLocator(scorer, effort=effort)


@pytest.mark.parametrize("wrong", [1, 2, 3, 4])
@pytest.mark.parametrize("hits", [(2,), (0, 3, 5), tuple(range(8))])
def test_the_step_of_the_fall_is_found_at_any_rate(wrong, hits):
    (found,) = locator(Writer(wrong, hits)).locate([solution(4)], journal=None)
    assert (found.number, found.verdict) == (wrong, "found")


def test_only_places_in_doubt_get_more_and_never_more_than_the_limit():
    clear, doubtful = Writer(2, range(8)), Writer(2, (7,))
    (found,) = locator(clear).locate([solution(3)], journal=None)
    assert found.remark == (
        "probability 1.00; right continuations from before step 1, 2, ...: 8/8 8/8 0/8"
    )
    assert len(clear.asked) == 24
    locator(doubtful).locate([solution(3)], journal=None)
    counts = [sum(step == k for step, _ in doubtful.asked) for k in range(3)]
    assert counts[2] > 8 and max(counts) <= 64
    once = Writer(2, (7,))
    locator(once, effort=1).locate([solution(3)], journal=None)
    assert len(once.asked) == 24


def test_nothing_to_compare_with_is_undecided():
    writer = Writer(0, ())
    found = locator(writer).locate([solution(3), solution(0, "b")], journal=None)
    assert found[0].verdict == found[1].verdict == "undecided"
    assert found[0].remark.startswith("no continuation ends right; ")
    assert found[1].remark == "not continued: the solution has no numbered steps"
    assert [sum(step == k for step, _ in writer.asked) for k in range(3)] == [64, 8, 8]


def test_right_solutions():
    sound, lucky = Writer(9, (1, 4)), Writer(2, (1, 4, 6))
    (found,) = locator(sound).locate([solution(3)], journal=None, right=True)
    assert (found.number, found.verdict) == (None, "none")
    (found,) = locator(lucky).locate([solution(5)], journal=None, right=True)
    assert (found.number, found.verdict) == (2, "found"), "no way on, and yet it got there"


def test_refusals_of_a_server_are_asked_again_those_of_a_model_here_are_final(tmp_path):
    refusing = Writer(2, (1, 4, 6), refuse=(2,))
    with Journal(tmp_path / "j.sqlite") as journal:
        (found,) = locator(refusing).locate([solution(3)], journal=journal)
        assert found.verdict == "failed" and journal.count() == 16
        assert found.remark.endswith("3/8 3/8 0/0")
        (found,) = locator(Writer(2, (1, 4, 6))).locate([solution(3)], journal=journal)
        assert found.number == 2
    (found,) = locator(Local(2, (1, 4, 6), refuse=(2,))).locate([solution(3)], journal=None)
    assert found.verdict != "failed", "a model in this process would refuse again"


def test_a_second_run_draws_nothing_again(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        first, again = Writer(2, (7,)), Writer(2, (7,))
        seen = []
        found = locator(first).locate(
            [solution(3)], journal=journal, progress=lambda d, n: seen.append((d, n))
        )
        assert locator(again).locate([solution(3)], journal=journal) == found
        assert journal.count() == len(first.asked) == len(set(first.asked))
    assert again.asked == [] and seen[-1] == (len(first.asked), len(first.asked))


def test_progress_never_passes_its_total(capsys):
    """Places in doubt get more continuations than were planned at first."""
    writer = Writer(2, (7,))
    with counted("locating") as tick:
        locator(writer).locate([solution(3)], journal=None, progress=tick)
    lines = [line.split()[-1].split("/") for line in capsys.readouterr().err.splitlines()]
    shown = [(int(done), int(total)) for done, total in lines]
    assert all(done <= total for done, total in shown)
    assert shown == sorted(shown) and shown[-1] == (len(writer.asked), len(writer.asked))
    assert shown[-1][1] > 24, "more than the first round"


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match="effort is 0; use 1 or more"):
        locator(Writer(1, ()), effort=0)
    with pytest.raises(ConfigError, match="at temperature 0 are all the same"):
        locator(Writer(1, ()), samples=1, sampling=Sampling())


def test_an_oracle_says_the_same_of_right_solutions():
    oracle = OracleLocator(lambda _: 2)
    assert oracle.locate([solution(3)], journal=None, right=True) == [Location(2, "found")]
