"""Step-Controlled DPO for solutions whose code really runs: a scripted model, a real interpreter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from prefopt.build.controlled_code import (
    ControlledCodeSettings,
    ControlledData,
    build_controlled_code_pairs,
)
from prefopt.build.grading import one_by_one
from prefopt.generate.base import Completion, Request, Sampling
from prefopt.generate.journal import Journal
from prefopt.sandbox.base import Limits
from prefopt.sandbox.isolation import isolation
from prefopt.sandbox.sandbox import Sandbox
from prefopt.text.blocks import conversation

ISOLATED = isolation().works
pytestmark = pytest.mark.skipif(not ISOLATED, reason="no isolation of code on this machine")

END = "<|endofblock|>"
CLOSE = "<|endofmessage|>"


class Task(NamedTuple):
    id: str
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        return conversation("", self.question)


TASK = Task("t", "What is 2 * 3 + 1?", "7")
PLAN = f"<|text|>Multiply.{END}"
FIRST = f"<|code|>x = 2 * 3\nprint(x){END}"
SIX = f"<|execution|>6{END}"
THEN = f"<|text|>Add one.{END}"
SECOND = f"<|code|>print(x + 1){END}"
SEVEN = f"<|execution|>7{END}"
RIGHT = PLAN + FIRST + SIX + THEN + SECOND + SEVEN + f"<|text|>7{END}{CLOSE}"
WRONG = f"<|text|>Guess.{END}<|text|>8{END}{CLOSE}"
BLUNDER = f"<|code|>print(x + 2){END}"
"""Uses the variable of the front: only where the front's code ran again does it print 8."""
EIGHT = f"<|execution|>8{END}"
HOT = BLUNDER + EIGHT + f"<|text|>8{END}{CLOSE}"


class Model:
    """Knows whole solutions by (request id, sample) and writes the next block; executions must be as it expects."""

    identity = "model"

    def __init__(self, texts: Mapping[tuple[str, int], str]) -> None:
        self.texts = texts
        self.asked: list[tuple[Request, Sampling]] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        for request in requests:
            self.asked.append((request, sampling))
            whole = self.texts[request.id, request.sample]
            assert whole.startswith(request.prefix), (whole, request.prefix)
            rest = whole[len(request.prefix) :]
            if rest == CLOSE or not rest:
                yield Completion(request.id, request.sample, "", "stop", 1, CLOSE if rest else None)
                continue
            block = rest.split(END, 1)[0]
            yield Completion(request.id, request.sample, block, "stop", 1, END)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(Limits(), workers=1) as opened:
        yield opened


TEXTS = {
    ("t", 0): RIGHT,
    ("t", 1): WRONG,
    ("t/1", 0): PLAN + f"<|text|>It is 9{END}{CLOSE}",
    ("t/3", 0): PLAN + FIRST + SIX + HOT,
    ("t/4", 0): PLAN + FIRST + SIX + THEN + HOT,
}


def build(
    model: Model, sandbox: Sandbox, *, journal: Journal | None = None, **options: object
) -> ControlledData:
    values: dict[str, object] = {"samples": 2, "attempts": 1, "per_question": None, **options}
    settings = ControlledCodeSettings(**values)  # pyright: ignore[reportArgumentType]
    return build_controlled_code_pairs(
        [TASK], model, sandbox, settings=settings, journal=journal,
        grade=one_by_one(lambda task, text: text.strip() == task.answer),
    )  # fmt: skip


def test_p1_p8_cut_points_replay_and_records(sandbox: Sandbox) -> None:
    model = Model(TEXTS)
    data = build(model, sandbox)
    (naive,) = data.naive
    assert naive.prompt == conversation("", TASK.question)
    assert [r.text for r in naive.responses] == [RIGHT, WRONG]
    assert [p.meta["start_steps"] for p in data.controlled] == [1, 3, 4]
    assert [p.prefix for p in data.controlled] == [
        PLAN,
        PLAN + FIRST + SIX,
        PLAN + FIRST + SIX + THEN,
    ]
    for pair in data.controlled:
        assert pair.prefix + pair.responses[0].text == RIGHT
        assert pair.prefix + pair.responses[1].text == TEXTS[f"t/{pair.meta['start_steps']}", 0]
    assert data.controlled[1].responses[1].text == HOT, "the front's variable was there"
    assert data.counts["cut points"] == 3


def test_p3_every_call_is_hotter_and_execution_does_not_count(sandbox: Sandbox) -> None:
    model = Model(TEXTS)
    build(model, sandbox)
    hot = [s.temperature for r, s in model.asked if r.id == "t/3"]
    assert hot[:2] == [1.1, 1.2]
    assert {s.temperature for r, s in model.asked if r.id == "t"} == {1.0}


def test_whole_solutions_written_anew(sandbox: Sandbox) -> None:
    texts = {**TEXTS, ("t/0", 0): WRONG.replace("Guess", "Hot")}
    data = build(Model(texts), sandbox, start_zero="controlled")
    zero = data.controlled[0]
    assert (zero.prefix, zero.meta["start_steps"]) == ("", 0)
    assert [r.text for r in zero.responses] == [RIGHT, texts["t/0", 0]]


def test_p4_right_tails_are_written_again(sandbox: Sandbox) -> None:
    again = PLAN + f"<|text|>Easy.{END}<|text|>7{END}{CLOSE}"
    texts = {**TEXTS, ("t/1", 0): again, ("t/1", 1): TEXTS["t/1", 0]}
    data = build(Model(texts), sandbox, attempts=2)
    assert [p.meta["attempt"] for p in data.controlled] == [1, 0, 0]
    assert data.counts["tails right"] == 1


def test_p5_noisy_tails_are_left_out(sandbox: Sandbox) -> None:
    long = PLAN + f"<|text|>{'x' * 3001}{END}<|text|>9{END}{CLOSE}"
    many = PLAN + FIRST + SIX + f"<|text|>so{END}" * 22 + f"<|text|>9{END}{CLOSE}"
    data = build(Model({**TEXTS, ("t/1", 0): long, ("t/3", 0): many}), sandbox)
    assert [p.meta["start_steps"] for p in data.controlled] == [4]
    noisy = {k: n for k, n in data.counts.items() if "noisy" in k}
    assert noisy == {
        "tails left out as noisy: a block of more than 3000 characters": 1,
        "tails left out as noisy: more than 24 messages": 1,
    }
    kept = build(Model({**TEXTS, ("t/1", 0): long}), sandbox, drop_noisy=False)
    assert len(kept.controlled) == 3


def test_p5_made_up_interpreter_output_is_no_negative(sandbox: Sandbox) -> None:
    made_up = PLAN + f"<|execution|>9{END}<|text|>9{END}{CLOSE}"
    data = build(Model({**TEXTS, ("t/1", 0): made_up}), sandbox)
    assert data.counts["tails that failed"] == 1
    assert [p.meta["start_steps"] for p in data.controlled] == [3, 4]


def test_p6_p7_apologies_and_similar_solutions(sandbox: Sandbox) -> None:
    sorry = RIGHT.replace("Add one.", "Apologies: add one.")
    texts = {
        **TEXTS,
        ("t", 0): sorry,
        ("t", 2): RIGHT,
        ("t", 3): RIGHT.replace("Add one", "Plus one"),
    }
    data = build(Model(texts), sandbox, samples=4)
    assert data.naive[0].id == "t/naive/2-1"
    assert data.counts["right solutions with an apology or error left out"] == 1
    assert data.counts["solutions repeated"] == 1
    both = build(Model(texts), sandbox, samples=4, drop_similar=False, naive_correct=2)
    assert [r.id for r in both.naive] == ["t/naive/2-1", "t/naive/3-1"]


def test_b3_unfinished_attempts_are_no_wrong_solutions_unless_asked(sandbox: Sandbox) -> None:
    texts = {**TEXTS, ("t", 1): f"<|text|>so{END}" * 9}
    data = build(Model(texts), sandbox, max_calls=6)
    assert (data.naive, data.counts["solutions that never ended"]) == ([], 1)
    data = build(Model(texts), sandbox, max_calls=6, count_failures_as_wrong=True)
    assert data.naive[0].responses[1].text == f"<|text|>so{END}" * 6
    assert data.naive[0].responses[1].ends is False


def test_a_wrong_solution_of_one_block_makes_no_pair(sandbox: Sandbox) -> None:
    data = build(Model({**TEXTS, ("t", 1): f"<|text|>8{END}{CLOSE}"}), sandbox)
    assert data.naive == []
    assert data.counts["wrong solutions of a single block left out"] == 1


def test_a_second_build_samples_and_runs_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    first, second = Model(TEXTS), Model(TEXTS)
    with Journal(tmp_path / "j.sqlite") as journal:
        data = build(first, sandbox, journal=journal)
        rows = journal.count()
        again = build(second, sandbox, journal=journal)
        assert journal.count() == rows
    assert again == data
    assert (len(second.asked), len(first.asked) > 0) == (0, True)
