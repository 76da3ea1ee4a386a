"""Accuracy on problems with a checkable answer: generate, grade, count, and say how sure the number is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from prefopt.errors import ConfigError, StorageError
from prefopt.generate.base import Generator, Request, Sampling
from prefopt.generate.journal import Journal, Progress, complete
from prefopt.grade.statistics import Difference, mcnemar, paired_bootstrap, wilson
from prefopt.records import Message
from prefopt.values import JsonValue

GREEDY = Sampling(purpose="evaluation")
RESULT_FILE = "evaluation.json"
OUTPUTS_FILE = "evaluation-outputs.jsonl"


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


P = TypeVar("P", bound=Problem)


class Output(NamedTuple):
    """What the model wrote about one problem."""

    id: str
    prompt: str | tuple[Message, ...]
    answer: str
    output: str
    correct: bool


class Evaluation(NamedTuple):
    """An accuracy with its 95% Wilson interval, and the outputs it counts."""

    name: str
    """Of what was evaluated."""
    correct: int
    total: int
    value: float
    """correct / total; 0 when there are no problems."""
    low: float
    high: float
    outputs: tuple[Output, ...]
    """In the order of the problems."""
    metric: str = "accuracy"
    split: str = "test"
    """Where the problems are from."""


class Comparison(NamedTuple):
    """Two evaluations of the same problems."""

    gained: int
    """Problems that only the second is right on."""
    lost: int
    """Problems that only the first is right on."""
    p: float
    """Two-sided exact p-value of McNemar's test."""
    difference: Difference
    """Of the accuracies, second minus first, with the 95% interval of a paired bootstrap."""


def evaluate(
    generator: Generator,
    problems: Sequence[P],
    grade: Callable[[P, str], bool],
    *,
    sampling: Sampling = GREEDY,
    journal: Journal | None = None,
    progress: Progress | None = None,
    name: str = "model",
) -> Evaluation:
    """The share of problems that the generator answers rightly, by default with greedy decoding.

    Args:
        generator: what is evaluated.
        problems: with unique ids.
        grade: whether a text answers the problem rightly; a text cut at the token limit is graded as it is.
        sampling: one completion per problem.
        journal: keeps the completions, so that an interrupted evaluation goes on where it stopped.
        progress: called with (done, total).
        name: of the model, for tables and the report.

    Raises:
        RecordError: two problems have the same id, or a prompt cannot be rendered.
    """
    requests = [Request(problem.id, 0, problem.prompt) for problem in problems]
    completions = complete(generator, requests, sampling, journal, progress=progress)
    outputs = tuple(
        Output(p.id, p.prompt, p.answer, c.text, grade(p, c.text))
        for p, c in zip(problems, completions, strict=True)
    )
    correct, total = sum(output.correct for output in outputs), len(outputs)
    low, high = wilson(correct, total)
    value = correct / total if total else 0.0
    return Evaluation(name, correct, total, value, low, high, outputs)


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """How the second evaluation differs from the first, item by item.

    Raises:
        ConfigError: they are not about the same problems.
    """
    before = {output.id: output.correct for output in first.outputs}
    after = {output.id: output.correct for output in second.outputs}
    if before.keys() != after.keys() or not before:
        raise ConfigError(
            f"{first.name} and {second.name} share {len(before.keys() & after.keys())} of their "
            f"{len(before)} and {len(after)} problems; evaluate both on the same ones"
        )
    gained = sum(after[key] and not before[key] for key in before)
    lost = sum(before[key] and not after[key] for key in before)
    difference = paired_bootstrap(list(before.values()), [after[key] for key in before])
    return Comparison(gained, lost, mcnemar(lost, gained), difference)


def write_evaluation(evaluation: Evaluation, folder: Path | str) -> None:
    """`evaluation.json` (the number) and `evaluation-outputs.jsonl` (one problem a line) in a run folder.

    Each file is written whole or not at all, the number last.

    Raises:
        StorageError: they cannot be written.
    """
    path = Path(folder)
    facts = {k: v for k, v in evaluation._asdict().items() if k != "outputs"}
    lines = [json.dumps(_to_json(output), ensure_ascii=False) for output in evaluation.outputs]
    _write(path / OUTPUTS_FILE, "".join(f"{line}\n" for line in lines))
    _write(path / RESULT_FILE, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def _to_json(output: Output) -> Mapping[str, JsonValue]:
    return {
        "id": output.id,
        "prompt": _prompt_to_json(output.prompt),
        "answer": output.answer,
        "output": output.output,
        "correct": output.correct,
    }


def _prompt_to_json(prompt: str | tuple[Message, ...]) -> JsonValue:
    if isinstance(prompt, str):
        return prompt
    return [{"role": m.role, "content": m.content, **m.extra} for m in prompt]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); free some space or check permissions"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
