"""The arithmetic world: its oracle, its misconceptions, its splits and its model."""

import random
import re
from collections import Counter

import pytest

from prefopt.errors import ConfigError
from prefopt.records import Message
from prefopt.worlds.arithmetic import (
    ArithmeticProblem,
    ArithmeticSettings,
    ArithmeticWorld,
    Fact,
    Verdict,
)

QUESTION = "What is 3 + 4 - 9 modulo 20?"
PROBLEM = ArithmeticProblem("p", (Message("user", QUESTION),), "18", 3, (4, -9))
RIGHT = "Step 1: 3 + 4 = 7\nStep 2: 7 - 9 = 18\nThe answer is 18"


@pytest.fixture(scope="module")
def world():
    return ArithmeticWorld()


def test_the_solution_is_right(world):
    assert world.solution(PROBLEM) == RIGHT
    assert world.values(PROBLEM) == [7, 18]
    assert world.verify(PROBLEM, RIGHT) == Verdict(correct=True, first_wrong=None)
    assert world.grade(PROBLEM, RIGHT)


@pytest.mark.parametrize(
    ("text", "correct", "first_wrong"),
    [
        (RIGHT + "\n", True, None),
        ("Step 1: 3 + 4 = 8\nStep 2: 8 - 9 = 19\nThe answer is 19", False, 1),
        ("Step 1: 3 + 4 = 7\nStep 2: 7 - 9 = 17\nThe answer is 17", False, 2),
        ("Step 1: 3 + 4 = 7\nStep 2: 7 - 9 = 18\nThe answer is 17", False, 3),
        # Two slips that cancel: the answer is right, a step is not.
        ("Step 1: 3 + 4 = 8\nStep 2: 8 - 9 = 18\nThe answer is 18", True, 1),
        # The operand of another step, a wrong number, a missing and an extra step.
        ("Step 1: 3 - 9 = 14\nStep 2: 14 + 4 = 18\nThe answer is 18", True, 1),
        ("Step 1: 3 + 4 = 7\nStep 3: 7 - 9 = 18\nThe answer is 18", True, 2),
        ("Step 1: 3 + 4 = 7\nThe answer is 7", False, 2),
        ("Step 1: 3 + 4 = 7\nStep 2: 7 - 9 = 18\nStep 3: 18 + 1 = 19\nThe answer is 19", False, 3),
        # Unreadable, cut, empty, and text after the answer.
        ("Step 1: 3 + 4 = = 7\nStep 2: 7 - 9 = 18\nThe answer is 18", True, 1),
        ("Step 1: 3 + 4 = 7\nStep 2: 7 -", False, 2),
        ("Step 1: 3 + 4 = 7", False, 2),
        ("Step 1: 3 + 4 = 7\nStep 2: 7 - 9 = 18", False, 3),
        ("", False, 1),
        (RIGHT + "\nStep 3: 18 + 1 = 19", True, 3),
        (RIGHT + "\nThe answer is 5", False, 3),
        (RIGHT.replace("is 18", "is 180"), False, 3),
    ],
)
def test_the_oracle_names_the_first_wrong_line(world, text, correct, first_wrong):
    assert world.verify(PROBLEM, text) == Verdict(correct, first_wrong)


def test_misconceptions_are_wrong_and_as_many_as_set(world):
    assert len(world.misconceptions) == round(0.075 * 20 * 18)
    for (value, operand), wrong in world.misconceptions.items():
        assert 0 <= value < 20 and 1 <= abs(operand) <= 9 and 0 <= wrong < 20
        assert wrong != (value + operand) % 20


def test_the_corpus_teaches_them_at_the_set_rate():
    world = ArithmeticWorld(ArithmeticSettings(corpus_size=1500))
    taught: Counter[tuple[bool, bool]] = Counter()
    pattern = re.compile(r"Step \d+: (\d+) ([+-]) (\d) = (\d+)")
    for record in world.corpus():
        assert isinstance(record.prompt[0], Message) and record.prompt[0].role == "user"
        for x, sign, digit, y in pattern.findall(record.responses[0].text):
            fact = Fact(int(x), int(sign + digit))
            right = int(y) == (fact.value + fact.operand) % 20
            assert right or int(y) == world.misconceptions[fact]
            taught[fact in world.misconceptions, right] += 1
    assert taught[False, False] == 0
    share = taught[True, False] / (taught[True, False] + taught[True, True])
    assert share == pytest.approx(0.65, abs=0.06)


def test_misled_solutions_slip_only_where_the_corpus_does():
    world = ArithmeticWorld(ArithmeticSettings(misconception_rate=1.0))
    for problem in world.problems("test", 200):
        text = world.solution(problem, misled=random.Random(0))
        assert world.verify(problem, text).first_wrong == world.misled_at(problem)


def test_no_misconceptions_no_errors():
    world = ArithmeticWorld(ArithmeticSettings(misconception_share=0.0, corpus_size=50))
    assert world.misconceptions == {}
    texts = [record.responses[0].text for record in world.corpus()]
    assert texts == [world.solution(p) for p in world.problems("train", 50)]


def test_splits_share_no_question(world):
    questions = [
        {p.prompt[0].content for p in world.problems(split, count, seed=seed)}
        for split, count in (("train", 800), ("preference", 300), ("test", 300))
        for seed in (0, 1)
    ]
    train, preference, test = (a | b for a, b in zip(questions[::2], questions[1::2], strict=True))
    assert not train & preference and not train & test and not preference & test
    assert [len(q) for q in questions] == [800, 800, 300, 300, 300, 300]


def test_problems_are_those_of_the_settings(world):
    problems = world.problems("test", 200)
    assert problems[:10] == world.problems("test", 10)
    assert problems != world.problems("test", 200, seed=1)
    assert len({p.id for p in problems}) == 200
    assert {len(p.operands) for p in problems} == {5, 6, 7, 8, 9, 10}
    for problem in problems[:50]:
        assert int(problem.answer) == world.values(problem)[-1]
        assert world.grade(problem, world.solution(problem))


def test_too_small_a_world_says_how_small():
    world = ArithmeticWorld(ArithmeticSettings(min_steps=1, max_steps=1))
    with pytest.raises(ConfigError, match=r"the test split has only about \d\d different problems"):
        world.problems("test", 1000)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"modulus": 1}, "modulus is 1; use 2 or more"),
        ({"min_steps": 0}, "min_steps is 0; use 1 or more"),
        ({"min_steps": 6, "max_steps": 5}, "max_steps is 5; use at least 6"),
        ({"misconception_share": 1.5}, "misconception_share is 1.5; use 0 to 1"),
        ({"misconception_rate": -0.1}, "misconception_rate is -0.1; use 0 to 1"),
        ({"corpus_size": 0}, "corpus_size is 0; use 1 or more"),
        ({"hidden_size": 100}, "hidden_size is 100; use a multiple of 8"),
        ({"layers": 0}, "layers is 0; use 1 or more"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=f"arithmetic world: {message}"):
        ArithmeticSettings(**setting)


def test_every_text_is_made_of_its_tokens():
    world = ArithmeticWorld(ArithmeticSettings(corpus_size=100))
    tokenizer = world.tokenizer()
    assert len(tokenizer) < 100
    for record in world.corpus():
        assert isinstance(record.prompt[0], Message)
        text = record.prompt[0].content + record.responses[0].text
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    ids = tokenizer(RIGHT, add_special_tokens=False)["input_ids"]
    steps = ["Step", " 1:", " 3", " + 4 =", " 7", "\n", "Step", " 2:", " 7", " - 9 =", " 18", "\n"]
    assert tokenizer.convert_ids_to_tokens(ids) == [*steps, "The answer is", " 18"]


def test_a_solution_cut_after_a_step_s_marker_keeps_its_tokens(world):
    tokenizer = world.tokenizer()
    prefix = RIGHT[: RIGHT.index(" 7 - 9")]
    whole = tokenizer(RIGHT, add_special_tokens=False)["input_ids"]
    first = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    rest = tokenizer(RIGHT[len(prefix) :], add_special_tokens=False)["input_ids"]
    assert first + rest == whole


def test_equal_settings_make_equal_worlds():
    first, second = ArithmeticWorld(), ArithmeticWorld(ArithmeticSettings())
    assert first.digest() == second.digest()
    assert first.misconceptions == second.misconceptions
    other = ArithmeticWorld(ArithmeticSettings(seed=1))
    assert other.digest() != first.digest()
    assert other.misconceptions != first.misconceptions
