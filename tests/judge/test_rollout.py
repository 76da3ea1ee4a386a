"""Scores by continuing: a writer that recovers from some prefixes and not from others."""

import math

import pytest

from prefopt.errors import ConfigError
from prefopt.generate.base import Completion, FinishReason, Sampling
from prefopt.generate.journal import Journal
from prefopt.judge.base import WrongSolution
from prefopt.judge.reward import ThresholdLocator
from prefopt.judge.rollout import RolloutScorer

TEXT = "Let's see.\nStep 1: 3 + 4 = 7\nStep 2: 7 - 2 = 4\nStep 3: so 4\nStep 4: The answer is 4."
SOLUTION = WrongSolution("a", "3 + 4 - 2?", "", "5", TEXT)
SAMPLING = Sampling(temperature=1.0, purpose="roll-outs")


class Writer:
    """Recovers in 3 of 4 samples after step 1, in 1 of 4 after step 2, never after step 3."""

    identity = "writer"

    def __init__(self, finish: FinishReason = "stop"):
        self.asked = []
        self.finish: FinishReason = finish

    def generate(self, requests, sampling):
        for r in requests:
            self.asked.append(r)
            right = r.sample < {1: 3, 2: 1, 3: 0}[r.prefix.count("Step")]
            yield Completion(r.id, r.sample, "so 5" if right else "so 4", self.finish, 2)


def is_right(solutions):
    return [text.endswith("so 5") for _, text in solutions]


def scorer(writer):
    return RolloutScorer(
        writer, is_right, prompt=lambda s: f"Q: {s.question}", samples=4, sampling=SAMPLING
    )


def test_scores_are_shares_of_right_continuations(tmp_path):
    writer = Writer()
    with Journal(tmp_path / "j.sqlite") as journal:
        assert scorer(writer).scores([SOLUTION], journal=journal) == [[0.75, 0.25, 0.0, 0.0]]
        assert scorer(writer).scores([SOLUTION], journal=journal) == [[0.75, 0.25, 0.0, 0.0]]
        assert journal.count() == 12
    assert len(writer.asked) == 12
    assert writer.asked[4].prompt == "Q: 3 + 4 - 2?"
    assert writer.asked[4].prefix == "Let's see.\nStep 1: 3 + 4 = 7\nStep 2: 7 - 2 = 4\n"
    assert len({(r.id, r.sample) for r in writer.asked}) == 12


def test_a_threshold_below_one_sample_finds_the_point_of_no_return():
    (found,) = ThresholdLocator(scorer(Writer()), threshold=0.5 / 4).locate(
        [SOLUTION], journal=None
    )
    assert (found.number, found.verdict) == (3, "found")


def test_cut_continuations_are_wrong_and_refused_ones_do_not_count():
    assert scorer(Writer("length")).scores([SOLUTION], journal=None) == [[0.0] * 4]
    (scores,) = scorer(Writer("error")).scores([SOLUTION], journal=None)
    assert all(math.isnan(s) for s in scores[:3]) and scores[3] == 0.0


def test_a_right_solution_ends_with_a_right_step():
    (scores,) = scorer(Writer()).scores([SOLUTION], journal=None, right=True)
    assert scores == [0.75, 0.25, 0.0, 1.0]


def test_texts_without_steps_and_of_one_step_take_no_samples():
    writer = Writer()
    short = [SOLUTION._replace(text="4"), SOLUTION._replace(id="b", text="Step 1: 4")]
    assert scorer(writer).scores(short, journal=None) == [[], [0.0]]
    assert not writer.asked


def test_wrong_settings_are_named():
    for samples, sampling, message in (
        (0, SAMPLING, "samples is 0"),
        (2, Sampling(), "all the same"),
    ):
        with pytest.raises(ConfigError, match=message):
            RolloutScorer(
                Writer(), is_right, prompt=lambda s: s.question, samples=samples, sampling=sampling
            )
