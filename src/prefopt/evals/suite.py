"""Evaluating a model on files of problems: what `prefopt eval` does.

Each file becomes one evaluation in one folder: a journal of what the model wrote (an interrupted evaluation goes on
where it stopped, other settings use other rows), then `evaluation-outputs.jsonl` and `evaluation.json`, replaced whole.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from prefopt.errors import ConfigError
from prefopt.evals.files import RESULT_FILE, read_evaluation, write_evaluation
from prefopt.evals.maths import evaluate_all
from prefopt.evals.outcome import Evaluation, Verdict
from prefopt.evals.target import (
    Server,
    Target,
    choose_style,
    find_target,
    find_tokenizer,
    open_local,
    open_server,
)
from prefopt.generate.base import Generator, Sampling
from prefopt.generate.journal import Journal, Progress
from prefopt.grade.maths import GradeItem, Grader
from prefopt.ledger import Ledger
from prefopt.progress import counted
from prefopt.text.problems import MathProblem, load_problems
from prefopt.text.styles import PromptStyle, find_style, style_names
from prefopt.values import JsonValue

JOURNAL_FILE = "evaluation.sqlite"
DEFAULT_FOLDER = Path("evaluations")
CODE_STYLE = "scdpo"


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How problems are put, solved and graded. Decoding is greedy."""

    style: str | None = None
    """Prompt style; None is `chat`, for models with a chat template."""
    grader: str = "math-verify"
    max_new_tokens: int = 1024
    batch_size: int = 64
    """Rows decoded together; it does not change the results."""
    limit: int | None = None
    """Only the first problems of each file."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """What columns of the files mean, {"question": "text"}, where that is not recognised."""
    device: str = "auto"
    dtype: str = "auto"
    """Of the weights; auto: as stored."""
    server: Server | None = None
    code: bool = False
    """Whether solutions run programs (`prefopt.evals.code`)."""
    unsafe_local_execution: bool = False
    """Let programs run without isolation where there is none."""

    def __post_init__(self) -> None:
        for name, value in (
            ("max_new_tokens", self.max_new_tokens),
            ("batch_size", self.batch_size),
        ):
            if value < 1:
                raise ConfigError(f"{name} is {value}; use 1 or more")


class Evaluated(NamedTuple):
    """One file's evaluation."""

    evaluation: Evaluation
    folder: Path
    """Where its files are."""
    seconds: float
    """This time; what the journal held cost nothing."""
    remarks: tuple[str, ...]
    """What the file's reader noticed."""


class _ProblemSet(NamedTuple):
    path: Path
    problems: list[MathProblem]
    folder: Path
    remarks: tuple[str, ...]


def evaluate_files(
    target: str,
    files: Sequence[str | Path],
    settings: EvalSettings,
    *,
    output: Path | None = None,
    name: str | None = None,
) -> list[Evaluated]:
    """The evaluation of a model on each file of problems, written into its folder.

    One file: into `output`; else into the run folder, where the report finds it; else into `evaluations/<name>`.
    Several: into a sub-folder of that for each, named like the file without its ending (`evaluations` in a run folder).

    Args:
        target: a run folder, a model or adapter folder, a hub id, or what to call the model of a server.
        files: of problems, as `prefopt.text.problems.load_problems` reads them.
        settings: how they are put, solved and graded.
        output: folder for the results.
        name: of the model, for tables and the report.

    Raises:
        ConfigError: an unknown style, grader or device; two files of the same name; or the default folder holds the
            evaluation of another model.
        ModelError: the target cannot be loaded.
        RecordError, StorageError: a file cannot be read; the message names file and line.
    """
    found = find_target(target)
    label = name or found.name
    tokenizer = find_tokenizer(found, server=settings.server is not None)
    style = _code_style(settings) if settings.code else choose_style(settings.style, tokenizer)
    folders = _folders(files, found, label, output)
    sets = [
        _load(file, folder, style, settings) for file, folder in zip(files, folders, strict=True)
    ]
    with ExitStack() as stack:
        grader = stack.enter_context(Grader(settings.grader))
        generator = _open(found, style, settings)
        if output is None and found.run is None:
            for folder in folders:
                _require_same_model(folder, generator)
        solver = _Solver(generator, grader, style, settings)
        return [solver.evaluate(each, label, found) for each in sets]


def _code_style(settings: EvalSettings) -> PromptStyle:
    """The style of solutions with programs, which differ in their system text only."""
    style, blocks = find_style(settings.style or CODE_STYLE), find_style(CODE_STYLE)
    if style.frame != blocks.frame:
        known = [name for name in style_names() if find_style(name).frame == blocks.frame]
        raise ConfigError(
            f"style {style.name!r} is not the format of solutions with programs; with --code use "
            f"--style {' or '.join(known)}, or leave --style out"
        )
    return style


def _folders(
    files: Sequence[str | Path], target: Target, label: str, output: Path | None
) -> list[Path]:
    root = output or target.run or DEFAULT_FOLDER / label
    if len(files) == 1:
        return [root]
    stems = [Path(file).stem for file in files]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ConfigError(
            f"two files are called '{twice[0]}', so their results would share a folder; evaluate them one at a time, "
            "each with its own --output"
        )
    if output is None and target.run is not None:
        root /= "evaluations"
    return [root / stem for stem in stems]


def _load(
    file: str | Path, folder: Path, style: PromptStyle, settings: EvalSettings
) -> _ProblemSet:
    ledger = Ledger(str(file))
    problems = load_problems(
        file, style=style, limit=settings.limit, columns=settings.columns, ledger=ledger
    )
    remarks = tuple(ledger.summary()) if ledger.notes else ()
    return _ProblemSet(Path(file), problems, folder, remarks)


def _open(target: Target, style: PromptStyle, settings: EvalSettings) -> Generator:
    if settings.server is not None:
        return open_server(settings.server, style, find_tokenizer(target, server=True))
    return open_local(
        target, device=settings.device, dtype=settings.dtype, batch_size=settings.batch_size
    )


def _require_same_model(folder: Path, generator: Generator) -> None:
    """Nothing, unless a folder that the user did not name holds another model's results."""
    if not (folder / RESULT_FILE).is_file():
        return
    earlier = read_evaluation(folder)
    if earlier.settings.get("generator") != generator.identity:
        raise ConfigError(
            f"{folder}: holds the evaluation of another model, also called '{earlier.name}'; give this one a --name, "
            "or say with --output where its results go"
        )


class _Solver:
    """What the evaluations of several files share."""

    def __init__(
        self, generator: Generator, grader: Grader, style: PromptStyle, settings: EvalSettings
    ) -> None:
        self._generator = generator
        self._grader = grader
        self._style = style
        self._settings = settings

    def evaluate(self, problem_set: _ProblemSet, label: str, target: Target) -> Evaluated:
        """Generate, grade and write one file's evaluation."""
        started = time.monotonic()
        stem, folder = problem_set.path.stem, problem_set.folder
        with Journal(folder / JOURNAL_FILE) as journal, counted(f"{stem}: solutions") as tick:
            solve = self._with_code if self._settings.code else self._as_text
            found = solve(problem_set.problems, journal, tick)
        facts = self._facts(problem_set.path, target)
        named = found._replace(name=label, split=stem, settings=facts)
        write_evaluation(named, folder)
        return Evaluated(named, folder, time.monotonic() - started, problem_set.remarks)

    def _as_text(
        self, problems: Sequence[MathProblem], journal: Journal, tick: Progress
    ) -> Evaluation:
        limit = self._settings.max_new_tokens
        return evaluate_all(
            self._generator,
            problems,
            self._grade,
            sampling=Sampling(max_new_tokens=limit, purpose="evaluation"),
            journal=journal,
            progress=tick,
        )

    def _with_code(
        self, problems: Sequence[MathProblem], journal: Journal, tick: Progress
    ) -> Evaluation:
        from prefopt.evals.code import GREEDY_CODE, CodeSettings, evaluate_code
        from prefopt.sandbox.sandbox import Sandbox

        limit = self._settings.max_new_tokens
        solving = replace(GREEDY_CODE, max_new_tokens=limit)
        unsafe = self._settings.unsafe_local_execution
        with Sandbox(unsafe_local_execution=unsafe) as sandbox:
            return evaluate_code(
                self._generator,
                problems,
                self._grade,
                sandbox,
                settings=CodeSettings(self._style.system, solving),
                journal=journal,
                progress=tick,
            )

    def _grade(self, pairs: Sequence[tuple[MathProblem, str]]) -> Sequence[Verdict]:
        items = [GradeItem(problem.question, problem.answer, text) for problem, text in pairs]
        with counted("grading") as tick:
            return self._grader.grade(items, progress=tick)

    def _facts(self, file: Path, target: Target) -> dict[str, JsonValue]:
        """What decided the numbers."""
        settings = self._settings
        server = settings.server
        return {
            "target": target.model if server is None else server.model,
            "server": None if server is None else server.url,
            "generator": self._generator.identity,
            "style": self._style.name,
            "grader": settings.grader,
            "code": settings.code,
            "max_new_tokens": settings.max_new_tokens,
            "limit": settings.limit,
            "dtype": settings.dtype if server is None else None,
            "problems": str(file),
            "problems_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
