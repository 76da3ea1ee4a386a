"""Grades of single answers: what is asked, how verdicts are read, what becomes of failures."""

from pathlib import Path

import pytest

from prefopt.errors import ConfigError, JudgeError, RecordError, StorageError
from prefopt.generate.base import Sampling
from prefopt.generate.journal import Journal
from prefopt.generate.openai import OpenAIGenerator
from prefopt.judge.asking import Asking, Spent, total_spent
from prefopt.judge.outputs import Exchange, join_outputs, read_outputs
from prefopt.judge.readings import GRADES, PREFERENCES, find_rules
from prefopt.judge.single import SingleJudge
from prefopt.judge.template import SINGLE_PLACES, parse_template, read_template
from prefopt.records import Message
from tests.generate.server import Answer, FakeServer
from tests.integration.runs import write_rows
from tests.judge.judged import between, counted, exchange, grade, shown

TALK = [{"role": "system", "content": "S"}, {"role": "user", "content": "P"}]


@pytest.mark.parametrize(
    ("text", "agreed", "last", "fastchat"),
    [
        ("It is good.\n[[7]]", 7, 7, 7),
        ("[[7.5]] I repeat: [[ 7.5 ]]", 7.5, 7.5, 7.5),
        ("At first [[7]], but no: [[5]]", None, 5, 7),
        ("[[8/10]]", 8, 8, None),
        ("[[11]]", None, None, None),
        ("[[0]]", None, None, None),
        ("[[rating]] [[6]]", None, 6, 6),
        ("The matrix [[0, 1]] is right. [[9]]", 9, 9, 9),
        ("Rating: [6]", None, None, 6),
        ("7", None, None, None),
        ("", None, None, None),
    ],
)
def test_grades_are_read_strictly_and_by_name(text, agreed, last, fastchat):
    assert [rules.read(text) for rules in GRADES.values()] == [agreed, last, fastchat]


@pytest.mark.parametrize(
    ("text", "agreed", "last", "fastchat", "bare"),
    [
        ("[[1]]", "1", "1", None, "1"),
        ("so [[Tie]]", "tie", "tie", None, None),
        ("[[A]] is my verdict: [[1]]", "1", "1", "1", None),
        ("[[2]] ... no, [[1]]", None, "1", None, None),
        ("[[B]] then [[A]]", None, "1", "1", None),
        ("[[C]]", "tie", "tie", "tie", "tie"),
        ("[[3]]", None, None, None, None),
        ("m", None, None, None, "1"),
        (" M.", None, None, None, "2"),
        ("2", None, None, None, "2"),
        ("The first is better.", None, None, None, None),
    ],
)
def test_preferences_are_read_strictly_and_by_name(text, agreed, last, fastchat, bare):
    assert [rules.read(text) for rules in PREFERENCES.values()] == [agreed, last, fastchat, bare]


def test_unknown_rules_are_named():
    with pytest.raises(
        ConfigError, match="rules is 'mine'; known are agreed, last, fastchat, bare"
    ):
        find_rules("mine", PREFERENCES)


def test_the_judge_sees_question_answer_and_the_form_of_its_verdict():
    (found,), server = grade(lambda *_: counted("Fine. [[7]]"), [exchange("a")])
    assert (found.id, found.turn, found.score, found.text) == ("a", 1, 7.0, "Fine. [[7]]")
    assert found.spent == Spent(1, 0, 0, 100, 7)
    system, user = server.asked[0]["messages"]
    assert system["role"] == "system" and "strict" in system["content"]
    text = user["content"]
    assert between(text, "question") == "What is 3 + 2?" and between(text, "answer") == "It is 5."
    assert text.endswith("in double brackets on a line of its own, such as [[5]].")
    assert "<reference>" not in text and "<conversation>" not in text and "{" not in text
    assert server.asked[0]["temperature"] == 0.0 and server.asked[0]["max_tokens"] == 1024


def test_a_reference_is_shown_for_its_turn_only_and_the_second_turn_sees_the_first():
    two = Exchange(
        "m",
        ("Draw it.", "Now {answer} in red."),
        ("Drawn {question}.", ""),
        opening=(Message("system", "You draw."),),
        references=("A picture.",),
    )
    found, server = grade(lambda *_: counted("[[4]]"), [two])
    assert [(g.turn, g.score) for g in found] == [(1, 4.0), (2, 4.0)]
    first, second = sorted((shown(body) for body in server.asked), key=lambda t: "in red" in t)
    assert between(first, "reference") == "A picture."
    assert between(first, "conversation") == "[system]\nYou draw."
    assert between(first, "answer") == "Drawn {question}.", "answers are not searched for places"
    assert "<reference>" not in second
    assert between(second, "conversation") == (
        "[system]\nYou draw.\n\n[user]\nDraw it.\n\n[assistant]\nDrawn {question}."
    )
    assert between(second, "question") == "Now {answer} in red."
    assert between(second, "answer") == "(The answer is empty.)"


def test_a_verdict_that_cannot_be_read_is_missing_and_every_attempt_is_counted():
    (found,), server = grade(lambda *_: counted("Good, 7 of 10."), [exchange("a")], attempts=3)
    assert found.score is None
    assert found.remark == "no verdict to be read by the rules 'agreed'"
    assert found.spent == Spent(3, 0, 3, 300, 21)
    assert [body["temperature"] for body in server.asked] == [0.0, 0.7, 0.7]
    assert len({body["seed"] for body in server.asked}) == 3


def test_tokens_that_a_server_does_not_count_are_unknown_and_not_none():
    whole = {"prompt_tokens": 100, "completion_tokens": 7}
    for usage, spent in [
        (None, Spent(1, 0, 0, 0, 0, 1, 1)),
        ({"completion_tokens": 7}, Spent(1, 0, 0, 0, 7, 1, 0)),
        ({"prompt_tokens": 100}, Spent(1, 0, 0, 100, 0, 0, 1)),
        (whole, Spent(1, 0, 0, 100, 7, 0, 0)),
    ]:
        script = lambda *_, usage=usage: {**counted("[[7]]"), "usage": usage}  # noqa: E731
        (found,), _ = grade(script, [exchange("a")])
        assert found.spent == spent and found.spent.replies == 1


def test_a_second_attempt_may_be_read():
    script = lambda n, *_: counted("hm" if n == 1 else "[[3]]")  # noqa: E731
    (found,), _ = grade(script, [exchange("a")])
    assert found.score == 3.0 and found.remark == "" and found.spent == Spent(2, 0, 1, 200, 14)


def test_a_text_that_was_cut_has_no_verdict_unless_the_rules_take_the_first():
    script = lambda *_: counted("[[7]] or rather", finish="length")  # noqa: E731
    (found,), _ = grade(script, [exchange("a")], attempts=1, sampling=Sampling(max_new_tokens=4))
    assert found.score is None and found.remark.endswith("; cut at 4 tokens")
    (found,), _ = grade(script, [exchange("a")], rules="fastchat")
    assert found.score == 7.0


def test_a_refused_question_is_missing_is_not_tried_again_and_the_next_run_asks(tmp_path):
    script = lambda n, *_: Answer(400, "too long") if n == 1 else counted("[[9]]")  # noqa: E731
    with Journal(tmp_path / "j.sqlite") as journal:
        (found,), server = grade(script, [exchange("a")], journal=journal)
        assert found.score is None and found.remark == "refused: HTTP 400 (too long)"
        assert found.spent == Spent(1, 1, 0, 0, 0) and len(server.asked) == 1
        assert journal.count() == 0
        (found,), _ = grade(lambda *_: counted("[[9]]"), [exchange("a")], journal=journal)
    assert found.score == 9.0


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(500, "oops"),
        Answer(429, "slow down", {"retry-after": "0.1"}),
        Answer(body='{"choices": [{"message": {"content": "[[2]]"'),
        Answer(drop=True),
        Answer(body=counted("[[1]]"), delay=1.5),
        counted(None),
    ],
    ids=["500", "429", "truncated", "dropped", "late", "empty"],
)
def test_trouble_that_passes_changes_nothing(trouble):
    script = lambda n, *_: trouble if n == 1 else counted("[[8]]")  # noqa: E731
    (found,), server = grade(script, [exchange("a")], timeout=1.0)
    assert found.score == 8.0 and found.spent == Spent(1, 0, 0, 100, 7)
    assert len(server.asked) >= 2


def test_a_server_that_stays_in_trouble_ends_the_run_and_says_what_to_do():
    script = lambda *_: Answer(429, "later", {"retry-after": "3600"})  # noqa: E731
    with pytest.raises(JudgeError, match="the server asks to wait 3600 s, longer than patience"):
        grade(script, [exchange("a")])


def test_a_second_run_asks_nothing_and_counts_the_same(tmp_path):
    exchanges = [exchange(f"e{k}", f"It is {k}.") for k in range(5)]
    with FakeServer(lambda n, *_: counted("hm" if n == 1 else "[[5]]")) as server:
        judge = SingleJudge(Asking(OpenAIGenerator("j", base_url=server.url), GRADES["agreed"]))
        found = []
        for _ in range(2):
            with Journal(tmp_path / "j.sqlite") as journal:
                found.append(judge.grade(exchanges, journal=journal))
                assert journal.count() == 6
        assert found[0] == found[1] and len(server.asked) == 6
    assert total_spent([g.spent for g in found[0]]) == Spent(6, 0, 1, 600, 42)


def test_wrong_settings_and_templates_are_named(tmp_path):
    with pytest.raises(ConfigError, match="attempts is 0; use 1 or more"):
        grade(lambda *_: counted("[[5]]"), [exchange("a")], attempts=0)
    with pytest.raises(ConfigError, match=r"t: \{awnser\} is no place of such a template; it may "):
        parse_template("{question} {awnser}", SINGLE_PLACES, "t")
    with pytest.raises(ConfigError, match=r"t: the template has no \{answer\}, so the judge"):
        parse_template("{question}", SINGLE_PLACES, "t")
    with pytest.raises(StorageError, match="check the path"):
        read_template(tmp_path / "none.txt", SINGLE_PLACES)


def test_files_of_answers_are_read(tmp_path):
    rows = [
        {"instruction": "I?", "output": "o", "dataset": "helpful"},
        {"question_id": 81, "turns": ["a?", "b?"], "output": ["1", "2"], "category": "math", "reference": ["r"]},
        {"id": "x", "prompt": TALK, "response": "q", "prefix": "p", "reference": None},
        {"prompt": "I?", "output": None},
    ]  # fmt: skip
    a, b, c, d = read_outputs(write_rows(tmp_path / "a.jsonl", rows))
    assert (a.questions, a.answers, a.category) == (("I?",), ("o",), "helpful")
    assert (b.id, b.answers, b.category, b.reference(1), b.reference(2)) == (
        "81",
        ("1", "2"),
        "math",
        "r",
        "",
    )
    assert (c.opening, c.questions, c.answers) == ((Message("system", "S"),), ("P",), ("pq",))
    assert a.references == () and c.references == (), "null is none"
    assert d.answers == () and d.id == f"{a.id}-2", "ids of rows without one go by the question"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output": "o"}, "a.jsonl:1: there is no question; a row needs one of instruction"),
        ({"prompt": "p"}, "a.jsonl:1: there is no 'output'"),
        ({"prompt": ["a", "b"], "output": ["1"]}, "a.jsonl:1: 2 turns and 1 answers"),
        ({"prompt": "p", "output": 3}, "'output' is the number 3"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "output": "o"}, "ends with the user's"),
        ({"prompt": "p", "output": "o", "id": [1]}, "'id' is a list of 1 items"),
        ({"prompt": "p", "output": "o", "references": ["a", "b"]}, "1 turns and 2 references; 'references' holds"),
        ({"prompt": "p", "output": None, "reference": ["a", "b"]}, "a.jsonl:1: 1 turns and 2 references"),
        ({"prompt": "p", "output": "o", "reference": "a", "references": ["b"]}, "reference and references differ"),
    ],
)  # fmt: skip
def test_wrong_rows_are_named(tmp_path: Path, row, message):
    with pytest.raises(RecordError, match=message):
        read_outputs(write_rows(tmp_path / "a.jsonl", [row]))


def test_references_may_stand_in_either_column(tmp_path):
    rows = [
        {"prompt": "p", "output": "o", "reference": None, "references": ["r"]},
        {"prompt": "q", "output": "o", "reference": "r", "references": ["r"]},
        {"prompt": ["a?", "b?"], "output": ["1", "2"], "references": ["", "r"]},
    ]
    found = read_outputs(write_rows(tmp_path / "a.jsonl", rows))
    assert [e.references for e in found] == [("r",), ("r",), ("", "r")]


def test_the_same_id_twice_is_an_error(tmp_path):
    rows = [{"id": 1, "prompt": "p", "output": "o"}] * 2
    with pytest.raises(RecordError, match=r"a.jsonl:2: id '1' is that of .*a.jsonl:1 as well"):
        read_outputs(write_rows(tmp_path / "a.jsonl", rows))


def of(id: str, question: str, *answers: str) -> Exchange:
    return Exchange(id, (question,), answers)


def test_files_are_joined_by_question_and_what_is_missing_is_said():
    model = [
        of("1", "p", "a"),
        of("2", "q", "b"),
        of("3", "r"),
        of("4", "s", "d"),
        of("5", "p", "e"),
    ]
    base = [
        of("4", "other", "z"),
        of("9", "t", "y"),
        of("b", "p ", "A"),
        of("c", "r", "C"),
        of("d", "p", "E"),
    ]
    joined = join_outputs(model, base)
    assert [None if c is None else c.baseline.answers for c in joined.contests] == [
        ("A",), None, None, None, ("E",),
    ]  # fmt: skip
    assert joined.remarks == [
        "",
        "the baseline has no such question",
        "there is no output",
        'the baseline\'s row of this id asks "other", this one "s"',
        "",
    ]
    assert joined.unused == ["4", "9"]


def test_files_may_be_joined_by_id():
    joined = join_outputs([of("1", "p", "a")], [of("1", "P!", "b"), of("2", "p", "c")], by="id")
    assert [c and c.baseline.answers for c in joined.contests] == [("b",)]
    assert joined.unused == ["2"]
