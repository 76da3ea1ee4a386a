"""What becomes of samples: stripped, left out with the reason, equal ones counted once."""

from __future__ import annotations

from prefopt.build.answers import CUT, LONG, REFUSED, SHORT, AnswerRules, LeftOut, sample_answers
from prefopt.generate.base import Sampling
from prefopt.generate.journal import Journal
from prefopt.records import Message, Preference, Response
from tests.build.scripted import Knowing

TEXTS = {
    ("a", 0): " Paris. \n",
    ("a", 1): "Paris.",
    ("a", 2): "In Paris, of cour",
    ("a", 3): "no!",
    ("b", 0): "   \n ",
    ("b", 1): "Eine Straße",
    ("b", 2): "x" * 11,
    ("b", 3): "blocked",
}
PROMPTS = [Preference("a", "Where?\n", ()), Preference("b", (Message("user", "Wo?"),), ())]
RULES = AnswerRules(min_characters=4, max_characters=11)


def test_samples_are_cleaned_counted_and_left_out() -> None:
    writer = Knowing(TEXTS, cut=["In Paris, of cour"], refused=["blocked"])
    first, second = sample_answers(PROMPTS, writer, Sampling(), samples=4, rules=RULES)
    assert first.responses == (Response("Paris."),)
    assert first.times == (2,)
    assert first.left_out == (LeftOut(2, "In Paris, of cour", CUT), LeftOut(3, "no!", SHORT))
    assert second.responses == (Response("Eine Straße"), Response("x" * 11)), (
        "11 characters, 12 bytes"
    )
    assert [left.why for left in second.left_out] == [SHORT, REFUSED]
    assert second.record().prompt == PROMPTS[1].prompt


def test_what_is_kept_can_be_chosen() -> None:
    writer = Knowing(TEXTS, cut=["In Paris, of cour"])
    rules = AnswerRules(strip=False, drop_cut=False, min_characters=0, max_characters=None)
    first, second = sample_answers(PROMPTS, writer, Sampling(), samples=4, rules=rules)
    assert first.responses[0] == Response(" Paris. \n")
    assert Response("In Paris, of cour", ends=False) in first.responses
    assert (first.left_out, second.left_out) == ((), ())


def test_a_limit_of_characters_leaves_out_what_is_longer() -> None:
    first, _ = sample_answers(
        PROMPTS, Knowing(TEXTS), Sampling(), samples=4, rules=AnswerRules(max_characters=6)
    )
    assert [left.why for left in first.left_out] == [LONG, SHORT]


def test_the_journal_is_asked_first() -> None:
    writer = Knowing(TEXTS)
    with Journal(":memory:") as journal:
        found = [
            sample_answers(PROMPTS, writer, Sampling(), samples=n, rules=RULES, journal=journal)
            for n in (2, 4, 4)
        ]
    assert len(writer.asked) == 8
    assert found[1] == found[2]
