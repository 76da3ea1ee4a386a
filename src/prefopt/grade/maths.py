"""Graders for mathematics: whether a model's text answers a problem rightly, with a time limit per comparison.

Three rule sets, by name: `math-verify` (the default: own extraction and structure, math-verify for what is left),
`step_dpo` and `scdpo` (the rules of two papers' published code). All run in worker processes.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from prefopt.errors import ConfigError
from prefopt.grade import symbolic
from prefopt.grade.answers import boxed_answer, final_answer, gold_text, read_answers
from prefopt.grade.equality import Question, equal, read_question
from prefopt.grade.notation import clean
from prefopt.grade.prose import without_contrast
from prefopt.grade.spelled import write_digits
from prefopt.grade.workers import ENDED, FAILED, Answer, Engine, EngineNeededError, Pool

_LONGEST_TEXT = 200_000
"""Characters of an output that are looked at, from its end: that is where answers are."""
_LONGEST_ANSWER = 2000
_SHORTEST, _LONGEST_COMPARISON = 0.001, 86_400
"""Seconds of a comparison; timers of the kernel are not made for much more."""


class Graded(NamedTuple):
    """The verdict on one output."""

    correct: bool
    extracted: str | None
    """The part of the output that counted as its answer, as written."""
    reason: str
    """Why: `equal`, `different`, `no answer`, `unreadable gold`; or what ended the comparison, see `mishaps`."""


class GradeItem(NamedTuple):
    """One output to grade."""

    problem: str
    answer: str
    """The gold answer; a worked solution counts by its last box, or by what follows `####`. Several: `join_answers`."""
    output: str


class Grader:
    """Grades in worker processes. A context manager; may be used again and again, by one thread at a time.

    Args:
        name: of the rule set, see `grader_names`.
        workers: processes; the number of cores by default.
        seconds: processor time that one comparison may take before it counts as wrong.

    Raises:
        ConfigError: there is no such rule set, fewer than one worker, or a limit below 1 ms or above a day.
        MissingExtraError: math-verify is not installed.
    """

    def __init__(
        self, name: str = "math-verify", *, workers: int | None = None, seconds: float = 5.0
    ) -> None:
        self._gold = find_engine(name).gold
        symbolic.require()
        count = _cores() if workers is None else workers
        if count < 1:
            raise ConfigError(f"workers is {count}; give at least 1")
        if not _SHORTEST <= seconds <= _LONGEST_COMPARISON:
            raise ConfigError(
                f"seconds is {seconds:g}; give the limit of a comparison, between {_SHORTEST} and "
                f"{_LONGEST_COMPARISON:,}"
            )
        self.name = name
        self._pool = Pool(name, count, seconds)

    def grade(
        self, items: Sequence[GradeItem], *, progress: Callable[[int, int], None] | None = None
    ) -> list[Graded]:
        """The verdicts, in the order of the items.

        Args:
            items: any number.
            progress: called with (done, total).

        Raises:
            StorageError: no process can be started, or none stays alive.
        """
        return [Graded(*answer) for answer in self._pool.map(items, progress)]

    def grade_answers(
        self,
        solutions: Sequence[tuple[str, Sequence[str], str]],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Graded]:
        """As `grade`, for the answers that files give to problems, in the form in which the rules compare them.

        Args:
            solutions: (problem, its answers, output).
            progress: called with (done, total).
        """
        items = [
            GradeItem(problem, self._gold(problem, answers), output)
            for problem, answers, output in solutions
        ]
        return self.grade(items, progress=progress)

    def close(self) -> None:
        """End the worker processes; grading again starts new ones."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def mishaps(reasons: Iterable[str]) -> Counter[str]:
    """How many comparisons ended without a verdict and count as wrong, by reason.

    `time limit`, `memory limit`, `crashed`, or `failed: ` and the name of an exception.
    """
    return Counter(r for r in reasons if r in ENDED or r.startswith(FAILED))


def told(found: Counter[str], total: int) -> str:
    """What `mishaps` found, as a line for people."""
    each = ", ".join(f"{count:,} {reason}" for reason, count in found.most_common())
    return f"{found.total():,} of {total:,} comparisons gave no verdict and count as wrong ({each})"


def grader_names() -> list[str]:
    """The names of all rule sets."""
    return sorted(_ENGINES)


def find_engine(name: str) -> Engine:
    """The rule set of a name.

    Raises:
        ConfigError: there is none; the message names the nearest and all others.
    """
    if name not in _ENGINES:
        near = difflib.get_close_matches(name, _ENGINES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"there is no grader {name!r}; {hint}there are: {', '.join(grader_names())}"
        )
    return _ENGINES[name]()


def grade_one(problem: str, answer: str, output: str) -> Graded:
    """The verdict of the rules `math-verify` in this process, without any limit of time: for trying things out.

    Raises:
        EngineNeededError: symbols have to be compared and `symbolic.load` has not been called.
    """
    question = read_question(problem)
    gold = clean(gold_answer(answer))
    if not gold:
        return Graded(correct=False, extracted=None, reason="unreadable gold")
    extracted = final_answer(output[-_LONGEST_TEXT:])
    if extracted is None:
        return Graded(correct=False, extracted=None, reason="no answer")
    given = clean(extracted)
    if len(given) > _LONGEST_ANSWER:
        return Graded(correct=False, extracted=extracted, reason="different")
    # Where a problem speaks of $32 million, 4 may be the gold answer for $4 million.
    readings = {question.scales, question.scales | question.mentioned}
    same = any(_same(gold, given, question, scales) for scales in sorted(readings, key=len))
    return Graded(same, extracted, "equal" if same else "different")


def _same(gold: str, given: str, question: Question, scales: frozenset[str]) -> bool:
    """Whether two cleaned answers are equal, if scale words of the given kinds are units and not factors."""
    gold = write_digits(gold, keep=scales)
    given = re.sub(r"\s*\((or\s[^()]*)\)$", r" \1", given)
    given = without_contrast(write_digits(given, keep=scales))
    if question.asks_bound:
        given = re.sub(r"\bat\s+(?:least|most)\s+(?=[-$\d])", "", given)
    return equal(gold, given, _symbolic, question)


def gold_answer(answer: str) -> str:
    r"""The answer of a gold text: what follows its last `####`, else its last box, else all of it."""
    several = read_answers(answer)
    if several != (answer,):
        return ", ".join(several)
    if "####" in answer:
        return answer.rsplit("####", 1)[1].strip()
    if re.search(r"\\(?:boxed|fbox)(?![a-zA-Z])", answer):
        return boxed_answer(answer) or answer
    return answer.strip()


_loaded = False


def _load_symbols() -> None:
    global _loaded  # noqa: PLW0603 - once per process
    symbolic.load()
    _loaded = True


def _symbolic(gold: str, given: str) -> bool:
    if not _loaded:
        raise EngineNeededError
    try:
        return symbolic.equivalent(gold, given)
    except (
        ArithmeticError,
        AttributeError,
        TypeError,
        ValueError,
        RecursionError,
        NotImplementedError,
    ):
        # What sympy raises on formulas that make no sense; the answer is none then.
        return False


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _default() -> Engine:
    def grade(problem: str, answer: str, output: str) -> Answer:
        correct, extracted, reason = grade_one(problem, answer, output)
        return correct, extracted, reason

    return Engine(grade, _load_symbols, gold_text)


def _step_dpo() -> Engine:
    from prefopt.grade import step_dpo_rules

    def grade(problem: str, answer: str, output: str) -> Answer:
        if not answer.strip():
            return False, None, "unreadable gold"
        return step_dpo_rules.grade(problem, answer, output)

    return Engine(grade, step_dpo_rules.load, step_dpo_rules.gold_text)


def _scdpo() -> Engine:
    from prefopt.grade import scdpo_rules

    return Engine(scdpo_rules.grade, scdpo_rules.load, gold_text)


_ENGINES: dict[str, Callable[[], Engine]] = {
    "math-verify": _default,
    "step_dpo": _step_dpo,
    "scdpo": _scdpo,
}
