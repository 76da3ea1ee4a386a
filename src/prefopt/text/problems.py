"""Questions with a known answer: what pipelines sample on and evaluations count. No models, no graders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from prefopt.config.mistakes import nearest, unknown_name
from prefopt.errors import ConfigError, RecordError
from prefopt.ledger import Ledger
from prefopt.records import Message
from prefopt.text.cells import Cells
from prefopt.text.files import RowSource, read_rows
from prefopt.text.styles import PromptStyle, find_style
from prefopt.text.worked import ANSWER_MARK, final_answer, worked_text
from prefopt.values import JsonValue, describe, refuse

OnUnanswered = Literal["error", "drop"]

REPEATED = "the question stands in an earlier row too"
UNANSWERED = "no readable answer"
PREFIX_UNUSED = "column 'prefix' is not used: the prompt style has no place for it"

_ROLES: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "problem", "instruction", "prompt", "query"),
    "answer": ("answer", "final_answer", "gold", "expected_answer"),
    "solution": ("solution", "output"),
    "id": ("id", "unique_id", "idx"),
    "kind": ("type", "subject", "dataset"),
    "prefix": ("prefix",),
}
"""What a column means -> its names; the first that the file has is taken."""


class Problem(Protocol):
    """A question with a known answer. Record types of worlds and data sets fit as they are."""

    @property
    def id(self) -> str:
        """Unique within the set."""
        ...

    @property
    def prompt(self) -> str | tuple[Message, ...]:
        """What the model is shown."""
        ...

    @property
    def answer(self) -> str:
        """The right answer, for people and graders."""
        ...


@dataclass(frozen=True, slots=True)
class MathProblem:
    """A problem of a file."""

    id: str
    question: str
    """The problem as it stands in the file."""
    answer: str
    """The right answer; several are joined by commas."""
    prompt: str | tuple[Message, ...]
    """The question in its prompt style."""
    prefix: str = ""
    """Unfinished assistant text that every solution starts with, from the prompt style."""
    solution: str = ""
    """The worked solution, where the file has one."""
    kind: str = ""
    """Topic or source, where the file names one."""
    several: tuple[str, ...] = ()
    """The answers one by one where the file lists more than one."""
    meta: Mapping[str, JsonValue] = field(default_factory=dict)
    origin: str = ""
    """`file:line`, for messages."""

    @property
    def answers(self) -> tuple[str, ...]:
        """All right answers that a solution has to give: `several`, else the one."""
        return self.several or (self.answer,)


class _Answered(NamedTuple):
    """What a row says about the solution."""

    answer: str
    solution: str
    several: tuple[str, ...] = ()
    """The answers where the row lists more than one."""


def load_problems(
    path: str | Path,
    *,
    style: PromptStyle | str = "chat",
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    on_unanswered: OnUnanswered = "error",
    ledger: Ledger | None = None,
) -> list[MathProblem]:
    r"""The problems of a file in their prompt style.

    Recognised are GSM8K (`question`, `answer` ending in `#### 18`), MATH (`problem`, `solution` with a box), the
    problems of Step-DPO (`instruction`, `answer`, `output`), and any rows with a question (`question`, `problem`,
    `instruction`, `prompt`, `query`) and an answer (`answer`, `final_answer`, `gold`, `expected_answer`): JSONL, JSON,
    CSV, TSV, Parquet. The answer is what follows the last `####` without thousands commas, else the content of the last
    balanced `\boxed` or `\fbox`, else the cell itself; where there is no answer column, the solution is searched the
    same way. Solutions lose their `<<48/2=24>>` marks and the line `#### 24`.

    Args:
        path: the file.
        style: a `PromptStyle` or its name.
        limit: read the first rows only; None reads all.
        columns: what a column means, {"question": "name in the file"}, beside `answer`, `solution`, `id`, `kind`,
            `prefix`; roles not named are recognised.
        on_unanswered: whether a row without a readable answer is an error, or dropped and counted in `ledger`.
        ledger: is told the fate of every row, and questions that stand in the file twice.

    Raises:
        StorageError: the file does not exist or cannot be read.
        RecordError: the file is broken or has no such columns, or a row has no question, no answer, no prefix where the
            style needs one, or an earlier row's id; the message names file and line.
        ConfigError: an unknown style or role, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"{path}: limit is {limit}; use 1 or more, or none to read all rows")
    if on_unanswered == "drop" and ledger is None:
        raise ConfigError(
            f"{path}: on_unanswered='drop' needs a ledger that counts what is dropped"
        )
    chosen = find_style(style) if isinstance(style, str) else style
    source = read_rows(path, limit=limit)
    roles = _recognise(source, columns or {})
    ledger = ledger if ledger is not None else Ledger(str(path))
    problems: list[MathProblem] = []
    origins: dict[str, str] = {}
    questions: set[str] = set()
    for row in source.rows:
        cells = Cells(row, roles, textual=source.textual)
        problem = _read(cells, source.stem, chosen, optional=on_unanswered == "drop")
        _claim_id(problem, origins)
        notes = {
            REPEATED: problem.question in questions,
            PREFIX_UNUSED: bool(cells.optional("prefix")) and not chosen.needs_prefix,
        }
        if _enter(problem, ledger, [note for note, applies in notes.items() if applies]):
            questions.add(problem.question)
            problems.append(problem)
    return problems


def _enter(problem: MathProblem, ledger: Ledger, notes: Iterable[str]) -> bool:
    """Whether the problem is kept; the ledger is told its fate, with notes on a kept one."""
    row_id = ledger.enter(problem.id, origin=problem.origin)
    if not problem.answer:
        ledger.drop(row_id, reason=UNANSWERED)
        return False
    for note in notes:
        ledger.note(row_id, reason=note)
    ledger.keep(row_id)
    return True


def _recognise(source: RowSource, given: Mapping[str, str]) -> dict[str, str]:
    """Role -> column."""
    names = dict.fromkeys(name for row in source.rows for name in row.values)
    for role, name in given.items():
        if role not in _ROLES:
            raise unknown_name("column role", role, list(_ROLES))
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean '{near}'?" if near else f"there are {', '.join(names)}"
            raise RecordError(f"{source.name}: no column '{name}' ({role}); {hint}")
    found = {
        role: next((name for name in known if name in names), None)
        for role, known in _ROLES.items()
        if role not in given
    }
    roles = {**given, **{role: name for role, name in found.items() if name is not None}}
    for role in ("question", "answer"):
        if role not in roles and not (role == "answer" and "solution" in roles):
            raise RecordError(
                f"{source.name}: no column holds the {role} (known names: {', '.join(_ROLES[role])}); the file has "
                f"{', '.join(names)}; rename one, or say which it is: --column {role}=NAME, in recipes "
                f"problem_columns: {{{role}: NAME}}"
            )
    return roles


def _read(cells: Cells, stem: str, style: PromptStyle, *, optional: bool) -> MathProblem:
    """The problem of a row; its answer is empty where there is none and that is allowed."""
    question = cells.optional("question")
    if not isinstance(question, str) or not question.strip():
        refuse(question, cells.columns["question"], cells.origin, "give the problem as text")
    answered = _answered(cells)
    if answered is None and not optional:
        raise RecordError(f"{cells.origin}: {UNANSWERED}: {_why_unanswered(cells)}")
    answer, solution, several = answered or _Answered("", "")
    prompt, prefix = style.ask(question, _prefix(cells, style))
    used = set(cells.columns.values())
    meta = {k: v for k, v in cells.values.items() if k not in used and v not in (None, "")}
    return MathProblem(
        id=_identity(cells, stem),
        question=question,
        answer=answer,
        prompt=prompt,
        prefix=prefix,
        solution=solution,
        kind=_label(cells.optional("kind")),
        several=several,
        meta=meta,
        origin=cells.origin,
    )


def _prefix(cells: Cells, style: PromptStyle) -> str:
    value = cells.optional("prefix")
    if not style.needs_prefix:
        return ""
    if not cells.has("prefix"):
        raise RecordError(
            f"{cells.origin}: style '{style.name}' continues an unfinished solution, but there is no column 'prefix'; "
            "add one, or use another style"
        )
    if not isinstance(value, str):
        name = cells.name("prefix")
        refuse(value, name, cells.origin, f"style '{style.name}' continues it: give a text")
    return value


def _identity(cells: Cells, stem: str) -> str:
    value = cells.optional("id")
    if value is None:
        return f"{stem}-{cells.origin.rpartition(':')[2]}"
    if isinstance(value, bool) or not isinstance(value, int | str):
        refuse(value, cells.columns["id"], cells.origin, "give a text or a whole number")
    return str(value)


def _claim_id(problem: MathProblem, origins: dict[str, str]) -> None:
    earlier = origins.setdefault(problem.id, problem.origin)
    if earlier != problem.origin:
        line = earlier.rpartition(":")[2]
        raise RecordError(
            f"{problem.origin}: id '{problem.id}' stands in row {line} already; make ids unique, or remove the column"
        )


def _label(value: JsonValue) -> str:
    return "" if value is None else str(value)


def _answered(cells: Cells) -> _Answered | None:
    """Answer and solution of a row; None where no answer can be read."""
    solution = cells.optional("solution")
    worked = solution if isinstance(solution, str) else ""
    value = cells.decoded(cells.optional("answer"))
    texts = [_as_text(item) for item in (value if isinstance(value, list) else [value])]
    given = [text.strip() for text in texts if text is not None and text.strip()]
    if len(given) != len(texts) and any(v is not None for v in texts):
        return None
    if len(given) > 1:
        return _Answered(", ".join(given), worked_text(worked), tuple(given))
    found = final_answer(given[0]) if given else final_answer(worked)
    if found is None and given:
        return _Answered(given[0], worked_text(worked))
    if not found:
        return None
    return _Answered(found, worked_text(worked or given[0]))


def _as_text(value: JsonValue) -> str | None:
    """A text or a number as text; None for anything else. `18.0` of a float column is `18`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _why_unanswered(cells: Cells) -> str:
    name = cells.columns.get("answer")
    value = cells.optional("answer")
    if name is not None and value is not None:
        return f"'{name}' is {describe(value)}; give a text, a number or a list of them, or remove the row"
    worked = cells.columns.get("solution")
    if worked is None:
        return f"'{name}' is missing; fill it in, or remove the row"
    return f"'{worked}' has neither a \\boxed{{...}} nor a '{ANSWER_MARK}'; add an answer column, or remove the row"
