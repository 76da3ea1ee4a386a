"""Evaluations: counted from what a real model writes, and the files they leave."""

import json
import random

import pytest

from prefopt.errors import ConfigError, RecordError, StorageError
from prefopt.evals.maths import (
    Evaluation,
    Output,
    by_label,
    compare,
    count,
    evaluate,
    evaluate_all,
    read_evaluation,
    write_evaluation,
)
from prefopt.evals.outcome import Written
from prefopt.generate.base import Request, Sampling
from prefopt.generate.journal import Journal
from prefopt.generate.local import LocalGenerator
from prefopt.grade.maths import Graded
from prefopt.records import Message
from prefopt.text.problems import MathProblem
from prefopt.worlds.arithmetic import ArithmeticSettings, ArithmeticWorld

CHAT = (Message("user", "1 + 1?"),)


@pytest.fixture(scope="module")
def world():
    return ArithmeticWorld(ArithmeticSettings(min_steps=1, max_steps=2, hidden_size=32, layers=1))


@pytest.fixture(scope="module")
def generator(world):
    return LocalGenerator(world.blank_model(), world.tokenizer(), batch_size=16)


def test_what_is_counted_is_what_the_model_wrote(world, generator, tmp_path):
    problems = world.problems("test", 20)
    greedy = Sampling(max_new_tokens=6, purpose="evaluation")
    requests = [Request(p.id, 0, p.prompt) for p in problems]
    written = {c.id: c for c in generator.generate(requests, greedy)}
    graded = []

    def grade(problem, text):
        graded.append((problem.id, text))
        return len(graded) % 4 == 0

    seen = []
    report = lambda done, total: seen.append((done, total))  # noqa: E731
    with Journal(tmp_path / "j.sqlite") as journal:
        found = evaluate(
            generator,
            problems,
            grade,
            sampling=greedy,
            journal=journal,
            progress=report,
            name="base",
        )
        assert journal.count() == 20
    assert graded == [(p.id, written[p.id].text) for p in problems]
    assert (found.name, found.correct, found.total, found.value) == ("base", 5, 20, 0.25)
    # Wilson by hand: (0.34604 - 0.21269) / 1.19207 and (0.34604 + 0.21269) / 1.19207.
    assert (found.low, found.high) == pytest.approx((0.11186, 0.46870), abs=2e-5)
    assert found.outputs[3] == Output(
        problems[3].id,
        problems[3].prompt,
        problems[3].answer,
        written[problems[3].id].text,
        correct=True,
        finish_reason=written[problems[3].id].finish_reason,
        tokens=written[problems[3].id].tokens,
        cut_by="tokens",
    )
    assert seen[0] == (0, 20) and seen[-1] == (20, 20)


def test_no_problems_no_claim(generator):
    found = evaluate(generator, [], lambda problem, text: True)
    assert (found.correct, found.total, found.value, found.low, found.high) == (0, 0, 0.0, 0.0, 1.0)


def test_repeated_ids_are_refused(world, generator):
    problem = world.problems("test", 1)[0]
    with pytest.raises(RecordError, match=f"record '{problem.id}': sample 0 is asked for twice"):
        evaluate(generator, [problem, problem], world.grade)


def evaluation(name, marks, prompt: str | tuple[Message, ...] = "1 + 1?"):
    outputs = tuple(
        Output(f"p{i}", prompt, "2", f"text {i}\né", mark == "+") for i, mark in enumerate(marks)
    )
    correct = marks.count("+")
    return Evaluation(name, correct, len(marks), correct / len(marks), 0.1, 0.9, outputs)


def test_files_are_those_of_a_run_folder(tmp_path):
    write_evaluation(evaluation("dpo", "+-+"), tmp_path / "run")
    write_evaluation(evaluation("dpo", "++-", CHAT), tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert facts == {
        "name": "dpo",
        "metric": "accuracy",
        "correct": 2,
        "total": 3,
        "value": 2 / 3,
        "low": 0.1,
        "high": 0.9,
        "split": "test",
        "unanswered": 0,
        "cut": 0,
        "failed": 0,
        "reasons": {},
    }
    lines = (tmp_path / "run" / "evaluation-outputs.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines][1] == {
        "id": "p1",
        "prompt": [{"role": "user", "content": "1 + 1?"}],
        "answer": "2",
        "prefix": "",
        "output": "text 1\né",
        "extracted": None,
        "reason": "",
        "correct": True,
        "finish_reason": "stop",
        "tokens": 0,
    }
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "evaluation-outputs.jsonl",
        "evaluation.json",
    ]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_evaluation(evaluation("dpo", "+"), tmp_path / "file")


def test_comparison_counts_the_problems_that_changed():
    found = compare(evaluation("base", "++--------"), evaluation("dpo", "-+++++++--"))
    assert (found.gained, found.lost) == (6, 1)
    assert found.p == 0.125
    assert found.difference.value == pytest.approx(0.5)
    assert found.difference.low < 0.5 < found.difference.high <= 0.9


def test_comparison_pairs_by_id_not_by_place():
    first, second = evaluation("a", "+-+-"), evaluation("b", "+-+-")
    mixed = list(second.outputs)
    random.Random(0).shuffle(mixed)
    assert compare(first, second._replace(outputs=tuple(mixed)))[:3] == (0, 0, 1.0)


def test_comparison_needs_the_same_problems():
    message = "base and dpo share 2 of their 2 and 3 problems; evaluate both on the same ones"
    with pytest.raises(ConfigError, match=message):
        compare(evaluation("base", "+-"), evaluation("dpo", "+-+"))


def problem(number, answer="2", *, prefix="", kind="", level=None):
    meta = {} if level is None else {"level": level}
    return MathProblem(f"p{number}", "1 + 1?", answer, "1 + 1?", prefix, kind=kind, meta=meta)


def test_prefixes_are_given_to_the_model_and_graded_with_its_text(world, generator):
    item = world.problems("test", 1)[0]
    prompt, prefix = item.prompt, "Step 1:"
    sampling = Sampling(max_new_tokens=4, purpose="evaluation")
    asked = next(iter(generator.generate([Request("a", 0, prompt, prefix=prefix)], sampling)))
    seen = []

    def grade_all(pairs):
        seen.extend(text for _, text in pairs)
        return [Graded(correct=True, extracted="2", reason="equal")]

    found = evaluate_all(
        generator, [MathProblem("a", "q", "2", prompt, prefix)], grade_all, sampling=sampling
    )
    assert seen == [prefix + asked.text]
    assert found.outputs[0][4:8] == (True, prefix, "2", "equal")


def test_refused_texts_are_wrong_and_not_graded(tmp_path):
    problems = [problem(i, kind="Algebra", level=f"Level {i % 2}") for i in range(3)]
    written = [
        Written("2", "2", "stop"),
        Written("too long", "", "error"),
        Written("x", "x", "length", 3, "context"),
    ]

    def grade_all(pairs):
        assert [text for _, text in pairs] == ["2", "x"]
        return [
            Graded(correct=True, extracted="2", reason="equal"),
            Graded(False, None, "no answer"),
        ]

    found = count(problems, written, grade_all, name="m")
    assert (found.correct, found.total, found.unanswered, found.cut, found.failed) == (
        1,
        3,
        1,
        1,
        1,
    )
    assert [o.reason for o in found.outputs] == ["equal", "no solution", "no answer"]
    groups = by_label(found.outputs)
    assert groups["level"]["Level 0"][:3] == (1, 2, 0.5) and groups["type"]["Algebra"].total == 3
    write_evaluation(found, tmp_path)
    assert read_evaluation(tmp_path) == found
    with pytest.raises(ValueError, match="the grader gave 0 verdicts on 2 texts"):
        count(problems, written, lambda pairs: [], name="m")


def test_comparison_needs_the_same_right_answers():
    first = evaluation("a", "+")
    other = first._replace(outputs=(first.outputs[0]._replace(answer="3"),))
    with pytest.raises(ConfigError, match="differ in the right answer to 'p0'"):
        compare(first, other)
