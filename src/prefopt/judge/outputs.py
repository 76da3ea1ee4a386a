"""What judges of answers are shown: a question, the answers of each turn, maybe a reference; read from files.

Any file of rows with a question and an output will do: those of `prefopt generate` and `prefopt eval`, AlpacaEval's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from prefopt.errors import RecordError
from prefopt.records import Message
from prefopt.text.questions import Question, read_questions, read_texts
from prefopt.values import quote

OUTPUT_COLUMNS = ("output", "response")
REFERENCE_COLUMNS = ("reference", "references")

Join = Literal["question", "id"]


class Exchange(NamedTuple):
    """A question with a model's answers: what is judged, turn by turn."""

    id: str
    questions: tuple[str, ...]
    """What the user says in each turn."""
    answers: tuple[str, ...]
    """One per turn; empty where the model gave none."""
    opening: tuple[Message, ...] = ()
    """Messages before the first of these turns."""
    references: tuple[str, ...] = ()
    """A right answer to each turn, or to the first ones; an empty text where there is none."""
    category: str = ""
    origin: str = ""
    """`file:line`, for messages."""

    def reference(self, turn: int) -> str:
        """The reference of a turn, counted from 1; empty where there is none."""
        return self.references[turn - 1] if turn <= len(self.references) else ""


class Contest(NamedTuple):
    """Two models' answers to one question."""

    model: Exchange
    baseline: Exchange

    @property
    def id(self) -> str:
        """Of the model's row."""
        return self.model.id


class Joined(NamedTuple):
    """Two files of answers, row by row."""

    contests: list[Contest | None]
    """One per row of the first file; None where the other lacks its question or one has no answer to it."""
    remarks: list[str]
    """One per row of the first file: why there is no contest, else empty."""
    unused: list[str]
    """Ids of the second file's rows that no row of the first asks for."""


def read_outputs(source: str | Path) -> list[Exchange]:
    """The rows of a file with questions and a model's answers, in its order.

    Raises:
        StorageError: the file cannot be read.
        RecordError: a row is not what is needed; the message names file and line.
    """
    return [_exchange(question) for question in read_questions(source)]


def _exchange(question: Question) -> Exchange:
    values, origin = question.values, question.origin
    column = next((name for name in OUTPUT_COLUMNS if name in values), None)
    if column is None:
        raise RecordError(f"{origin}: there is no 'output' (or 'response'); a row needs one")
    answers = read_texts(values[column], column, origin)
    prefix = values.get("prefix")
    if isinstance(prefix, str) and prefix and answers:
        answers = (prefix + answers[0], *answers[1:])
    if answers and len(answers) != len(question.turns):
        raise RecordError(
            f"{origin}: {len(question.turns)} turns and {len(answers)} answers; give one answer for each turn"
        )
    references = _references(question)
    return Exchange(
        question.id,
        question.turns,
        answers,
        question.opening,
        references,
        question.category,
        origin,
    )


def _references(question: Question) -> tuple[str, ...]:
    values, origin = question.values, question.origin
    given = [name for name in REFERENCE_COLUMNS if values.get(name) is not None]
    texts = [read_texts(values[name], name, origin) for name in given]
    if len(texts) == 2 and texts[0] != texts[1]:
        raise RecordError(
            f"{origin}: {' and '.join(given)} differ; keep the one that is to be used"
        )
    if texts and len(texts[0]) > len(question.turns):
        raise RecordError(
            f"{origin}: {len(question.turns)} turns and {len(texts[0])} references; '{given[0]}' holds one for each "
            "turn, in their order: keep one of several for the same turn"
        )
    return texts[0] if texts else ()


def join_outputs(
    model: Sequence[Exchange], baseline: Sequence[Exchange], *, by: Join = "question"
) -> Joined:
    """Two models' answers to the same questions; the order of the second file does not matter.

    Args:
        model: the first file.
        baseline: the second.
        by: `question`: rows belong together that ask the same; of a question that stands in a file several times the
            first to the first, and so on. `id`: rows of one id, whatever they ask, for files whose prompts are written
            in different styles; the judge is shown the first file's.
    """
    keys, others = (
        (_by_id(model), _by_id(baseline)) if by == "id" else (_keys(model), _keys(baseline))
    )
    by_key = dict(zip(others, baseline, strict=True))
    by_id = {exchange.id: exchange for exchange in baseline}
    contests: list[Contest | None] = []
    remarks: list[str] = []
    for key, exchange in zip(keys, model, strict=True):
        other = by_key.get(key)
        remark = _obstacle(exchange, other, by_id.get(exchange.id))
        remarks.append(remark)
        contests.append(None if remark or other is None else Contest(exchange, other))
    used = set(keys)
    unused = [e.id for key, e in zip(others, baseline, strict=True) if key not in used]
    return Joined(contests, remarks, unused)


def _by_id(exchanges: Sequence[Exchange]) -> list[Hashable]:
    return [exchange.id for exchange in exchanges]


def _keys(exchanges: Sequence[Exchange]) -> list[Hashable]:
    """What each row asks, and how often that was asked before it."""
    seen: Counter[Hashable] = Counter()
    found: list[Hashable] = []
    for exchange in exchanges:
        opening = tuple((m.role, m.content.strip()) for m in exchange.opening)
        asked = (opening, tuple(text.strip() for text in exchange.questions))
        seen[asked] += 1
        found.append((asked, seen[asked]))
    return found


def _obstacle(exchange: Exchange, other: Exchange | None, same_id: Exchange | None) -> str:
    if other is None and same_id is None:
        return "the baseline has no such question"
    if other is None and same_id is not None:
        theirs, ours = quote(same_id.questions[-1]), quote(exchange.questions[-1])
        return f"the baseline's row of this id asks {theirs}, this one {ours}"
    if not exchange.answers:
        return "there is no output"
    if other is None or not other.answers:
        return "the baseline has no output"
    if len(other.answers) != len(exchange.answers):
        return f"the baseline has {len(other.answers)} turns, this row {len(exchange.answers)}"
    return ""
