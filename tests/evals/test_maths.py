"""Evaluations: counted from what a real model writes, and the files they leave."""

import json
import random

import pytest

from prefopt.errors import ConfigError, RecordError, StorageError
from prefopt.evals.maths import Evaluation, Output, compare, evaluate, write_evaluation
from prefopt.generate.base import Request, Sampling
from prefopt.generate.journal import Journal
from prefopt.generate.local import LocalGenerator
from prefopt.records import Message
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
    written = {c.id: c.text for c in generator.generate(requests, greedy)}
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
    assert graded == [(p.id, written[p.id]) for p in problems]
    assert (found.name, found.correct, found.total, found.value) == ("base", 5, 20, 0.25)
    # Wilson by hand: (0.34604 - 0.21269) / 1.19207 and (0.34604 + 0.21269) / 1.19207.
    assert (found.low, found.high) == pytest.approx((0.11186, 0.46870), abs=2e-5)
    assert found.outputs[3] == Output(
        problems[3].id,
        problems[3].prompt,
        problems[3].answer,
        written[problems[3].id],
        correct=True,
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
    }
    lines = (tmp_path / "run" / "evaluation-outputs.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines][1] == {
        "id": "p1",
        "prompt": [{"role": "user", "content": "1 + 1?"}],
        "answer": "2",
        "output": "text 1\né",
        "correct": True,
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
