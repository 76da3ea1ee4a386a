"""The Step-DPO pipeline on a generator whose texts are known, and the identities of its loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from prefopt.generate.base import Completion, Request, Sampling
from prefopt.generate.journal import Journal
from prefopt.methods.step_dpo import StepSettings, build_step_pairs
from prefopt.records import Pair
from prefopt.worlds.arithmetic import ArithmeticProblem, ArithmeticWorld

WORLD = ArithmeticWorld()


class Task(NamedTuple):
    id: str
    prompt: str
    answer: str


TASK = Task("t", "What is 1 + 2 + 3?", "6")
WRONG = "Step 1: 1 + 2 = 3\nStep 2: 3 + 3 = 7\nThe answer is 7"


class Scripted:
    """Writes the texts it was given, by (record id, sample); a generator whose output is known."""

    identity = "scripted"

    def __init__(
        self, texts: dict[tuple[str, int], str], cut: frozenset[str] = frozenset()
    ) -> None:
        self.texts, self.cut = texts, cut
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        for r in requests:
            self.asked.append(r)
            text = self.texts[r.id, r.sample]
            yield Completion(r.id, r.sample, text, "length" if text in self.cut else "stop", 1)


def is_correct(task: Task, text: str) -> bool:
    return text.rsplit("The answer is ", 1)[-1].strip() == task.answer


def second(task: Task, text: str) -> int | None:
    del task, text
    return 2


def build(texts: dict[tuple[str, int], str], **settings: int | None):
    options = {"samples": 1, "corrections": 4, **settings}
    generator = Scripted(texts)
    data = build_step_pairs(
        [TASK], generator, is_correct=is_correct, first_wrong_step=second,
        settings=StepSettings(**options),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return data, generator


CORRECTIONS = {
    ("t/0", 0): " 3 + 3 = 6\nThe answer is 6",
    ("t/0", 1): " 3 + 3 = 7\nStep 3: 7 - 1 = 6\nThe answer is 6",
    ("t/0", 2): " 3 + 3 = 6\nThe answer is 6",
    ("t/0", 3): " 3+3 is 6\nThe answer is 5",
}


def test_step_and_solution_records_of_one_error() -> None:
    data, generator = build({("t", 0): WRONG, **CORRECTIONS})
    (step,) = data.steps
    assert step.prefix == "Step 1: 1 + 2 = 3\nStep 2:"
    assert [r.text for r in step.responses] == [
        " 3 + 3 = 7\nThe answer is 7",
        " 3 + 3 = 6\nThe answer is 6",
    ]
    assert not any(r.ends for r in step.responses), "a step gets no end token"
    assert step.pairs == (Pair(chosen=1, rejected=0),)
    assert step.meta == {"answer": "6", "step": 2}
    (whole,) = data.solutions
    assert [r.text for r in whole.responses] == [
        WRONG,
        "Step 1: 1 + 2 = 3\nStep 2: 3 + 3 = 6\nThe answer is 6",
    ]
    assert all(r.ends for r in whole.responses)
    assert {r.prefix for r in generator.asked[1:]} == {step.prefix}


def test_a_correction_that_repeats_the_wrong_step_is_no_pair() -> None:
    """Its loss would be ln 2 with gradient 0 (sheet B6)."""
    repeat = CORRECTIONS["t/0", 1]
    data, _ = build({("t", 0): WRONG, **{("t/0", i): repeat for i in range(4)}})
    # The wrong step was the last one and carries the answer line; the computation in it is the same.
    assert data.counts["corrections right"] == 4
    assert data.steps == []
    middle = "Step 1: 1 + 2 = 3\nStep 2: 3 + 3 = 7\nStep 3: 7 + 0 = 7\nThe answer is 7"
    data, _ = build({("t", 0): middle, **{("t/0", i): repeat for i in range(4)}})
    assert data.steps == []
    assert data.counts["errors whose corrections repeat the wrong step"] == 1


def test_distinct_corrections_stay_in_the_order_they_were_sampled() -> None:
    """Sheet P6: as many pairs as distinct first steps."""
    texts = [
        " a\nThe answer is 6",
        " b\nThe answer is 6",
        " a\nThe answer is 6",
        " c\nThe answer is 6",
    ]
    middle = WRONG.replace("\nThe answer is 7", "\nStep 3: 7 = 7\nThe answer is 7")
    data, _ = build({("t", 0): middle, **{("t/0", i): t for i, t in enumerate(texts)}})
    assert [r.text for r in data.steps[0].responses[1:]] == texts[:2] + texts[3:]
    assert len(data.steps[0].pairs) == len(data.solutions[0].pairs) == 3
    data, _ = build(
        {("t", 0): middle, **{("t/0", i): t for i, t in enumerate(texts)}}, pairs_per_error=1
    )
    assert [r.text for r in data.steps[0].responses[1:]] == texts[:1]


def test_the_fate_of_every_solution_is_counted() -> None:
    texts = {("t", 0): "Step 1: cut", ("t", 1): "The answer is 6", ("t", 2): "no steps", ("t", 3): WRONG,
             ("t", 4): WRONG}  # fmt: skip
    generator = Scripted(
        {**texts, **{("t/3", i): "The answer is 0" for i in range(2)}}, frozenset({"Step 1: cut"})
    )
    counts = build_step_pairs(
        [TASK], generator, is_correct=is_correct, first_wrong_step=second,
        settings=StepSettings(samples=5, corrections=2),
    ).counts  # fmt: skip
    assert counts == {
        "problems": 1,
        "solutions sampled": 5,
        "solutions cut at the token limit": 1,
        "solutions wrong": 3,
        "errors not located at a step": 1,
        "errors beyond the limit per problem": 1,
        "errors located": 1,
        "corrections sampled": 2,
        "corrections right": 0,
        "errors without a right correction": 1,
    }


def test_a_second_run_asks_for_nothing_again(tmp_path: Path) -> None:
    texts = {("t", 0): WRONG, **CORRECTIONS}
    results = []
    for _ in range(2):
        generator = Scripted(texts)
        with Journal(tmp_path / "j.sqlite") as journal:
            data = build_step_pairs(
                [TASK], generator, is_correct=is_correct, first_wrong_step=second,
                settings=StepSettings(samples=1, corrections=4), journal=journal,
            )  # fmt: skip
        results.append((data.steps, len(generator.asked)))
    assert [asked for _, asked in results] == [5, 0]
    assert results[0][0] == results[1][0]


def test_first_errors_of_the_world_are_cut_where_the_oracle_says() -> None:
    """Every misled solution is cut at its first misconception, and the right step is accepted."""
    problems = [p for p in WORLD.problems("preference", 60) if WORLD.misled_at(p)]
    texts: dict[tuple[str, int], str] = {}
    for p in problems:
        step = WORLD.misled_at(p)
        assert step is not None
        right = WORLD.solution(p).split(f"Step {step}:", 1)
        fact = right[1].split("\n", 1)
        wrong = right[0] + f"Step {step}: {fact[0].split('=')[0].strip()} = 99\n" + fact[1]
        texts[p.id, 0], texts[f"{p.id}/0", 0] = (
            wrong.replace("The answer is", "The answer was"),
            right[1],
        )

    def grade(problem: ArithmeticProblem, text: str) -> bool:
        return WORLD.verify(problem, text).correct

    def locate(problem: ArithmeticProblem, text: str) -> int | None:
        return WORLD.verify(problem, text).first_wrong

    data = build_step_pairs(
        problems, Scripted(texts), is_correct=grade, first_wrong_step=locate,
        settings=StepSettings(samples=1, corrections=1),
    )  # fmt: skip
    assert len(data.steps) == len(problems) > 10
    for record, problem in zip(data.steps, problems, strict=True):
        step = WORLD.misled_at(problem)
        assert record.meta["step"] == step
        assert record.prefix.endswith(f"Step {step}:")
        assert WORLD.solution(problem).startswith(record.prefix + record.responses[1].text)


@pytest.mark.parametrize("key", ["beta"])
def test_own_parameters(key: str) -> None:
    from prefopt.methods.step_dpo import METHOD

    assert METHOD.config.model_fields[key].default == 0.5
