"""What a judge is shown: nothing that is judged may be left out of it."""

from pathlib import Path

import pytest

from prefopt.errors import ConfigError
from prefopt.generate.openai import OpenAIGenerator
from prefopt.judge.asking import Asking
from prefopt.judge.outputs import Contest, Exchange
from prefopt.judge.pairwise import PairwiseJudge
from prefopt.judge.readings import GRADES, PREFERENCES
from prefopt.judge.single import SingleJudge
from prefopt.judge.template import (
    PAIRWISE,
    PAIRWISE_PLACES,
    SINGLE,
    SINGLE_PLACES,
    Places,
    parse_template,
    read_template,
)
from prefopt.records import Message
from tests.generate.server import FakeServer
from tests.judge.judged import compare, counted, grade, shown


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(
        'Be {form}\n--- user ---\n{question}\n\nRight: {reference}\n\n{"a": 1} {answer}'
    )
    template = read_template(path, SINGLE_PLACES)
    values = {"question": "Q", "answer": "{form}", "reference": "", "form": "brief"}
    assert template.fill(values) == (
        Message("system", "Be brief"),
        Message("user", 'Q\n\n{"a": 1} {form}'),
    )
    assert template.digest() != SINGLE.digest() != PAIRWISE.digest()


@pytest.mark.parametrize(
    ("text", "places", "message"),
    [
        (
            "Question: {question}\nReference: {reference}\nAnswer: {answer}\n{form}",
            SINGLE_PLACES,
            r"t: \{reference\} and \{answer\} share a paragraph, which is left out where there is no reference; put",
        ),
        (
            "{question}\n\n{answer}\n\nCompare with {reference}. {form}",
            SINGLE_PLACES,
            r"\{reference\} and \{form\} share a paragraph",
        ),
        (
            "{question}\n\n{answer}\n\n{earlier}\n{reference}",
            SINGLE_PLACES,
            r"\{earlier\} and \{reference\} share a paragraph, which is left out where there is no earlier",
        ),
        (
            "{earlier_1}\n\n{earlier_2}\n \n{question} {reference}\n--- user ---\n{answer_1} {answer_2}",
            PAIRWISE_PLACES,
            r"\{reference\} and \{question\} share a paragraph",
        ),
        ("{question} {answer} {answer_1}", SINGLE_PLACES, r"\{answer_1\} is no place of such a"),
        (
            "{question} {answer_1} {answer_2}\n\n{earlier}",
            PAIRWISE_PLACES,
            r"\{earlier\} is no place of such a template; it may have question, answer_1, answer_2, earlier_1, "
            "earlier_2, reference, form",
        ),
        ("{question} {answer} {Form}", SINGLE_PLACES, r"\{Form\} is no place of such a template"),
        ("{question} {answer_1}", PAIRWISE_PLACES, r"the template has no \{answer_2\}"),
    ],
)  # fmt: skip
def test_templates_that_could_hide_something_are_refused(
    text: str, places: Places, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_template(text, places, "t")


def test_capital_letters_in_braces_are_text_of_the_template() -> None:
    template = parse_template("{question} \\boxed{X} {answer} {Note}", SINGLE_PLACES, "t")
    (message,) = template.fill({"question": "q", "answer": "a"})
    assert message.content == "q \\boxed{X} a {Note}"


def test_needed_places_may_share_a_paragraph_and_are_always_shown() -> None:
    single = parse_template(
        "Q: {question}\nA: {answer}\n{form}\n\nR: {reference}\n\nE: {earlier}", SINGLE_PLACES, "t"
    )
    with FakeServer(lambda *_: counted("[[5]]")) as server:
        judge = SingleJudge(Asking(_writer(server), GRADES["fastchat"]), template=single)
        judge.grade([Exchange("a", (" ",), ("",)), Exchange("b", ("q?",), ("x",))])
        texts = sorted(shown(body) for body in server.asked)
    form = GRADES["fastchat"].form
    assert texts == [
        f"Q: (The question is empty.)\nA: (The answer is empty.)\n{form}",
        f"Q: q?\nA: x\n{form}",
    ]


def test_an_empty_question_is_shown_as_empty_by_our_own_templates_too() -> None:
    blank = Exchange("a", ("\n",), ("x",))
    (_,), server = grade(lambda *_: counted("[[5]]"), [blank])
    assert "<question>\n(The question is empty.)\n</question>" in shown(server.asked[0])
    contest = Contest(blank, blank._replace(answers=("y",)))
    (_,), server = compare(lambda *_: counted("[[1]]"), [contest], order="random")
    assert "<question>\n(The question is empty.)\n</question>" in shown(server.asked[0])


def test_a_pairwise_template_shows_both_answers() -> None:
    template = parse_template(
        "{question}|{answer_1}|{answer_2}\n\n{reference}", PAIRWISE_PLACES, "t"
    )
    contest = Contest(Exchange("a", ("q",), ("mine",)), Exchange("a", ("q",), ("",)))
    with FakeServer(lambda *_: counted("[[1]]")) as server:
        asking = Asking(_writer(server), PREFERENCES["agreed"])
        PairwiseJudge(asking, template=template).compare([contest])
        texts = sorted(shown(body) for body in server.asked)
    assert texts == ["q|(The answer is empty.)|mine", "q|mine|(The answer is empty.)"]


def _writer(server: FakeServer) -> OpenAIGenerator:
    return OpenAIGenerator("judge", base_url=server.url, patience=5)
