"""The Step-DPO pipeline on a generator whose texts are known, and the identities of its loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from prefopt.build.grading import one_by_one
from prefopt.build.released import released_rows
from prefopt.build.rules import CORRECTED, OFFICIAL, StepRules
from prefopt.build.steps import StepSettings, build_step_pairs, problem_id
from prefopt.generate.base import Completion, Request, Sampling
from prefopt.generate.journal import Journal
from prefopt.judge.base import Location, WrongSolution
from prefopt.judge.oracle import OracleLocator
from prefopt.records import Pair
from prefopt.text.problems import MathProblem, Problem
from prefopt.worlds.arithmetic import ArithmeticWorld

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
        self,
        texts: dict[tuple[str, int], str],
        cut: frozenset[str] = frozenset(),
        refused: frozenset[str] = frozenset(),
    ) -> None:
        self.texts, self.cut, self.refused = texts, cut, refused
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        for r in requests:
            self.asked.append(r)
            text = self.texts[r.id, r.sample]
            reason = "error" if text in self.refused else "length" if text in self.cut else "stop"
            yield Completion(r.id, r.sample, text, reason, 1)


def is_correct(task: Problem, text: str) -> bool:
    return text.rsplit("The answer is ", 1)[-1].strip() == task.answer


SECOND = OracleLocator(lambda solution: 2)
GRADE = one_by_one(is_correct)


def build(texts: dict[tuple[str, int], str], **settings: object):
    options: dict[str, object] = {"samples": 1, "corrections": 4, **settings}
    generator = Scripted(texts)
    data = build_step_pairs(
        [TASK], generator, grade=GRADE, locator=SECOND,
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
    assert step.meta == {
        "answer": "6",
        "step": 2,
        "problem": "t",
        "full_rejected": WRONG,
        "full_chosen": ["Step 1: 1 + 2 = 3\nStep 2: 3 + 3 = 6\nThe answer is 6"],
    }
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
        [TASK], generator, grade=GRADE, locator=SECOND,
        settings=StepSettings(samples=5, corrections=2),
    ).counts  # fmt: skip
    assert counts == {
        "problems": 1,
        "solutions sampled": 5,
        "solutions cut at the token limit": 1,
        "solutions wrong": 3,
        "errors placed at a step that is not there": 1,
        "errors beyond the limit per problem": 1,
        "errors located": 1,
        "corrections sampled": 2,
        "corrections right": 0,
        "corrections cut or refused": 0,
        "errors without a right correction": 1,
        "errors corrected": 0,
        "pairs": 0,
    }


def test_a_second_run_asks_for_nothing_again(tmp_path: Path) -> None:
    texts = {("t", 0): WRONG, **CORRECTIONS}
    results = []
    for _ in range(2):
        generator = Scripted(texts)
        with Journal(tmp_path / "j.sqlite") as journal:
            data = build_step_pairs(
                [TASK], generator, grade=GRADE, locator=SECOND,
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

    by_id = {p.id: p for p in problems}

    def locate(solution: WrongSolution) -> int | None:
        return WORLD.verify(by_id[problem_id(solution)], solution.text).first_wrong

    data = build_step_pairs(
        problems, Scripted(texts), grade=one_by_one(WORLD.grade), locator=OracleLocator(locate),
        settings=StepSettings(samples=1, corrections=1),
    )  # fmt: skip
    assert len(data.steps) == len(problems) > 10
    for record, problem in zip(data.steps, problems, strict=True):
        step = WORLD.misled_at(problem)
        assert record.meta["step"] == step
        assert record.prefix.endswith(f"Step {step}:")
        assert WORLD.solution(problem).startswith(record.prefix + record.responses[1].text)


MIDDLE = "Step 1: 1 + 2 = 3\nStep 2: 3 + 3 = 7\nStep 3: 7 = 7\nThe answer is 7"


def test_the_limit_per_problem_and_its_published_form() -> None:
    """B3: the published limit is compared before it is counted, so one more error is taken."""
    texts = {("t", i): MIDDLE for i in range(3)}
    texts |= {(f"t/{i}", 0): " 3 + 3 = 6\nThe answer is 6" for i in range(3)}
    ours, _ = build(texts, samples=3, corrections=1)
    assert [r.id for r in ours.steps] == ["t/0"]
    published, _ = build(texts, samples=3, corrections=1, rules=OFFICIAL)
    assert [r.id for r in published.steps] == ["t/0", "t/1"]
    assert published.counts["errors beyond the limit per problem"] == 1


def test_an_error_that_cannot_be_placed_uses_up_the_published_limit() -> None:
    """B3: there the limit counts what was judged; here it counts what was placed."""
    texts = {("t", i): "no steps" for i in range(2)} | {("t", i): MIDDLE for i in range(2, 4)}
    texts |= {(f"t/{i}", 0): " 3 + 3 = 6\nThe answer is 6" for i in range(4)}
    ours, _ = build(texts, samples=4, corrections=1)
    assert [r.id for r in ours.steps] == ["t/2"]
    assert ours.counts["errors placed at a step that is not there"] == 2
    assert ours.counts["errors beyond the limit per problem"] == 1
    published, _ = build(texts, samples=4, corrections=1, rules=OFFICIAL)
    assert published.steps == []
    assert published.counts["errors placed at a step that is not there"] == 2
    assert published.counts["errors beyond the limit per problem"] == 2


def test_equal_steps_are_kept_by_the_published_rules() -> None:
    """B6: loss ln 2 and no gradient; a right answer reached through the very same step."""
    texts = {("t", 0): MIDDLE, ("t/0", 0): " 3 + 3 = 7\nStep 3: 7 - 1 = 6\nThe answer is 6"}
    ours, _ = build(texts, corrections=1)
    assert ours.steps == [] and ours.counts["corrections that repeat the wrong step"] == 1
    published, _ = build(texts, corrections=1, rules=OFFICIAL)
    assert [r.text for r in published.steps[0].responses] == [" 3 + 3 = 7", " 3 + 3 = 7"]


def test_where_a_quoted_marker_cuts() -> None:
    """B13: the published code cuts at the first `Step k:` wherever it stands."""
    quoting = "Step 1: 1 + 2 = 3, so Step 2: is next\nStep 2: 3 + 3 = 7\nThe answer is 7"
    texts = {("t", 0): quoting, ("t/0", 0): " 3 + 3 = 6\nThe answer is 6"}
    ours, _ = build(texts, corrections=1)
    assert ours.steps[0].prefix == "Step 1: 1 + 2 = 3, so Step 2: is next\nStep 2:"
    published, _ = build(texts, corrections=1, rules=OFFICIAL)
    assert published.steps[0].prefix == "Step 1: 1 + 2 = 3, so Step 2:"
    assert published.steps[0].responses[0].text == " is next"


def test_cut_solutions_are_wrong_only_by_the_published_rules() -> None:
    """P4: a solution cut at the token limit has no answer, which is not an error of reasoning."""
    texts = {("t", 0): MIDDLE, ("t/0", 0): " 3 + 3 = 6\nThe answer is 6"}
    for rules, pairs in ((CORRECTED, 0), (OFFICIAL, 1)):
        data = build_step_pairs(
            [TASK], Scripted(texts, frozenset({MIDDLE})), grade=GRADE, locator=SECOND,
            settings=StepSettings(samples=1, corrections=1, rules=rules),
        )  # fmt: skip
        assert data.counts["solutions cut at the token limit"] == 1
        assert len(data.steps) == pairs


@pytest.mark.parametrize("rules", [CORRECTED, OFFICIAL])
def test_what_a_server_refuses_is_no_solution(rules: StepRules) -> None:
    """Neither a right nor a wrong one, whatever its words are."""
    texts = {("t", 0): MIDDLE, ("t", 1): MIDDLE + " "}
    generator = Scripted(
        {**texts, ("t/1", 0): " 3 + 3 = 6\nThe answer is 6"}, refused=frozenset({MIDDLE})
    )
    data = build_step_pairs(
        [TASK], generator, grade=GRADE, locator=SECOND,
        settings=StepSettings(samples=2, corrections=1, rules=rules),
    )  # fmt: skip
    assert data.counts["solutions refused by the server"] == 1
    assert data.counts["solutions cut at the token limit"] == 0
    assert (data.counts["solutions wrong"], [r.id for r in data.steps]) == (1, ["t/1"])
    assert [s.id for s, _ in data.judged] == ["t/1"]


@pytest.mark.parametrize("rules", [CORRECTED, OFFICIAL])
def test_corrections_that_did_not_end_are_not_accepted(rules: StepRules) -> None:
    """Even where their text has the right answer."""
    cut, refused = " 3 + 3 = 6.\nThe answer is 6", " 3+3=6\nThe answer is 6"
    whole = " 3 and 3 make 6\nThe answer is 6"
    texts = {("t", 0): MIDDLE, ("t/0", 0): cut, ("t/0", 1): refused, ("t/0", 2): whole}
    data = build_step_pairs(
        [TASK], Scripted(texts, frozenset({cut}), frozenset({refused})), grade=GRADE,
        locator=SECOND, settings=StepSettings(samples=1, corrections=3, rules=rules),
    )  # fmt: skip
    assert data.counts["corrections cut or refused"] == 2
    assert (data.counts["corrections sampled"], data.counts["corrections right"]) == (3, 1)
    assert [r.text for r in data.steps[0].responses[1:]] == [CORRECTED.take(whole, 2)]


def test_a_wrong_step_without_text_makes_no_pair() -> None:
    empty = "Step 1: 1 + 2 = 3\nStep 2:  \nStep 3: so 7\nThe answer is 7"
    data, generator = build({("t", 0): empty}, corrections=1)
    assert data.steps == data.solutions == []
    assert data.counts["errors placed at an empty step"] == 1
    assert data.counts["errors located"] == 0
    assert len(generator.asked) == 1, "nothing is sampled to correct it"


def test_a_corrected_step_without_text_makes_no_pair() -> None:
    texts = {
        ("t", 0): MIDDLE,
        ("t/0", 0): " \nStep 3: 3 + 3 = 6\nThe answer is 6",
        ("t/0", 1): " 3 + 3 = 6\nThe answer is 6",
    }
    data, _ = build(texts, corrections=2)
    assert [r.text for r in data.steps[0].responses[1:]] == [" 3 + 3 = 6\nThe answer is 6"]
    assert data.counts["corrections with an empty step"] == 1
    assert data.counts["corrections right"] == 2
    data, _ = build(texts, corrections=1)
    assert data.steps == [] and data.counts["pairs"] == 0


@pytest.mark.parametrize(
    ("first_step", "prefix", "rejected", "ends"),
    [
        ("step", "Step 1:", " 1 + 2 = 4", False),
        ("solution", "", "Step 1: 1 + 2 = 4\nStep 2: 4 + 3 = 7\nThe answer is 7", True),
        ("drop", None, None, None),
    ],
)
def test_an_error_in_the_first_step(first_step, prefix, rejected, ends) -> None:
    """P2: nothing right precedes the pair."""
    texts = {
        ("t", 0): "Step 1: 1 + 2 = 4\nStep 2: 4 + 3 = 7\nThe answer is 7",
        ("t/0", 0): " 1 + 2 = 3\nStep 2: 3 + 3 = 6\nThe answer is 6",
    }
    data = build_step_pairs(
        [TASK], Scripted(texts), grade=GRADE, locator=OracleLocator(lambda _: 1),
        settings=StepSettings(samples=1, corrections=1, first_step=first_step),
    )  # fmt: skip
    found = [(r.prefix, r.responses[0].text, r.responses[0].ends) for r in data.steps]
    assert found == ([] if prefix is None else [(prefix, rejected, ends)])


@pytest.mark.parametrize("text", ["The answer is 7", "1 + 2 + 3 = 7. The answer is 7"])
def test_solutions_without_step_markers_make_no_pair(text: str) -> None:
    """P3."""
    data, _ = build({("t", 0): text}, corrections=0)
    assert data.steps == data.solutions == []
    assert data.counts["errors placed at a step that is not there"] == 1


@pytest.mark.parametrize("rules", [CORRECTED, OFFICIAL])
def test_a_verdict_beyond_the_last_step_makes_no_pair(rules: StepRules) -> None:
    """P5: two steps, placed at the fifth."""
    generator = Scripted({("t", 0): WRONG})
    data = build_step_pairs(
        [TASK], generator, grade=GRADE, locator=OracleLocator(lambda _: 5),
        settings=StepSettings(samples=1, corrections=1, rules=rules),
    )  # fmt: skip
    assert data.steps == data.solutions == []
    assert data.counts["errors placed at a step that is not there"] == 1
    assert len(generator.asked) == 1


def test_corrections_that_are_right_through_a_wrong_step_can_be_left_out() -> None:
    """B7: the final answer alone does not show that the step is right."""
    texts = {
        ("t", 0): MIDDLE,
        ("t/0", 0): " 3 + 3 = 8\nStep 3: 8 - 2 = 6\nThe answer is 6",
        ("t/0", 1): " 3 + 3 = 6\nThe answer is 6",
    }

    def first_wrong(solution: WrongSolution) -> int | None:
        return 2 if "= 7" in solution.text or "= 8" in solution.text else None

    def steps(*, check: bool) -> list[str]:
        data = build_step_pairs(
            [TASK], Scripted(texts), grade=GRADE, locator=OracleLocator(first_wrong),
            settings=StepSettings(samples=1, corrections=2, check_chosen=check),
        )  # fmt: skip
        assert data.counts["corrections right through a wrong step"] == check
        return [r.text for r in data.steps[0].responses[1:]]

    assert steps(check=False) == [" 3 + 3 = 8", " 3 + 3 = 6\nThe answer is 6"]
    assert steps(check=True) == [" 3 + 3 = 6\nThe answer is 6"]


def test_a_later_error_does_not_count_against_a_corrected_step() -> None:
    """B7: the pair trains the corrected step alone; its successors are not in it."""
    later = " 3 + 3 = 6\nStep 3: 6 + 1 = 8\nThe answer is 6"
    first = "Step 1: 1 + 2 = 4\nStep 2: 3 + 3 = 7\nStep 3: 7 = 7\nThe answer is 7"

    def kept(wrong: str, number: int, **checked: int) -> list[str]:
        def first_wrong(solution: WrongSolution) -> int | None:
            return checked["at"] if solution.text.endswith(later) else number

        data = build_step_pairs(
            [TASK], Scripted({("t", 0): wrong, ("t/0", 0): later}), grade=GRADE,
            locator=OracleLocator(first_wrong),
            settings=StepSettings(samples=1, corrections=1, check_chosen=True),
        )  # fmt: skip
        assert data.counts["corrections right through a wrong step"] == (not data.steps)
        return [r.text for s in data.steps for r in s.responses[1:]]

    assert kept(MIDDLE, 2, at=3) == [" 3 + 3 = 6"]
    assert kept(MIDDLE, 2, at=2) == []
    assert kept(first, 2, at=1) == [], "an error before the corrected step"


class Checking:
    """A judge that places every error at step 2 and has one verdict for every correction."""

    name = "checking"

    def __init__(self, verdict: Any) -> None:
        self.verdict = verdict
        self.asked: list[str] = []

    def locate(self, solutions, *, journal=None, progress=None, right=False):
        self.asked += [s.text for s in solutions]
        return [
            Location(None, self.verdict) if s.text.endswith("6") else Location(2, "found")
            for s in solutions
        ]


@pytest.mark.parametrize(
    ("verdict", "kept"), [("missing", 0), ("failed", 0), ("undecided", 0), ("none", 1)]
)
def test_without_a_verdict_a_checked_correction_is_left_out(verdict: str, kept: int) -> None:
    texts = {("t", 0): MIDDLE, ("t/0", 0): " 3 + 3 = 6\nThe answer is 6"}
    judge = Checking(verdict)
    data = build_step_pairs(
        [TASK], Scripted(texts), grade=GRADE, locator=judge,
        settings=StepSettings(samples=1, corrections=1, check_chosen=True),
    )  # fmt: skip
    assert judge.asked == [MIDDLE, "Step 1: 1 + 2 = 3\nStep 2: 3 + 3 = 6\nThe answer is 6"]
    assert len(data.steps) == len(data.solutions) == kept
    assert data.counts["corrections without a verdict on the step"] == 1 - kept
    assert data.counts["corrections right"] == 1


class Waiting:
    """A judge that places every solution but those that still wait for a person."""

    name = "waiting"

    def __init__(self, *waiting: str) -> None:
        self.waiting = waiting

    def locate(self, solutions, *, journal=None, progress=None, right=False):
        return [
            Location(None, "missing") if s.id in self.waiting else Location(2, "found")
            for s in solutions
        ]


def test_a_solution_that_waits_for_its_verdict_keeps_its_place() -> None:
    """A later label changes no other pair: with two places per problem the third solution is never taken."""
    texts = {("t", i): MIDDLE for i in range(3)}
    texts |= {(f"t/{i}", 0): " 3 + 3 = 6\nThe answer is 6" for i in range(3)}
    settings = StepSettings(samples=3, corrections=1, errors_per_problem=2)

    def run(*waiting: str):
        return build_step_pairs(
            [TASK], Scripted(texts), grade=GRADE, locator=Waiting(*waiting), settings=settings
        )

    before, after = run("t/0"), run()
    assert ([r.id for r in before.steps], before.awaited) == (["t/1"], 1)
    assert ([r.id for r in after.steps], after.awaited) == (["t/0", "t/1"], 0)
    assert before.counts["errors without a verdict yet"] == 1


def test_a_solution_without_a_wrong_step_makes_room_for_the_next() -> None:
    texts = {("t", 0): MIDDLE, ("t", 1): MIDDLE, ("t/1", 0): " 3 + 3 = 6\nThe answer is 6"}
    locator = OracleLocator(lambda s: None if s.id == "t/0" else 2)
    data = build_step_pairs(
        [TASK], Scripted(texts), grade=GRADE, locator=locator,
        settings=StepSettings(samples=2, corrections=1),
    )  # fmt: skip
    assert [r.id for r in data.steps] == ["t/1"]
    assert data.counts["errors in which the judge finds no wrong step"] == 1


def test_corrections_by_another_writer() -> None:
    own = Scripted({("t", 0): MIDDLE})
    other = Scripted({("t/0", 0): " 3 and 3 make 6\nThe answer is 6"})
    data = build_step_pairs(
        [TASK], own, grade=GRADE, locator=SECOND, corrector=other,
        settings=StepSettings(samples=1, corrections=1),
    )  # fmt: skip
    assert data.steps[0].responses[1].text == " 3 and 3 make 6\nThe answer is 6"
    assert (len(own.asked), len(other.asked)) == (1, 1)


def test_the_end_of_a_last_step_can_be_trained() -> None:
    """B8: without it no pair teaches where to stop."""
    texts = {
        ("t", 0): WRONG,
        ("t/0", 0): " 3 + 3 = 6\nThe answer is 6",
        ("t/0", 1): " 3 + 3 = 6.\nStep 3: 6 = 6\nThe answer is 6",
    }
    data, _ = build(texts, corrections=2, end_last_step=True)
    assert [r.ends for r in data.steps[0].responses] == [True, True, False]


def test_rows_of_the_released_form() -> None:
    """B1: the columns that the training script of the paper reads, and that `load_preferences` recognises."""
    problem = MathProblem(
        "t", "1 + 2 + 3?", "6", "Q: 1 + 2 + 3?", prefix=" Let's go.\nStep 1:", kind="toy"
    )
    first = " 1 + 2 = 3\nStep 2: 3 + 3 = 7\nThe answer is 7"
    texts = {("t", 0): first, ("t/0", 0): " 3 + 3 = 6\nThe answer is 6"}
    data = build_step_pairs(
        [problem], Scripted(texts), grade=one_by_one(is_correct), locator=SECOND,
        settings=StepSettings(samples=1, corrections=1),
    )  # fmt: skip
    (row,) = released_rows(data.steps, {"t": problem})
    assert row == {
        "dataset": "toy",
        "prompt": "1 + 2 + 3?",
        "initial_reason_steps": "Let's go.\nStep 1: 1 + 2 = 3\nStep 2:",
        "chosen": " 3 + 3 = 6\nThe answer is 6",
        "rejected": " 3 + 3 = 7\nThe answer is 7",
        "full_chosen": "Let's go.\nStep 1: 1 + 2 = 3\nStep 2: 3 + 3 = 6\nThe answer is 6",
        "full_rejected": "Let's go.\nStep 1:" + first,
        "answer": "6",
    }
