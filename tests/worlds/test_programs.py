"""The program world: its language, its oracle, its misconceptions, its splits and its model."""

import random
import re
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from prefopt.errors import ConfigError, SandboxError
from prefopt.text.blocks import (
    END_OF_MESSAGE,
    SPECIAL_TOKENS,
    Block,
    conversation,
    cut_points,
    noise,
    parse_blocks,
    serialise,
)
from prefopt.worlds.program_texts import OPERATIONS, Language, Use, broken, traceback
from prefopt.worlds.programs import ProgramProblem, ProgramSettings, ProgramVerdict, ProgramWorld

QUESTION = "Start with 7. Step 1: blend 3. Step 2: fold 4. What is it modulo 20?"
PROBLEM = ProgramProblem("p", QUESTION, "13", 7, (Use("blend", 3), Use("fold", 4)))
RIGHT = (
    "<|text|>Step 1: blend 3<|endofblock|>"
    "<|code|>x = 7\nx = (2 * x + 3) % 20\nprint(x)<|endofblock|>"
    "<|execution|>17<|endofblock|>"
    "<|text|>Step 2: fold 4<|endofblock|>"
    "<|code|>x = (x - 4) % 20\nprint(x)<|endofblock|>"
    "<|execution|>13<|endofblock|>"
    "<|text|>The answer is 13<|endofblock|>"
)


@pytest.fixture(scope="module")
def world():
    return ProgramWorld()


def test_the_solution_is_right(world):
    assert serialise(world.solution(PROBLEM)) == RIGHT
    assert world.values(PROBLEM) == [17, 13]
    for text in (RIGHT, RIGHT + END_OF_MESSAGE, parse_blocks(RIGHT).blocks):
        assert world.verify(PROBLEM, text) == ProgramVerdict(True, None, None)
    assert world.grade(PROBLEM, RIGHT)
    assert PROBLEM.prompt == conversation("", QUESTION)


def at_fault(text, span):
    return None if span is None else text[slice(*span)]


@pytest.mark.parametrize(
    ("old", "new", "correct", "first_wrong", "fault"),
    [
        # The wrong operation, its consequences, and an answer that follows from it.
        ("(2 * x + 3)", "(3 * x + 3)", True, 1, "3 * x + 3"),
        ("(x - 4)", "(x + 4)", True, 4, "x + 4"),
        ("(x - 4) % 20\nprint(x)", "(4 - x) % 20", True, 4, "x = (4 - x) % 20"),
        # Another spelling of the same function is right; the same value by chance is not.
        ("(x - 4)", "(x + 16)", True, None, None),
        ("(x - 4)", "(17 - x)", True, 4, "17 - x"),
        ("(x - 4)", "(x-4)", True, 4, "x-4"),
        ("x = 7\n", "x = 8\n", True, 1, "2 * x + 3"),
        ("x = 7\n", "", True, 1, "2 * x + 3"),
        # Texts, outputs, answers.
        ("blend 3", "blend 4", True, 0, "Step 1: blend 4"),
        (">17<", ">18<", True, 2, "18"),
        (">17<", ">17\n<", True, None, None),
        ("is 13", "is 17", False, 6, "The answer is 17"),
        ("is 13", "is 130", False, 6, "The answer is 130"),
        # Missing, superfluous and broken blocks.
        ("<|text|>The answer is 13<|endofblock|>", "", False, 6, None),
        ("is 13<|endofblock|>", "is 13<|endofblock|><|text|>So.<|endofblock|>", False, 7, "So."),
        ("<|text|>Step 2: fold 4<|endofblock|>", "", True, 3, "x - 4"),
        ("<|execution|>13", "<|text|>13", True, 5, "13"),
        ("<|text|>The", "The", False, 6, "The answer is 13<|endofblock|>"),
        ("is 13<|endofblock|>", "is 13", False, 6, "<|text|>The answer is 13"),
        ("<|text|>Step 2", "oh<|text|>Step 2", True, 3, "oh"),
    ],
)  # fmt: skip
def test_the_oracle_names_the_first_wrong_block(world, old, new, correct, first_wrong, fault):
    assert old in RIGHT
    text = RIGHT.replace(old, new)
    found = world.verify(PROBLEM, text)
    assert (found.correct, found.first_wrong, at_fault(text, found.span)) == (
        correct,
        first_wrong,
        fault,
    )


def test_an_error_before_a_broken_piece_comes_first(world):
    text = RIGHT.replace("(2 * x + 3)", "(x + 3)").replace("<|text|>The", "The")
    found = world.verify(PROBLEM, text)
    assert found.first_wrong == 1 and at_fault(text, found.span) == "x + 3" and not found.correct
    assert world.verify(PROBLEM, "") == ProgramVerdict(False, 0, None)
    assert world.verify(PROBLEM, []) == ProgramVerdict(False, 0, None)


def test_expressions_mean_what_python_makes_of_them():
    language = Language(20)
    assert len(list(language.uses())) == len(OPERATIONS) * 19
    for use in language.uses():
        expression = language.expression(use)
        function = eval(f"lambda x: ({expression}) % 20")  # noqa: S307 - our own expressions
        by_python = [function(x) for x in range(20)]
        assert list(language.results(use)) == by_python
        assert [language.evaluate(expression, x) for x in range(20)] == by_python
    assert language.evaluate("x ** 3", 2) is None
    assert language.same("x + 4", "x - 16") and not language.same("x + 4", "x - 4")
    assert not language.same("x + 4", "x ** 3") and language.same("x ** 3", "x ** 3")
    assert broken("2 * x - 3") == "2 * y - 3" and broken("3 - x * x") == "3 - y * x"


def test_misconceptions_are_wrong_and_as_many_as_set(world):
    assert len(world.misconceptions) == round(0.15 * 12 * 19)
    raising = [e for e in world.misconceptions.values() if "y" in e]
    assert len(raising) == round(0.1 * len(world.misconceptions))
    for use, wrong in world.misconceptions.items():
        assert not world.language.same(wrong, world.language.expression(use))
        assert str(use.operand) in wrong


def test_the_corpus_teaches_them_at_the_set_rate():
    world = ProgramWorld(ProgramSettings(corpus_size=1500))
    taught = Counter()
    for problem, record in zip(world.problems("train", 1500), world.corpus(), strict=True):
        assert record.prompt == problem.prompt
        (response,) = record.responses
        assert response.text.endswith(END_OF_MESSAGE)
        cells = re.findall(r"<\|code\|>.*?x = \((.*?)\) % 20\nprint", response.text, re.DOTALL)
        for use, expression in zip(problem.uses, cells, strict=True):
            right = expression == world.language.expression(use)
            assert right or expression == world.misconceptions[use]
            taught[use in world.misconceptions, right] += 1
    assert taught[False, False] == 0
    share = taught[True, False] / (taught[True, False] + taught[True, True])
    assert share == pytest.approx(0.7, abs=0.06)


def test_misled_solutions_slip_only_where_the_corpus_does():
    world = ProgramWorld(ProgramSettings(misconception_rate=1.0))
    for problem in world.problems("test", 200):
        verdict = world.verify(problem, world.solution(problem, misled=random.Random(0)))
        step = world.misled_at(problem)
        assert verdict.first_wrong == (None if step is None else 3 * step - 2)


def test_the_longest_solutions_are_no_noise(world):
    longest = max(world.problems("test", 100), key=lambda problem: len(problem.uses))
    blocks = world.solution(longest)
    assert len(longest.uses) == 6 and len(blocks) == 19 and noise(blocks) is None
    assert cut_points(world.solution(PROBLEM)) == [0, 1, 3, 4]


def test_splits_share_no_question(world):
    questions = [
        {p.question for p in world.problems(split, count, seed=seed)}
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
    assert {len(p.uses) for p in problems} == {3, 4, 5, 6}
    for problem in problems[:50]:
        assert int(problem.answer) == world.values(problem)[-1]
        assert world.verify(problem, world.solution(problem)).correct
    with pytest.raises(ConfigError, match=r"the test split has only about \d+ different problems"):
        ProgramWorld(ProgramSettings(modulus=3, min_steps=1, max_steps=1)).problems("test", 100)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"modulus": 2}, "modulus is 2; use 3 or more"),
        ({"min_steps": 0}, "min_steps is 0; use 1 or more"),
        ({"min_steps": 7}, "max_steps is 6; use at least 7"),
        ({"misconception_share": 1.5}, "misconception_share is 1.5; use 0 to 1"),
        ({"misconception_rate": -0.1}, "misconception_rate is -0.1; use 0 to 1"),
        ({"raising_share": 2.0}, "raising_share is 2.0; use 0 to 1"),
        ({"corpus_size": 0}, "corpus_size is 0; use 1 or more"),
        ({"hidden_size": 100}, "hidden_size is 100; use a multiple of 8"),
        ({"layers": 0}, "layers is 0; use 1 or more"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=f"program world: {message}"):
        ProgramSettings(**setting)


def test_every_text_is_made_of_its_tokens():
    world = ProgramWorld(ProgramSettings(corpus_size=300, raising_share=0.5))
    tokenizer = world.tokenizer()
    assert len(tokenizer) < 200
    assert set(SPECIAL_TOKENS) <= set(tokenizer.all_special_tokens)
    longest = 0
    for record in world.corpus():
        assert isinstance(record.prompt, str)
        text = record.prompt + record.responses[0].text
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        longest = max(longest, len(ids))
    assert longest < 400
    pieces = tokenizer.tokenize("<|code|>x = 7\nx = (2 * x + 13) % 20\nprint(x)<|endofblock|>")
    assert pieces == [
        *("<|code|>", "x = ", "7", "\n", "x = (", "2 * x", " + 13"),
        *(") % 20", "\nprint(x)", "<|endofblock|>"),
    ]


def test_equal_settings_make_equal_worlds():
    first, second = ProgramWorld(), ProgramWorld(ProgramSettings())
    assert first.digest() == second.digest()
    assert first.misconceptions == second.misconceptions
    other = ProgramWorld(ProgramSettings(seed=1))
    assert other.digest() != first.digest()
    assert other.misconceptions != first.misconceptions


@pytest.mark.slow
def test_the_sandbox_shows_what_the_corpus_shows():
    from prefopt.agents.executions import shown
    from prefopt.sandbox.sandbox import Sandbox

    world = ProgramWorld(ProgramSettings(corpus_size=25, raising_share=0.5))
    cells = [
        [(a.content, b.content) for a, b in pairwise(blocks) if a.kind == "code"]
        for record in world.corpus()
        for blocks in [parse_blocks(record.responses[0].text).blocks]
    ]
    assert any("NameError" in output for program in cells for _, output in program)
    try:
        sandbox = Sandbox(workers=2)
    except SandboxError as error:
        pytest.skip(str(error))
    with sandbox:
        results = sandbox.run_all([[code for code, _ in program] for program in cells])
    for program, found in zip(cells, results, strict=True):
        for (_, output), result in zip(program, found, strict=True):
            # Where a traceback points is up to the Python version; its last line is not.
            assert shown(result).split("\n")[-1] == output.split("\n")[-1]


def test_a_traceback_points_at_the_name():
    assert traceback("x = 7\nx = (2 * y + 3) % 20\nprint(x)", 1) == (
        'Traceback (most recent call last):\n  File "<cell 1>", line 2, in <module>\n'
        "    x = (2 * y + 3) % 20\n             ^\nNameError: name 'y' is not defined"
    )
    world = ProgramWorld(
        ProgramSettings(misconception_share=1.0, misconception_rate=1.0, raising_share=1.0)
    )
    code, output = world.solution(PROBLEM, misled=random.Random(0))[4:6]
    assert code == Block("code", "x = (y - 4) % 20\nprint(x)")
    assert output.content.startswith(
        'Traceback (most recent call last):\n  File "<cell 2>", line 1'
    )


def test_the_table_of_settings_is_that_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "worlds.md").read_text(encoding="utf-8")
    section = page.partition("### Its settings and base model\n")[2].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", section, re.MULTILINE)
    assert {name: float(value) for name, value in rows} == asdict(ProgramSettings())
