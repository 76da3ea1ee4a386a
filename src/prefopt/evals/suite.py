"""Evaluating a model on files of problems: what `prefopt eval` does.

Each file becomes one evaluation in one folder: a journal of what the model wrote (an interrupted evaluation goes on
where it stopped, other settings use other rows), then `evaluation-outputs.jsonl` and `evaluation.json`, replaced whole.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prefopt.errors import ConfigError, JudgeError
from prefopt.evals.earlier import (
    Earlier,
    Held,
    read_earlier,
    require_comparable,
    require_replaceable,
)
from prefopt.evals.files import write_evaluation
from prefopt.evals.maths import evaluate_all
from prefopt.evals.outcome import Evaluation, Verdict
from prefopt.evals.settings import EvalSettings, stored
from prefopt.evals.target import (
    Target,
    choose_style,
    find_target,
    find_tokenizer,
    open_local,
    open_server,
)
from prefopt.generate.base import Generator
from prefopt.generate.journal import Journal, Progress
from prefopt.grade.maths import Grader
from prefopt.ledger import Ledger
from prefopt.progress import counted
from prefopt.text.problems import MathProblem, load_problems
from prefopt.text.styles import PromptStyle, find_style, style_names
from prefopt.values import JsonValue

if TYPE_CHECKING:
    from prefopt.sandbox.sandbox import Sandbox

JOURNAL_FILE = "evaluation.sqlite"
DEFAULT_FOLDER = Path("evaluations")
CODE_STYLE = "scdpo"


class Evaluated(NamedTuple):
    """One file's evaluation."""

    evaluation: Evaluation
    folder: Path
    """Where its files are."""
    seconds: float
    """This time; what the journal held cost nothing."""
    remarks: tuple[str, ...]
    """What the file's reader noticed, and whether the number replaces another one."""
    against: Earlier | None = None
    """What it can be compared with, where that was asked for."""


class _ProblemSet(NamedTuple):
    path: Path
    problems: list[MathProblem]
    folder: Path
    remarks: tuple[str, ...]
    against: Earlier | None


class _Place(NamedTuple):
    """What goes into a folder beside the outputs, and what is there now."""

    settings: dict[str, JsonValue]
    held: Held | None


def evaluate_files(
    target: str,
    files: Sequence[str | Path],
    settings: EvalSettings,
    *,
    output: Path | None = None,
    name: str | None = None,
    against: Path | None = None,
    overwrite: bool = False,
) -> list[Evaluated]:
    """The evaluation of a model on each file of problems, written into its folder.

    One file: into `output`; else into the run folder, where the report finds it; else into `evaluations/<name>`.
    Several: into a sub-folder of that for each, named like the file without its ending (`evaluations` in a run folder).
    Everything that can be checked is checked before the model writes anything.

    Args:
        target: a run folder, a model or adapter folder, a hub id, or what to call the model of a server.
        files: of problems, as `prefopt.text.problems.load_problems` reads them.
        settings: how they are put, solved and graded.
        output: folder for the results.
        name: of the model, for tables and the report.
        against: folder of an earlier evaluation of the same problems, for `Evaluated.against`.
        overwrite: whether evaluations with other settings may be replaced; those with equal settings always are.

    Raises:
        ConfigError: an unknown style, grader or device; two files of the same name; a folder holds an evaluation with
            other settings; or the one in `against` is about other problems.
        ModelError: the target cannot be loaded.
        RecordError, StorageError: a file cannot be read; the message names file and line.
        JudgeError: the server cannot be used, or refuses every problem of a file; what was answered is kept.
    """
    found = find_target(target)
    label = name or found.name
    tokenizer = find_tokenizer(found, server=settings.server is not None)
    style = _code_style(settings) if settings.code else choose_style(settings.style, tokenizer)
    folders = _folders(files, found, label, output)
    earlier = [None] * len(files) if against is None else read_earlier(against, _stems(files))
    sets = [_load(*each, style, settings) for each in zip(files, folders, earlier, strict=True)]
    with ExitStack() as stack:
        grader = stack.enter_context(Grader(settings.grader))
        sandbox = stack.enter_context(_open_sandbox(settings)) if settings.code else None
        generator = _open(found, style, settings)
        solver = _Solver(generator, grader, sandbox, style, settings)
        places: list[_Place] = []
        for each in sets:
            facts = stored(
                settings, file=each.path, target=found, style=style, generator=generator.identity
            )
            held = require_replaceable(each.folder, facts, overwrite=overwrite)
            places.append(_Place(facts, held))
        return [
            solver.evaluate(each, label, place) for each, place in zip(sets, places, strict=True)
        ]


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
    stems = _stems(files)
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ConfigError(
            f"two files are called '{twice[0]}', so their results would share a folder; evaluate them one at a time, "
            "each with its own --output"
        )
    if output is None and target.run is not None:
        root /= "evaluations"
    return [root / stem for stem in stems]


def _stems(files: Sequence[str | Path]) -> list[str]:
    return [Path(file).stem for file in files]


def _load(
    file: str | Path,
    folder: Path,
    against: Earlier | None,
    style: PromptStyle,
    settings: EvalSettings,
) -> _ProblemSet:
    ledger = Ledger(str(file))
    problems = load_problems(
        file, style=style, limit=settings.limit, columns=settings.columns, ledger=ledger
    )
    remarks = tuple(ledger.summary()) if ledger.notes else ()
    if against is not None:
        require_comparable(against, problems, str(file))
    return _ProblemSet(Path(file), problems, folder, remarks, against)


def _open(target: Target, style: PromptStyle, settings: EvalSettings) -> Generator:
    if settings.server is not None:
        return open_server(settings.server, style, find_tokenizer(target, server=True))
    return open_local(
        target, device=settings.device, dtype=settings.dtype, batch_size=settings.batch_size
    )


def _open_sandbox(settings: EvalSettings) -> Sandbox:
    """Where programs run, as many at once as solutions are written together."""
    from prefopt.agents.interpreted import ALIVE
    from prefopt.sandbox.sandbox import Sandbox

    return Sandbox(
        settings.limits,
        workers=ALIVE,
        packages=settings.packages,
        unsafe_local_execution=settings.unsafe_local_execution,
    )


class _Solver:
    """What the evaluations of several files share."""

    def __init__(
        self,
        generator: Generator,
        grader: Grader,
        sandbox: Sandbox | None,
        style: PromptStyle,
        settings: EvalSettings,
    ) -> None:
        self._generator = generator
        self._grader = grader
        self._sandbox = sandbox
        self._style = style
        self._settings = settings

    def evaluate(self, problem_set: _ProblemSet, label: str, place: _Place) -> Evaluated:
        """Generate, grade and write one file's evaluation."""
        started = time.monotonic()
        stem, folder = problem_set.path.stem, problem_set.folder
        with Journal(folder / JOURNAL_FILE) as journal, counted(f"{stem}: solutions") as tick:
            if self._sandbox is None:
                found = self._as_text(problem_set.problems, journal, tick)
                self._require_solutions(found, problem_set.path)
            else:
                found = self._with_code(problem_set.problems, self._sandbox, journal, tick)
        named = found._replace(name=label, split=stem, settings=place.settings)
        write_evaluation(named, folder)
        remarks, held = problem_set.remarks, place.held
        if held is not None and held != (named.correct, named.total):
            remarks = (*remarks, f"{stem}: replaces {held.correct}/{held.total}")
        seconds = time.monotonic() - started
        return Evaluated(named, folder, seconds, remarks, problem_set.against)

    def _as_text(
        self, problems: Sequence[MathProblem], journal: Journal, tick: Progress
    ) -> Evaluation:
        return evaluate_all(
            self._generator,
            problems,
            self._grade,
            sampling=self._settings.sampling,
            journal=journal,
            progress=tick,
        )

    def _require_solutions(self, found: Evaluation, file: Path) -> None:
        """Nothing, unless a server refused everything: that says nothing about the model."""
        if self._settings.server is None or found.failed < found.total or not found.total:
            return
        first = found.outputs[0]
        raise JudgeError(
            f"{file}: not one of {found.total:,} problems got a solution, so nothing is written; first '{first.id}': "
            f"{first.output}"
        )

    def _with_code(
        self,
        problems: Sequence[MathProblem],
        sandbox: Sandbox,
        journal: Journal,
        tick: Progress,
    ) -> Evaluation:
        from prefopt.evals.code import GREEDY_CODE, CodeSettings, evaluate_code

        solving = replace(GREEDY_CODE, max_new_tokens=self._settings.max_new_tokens)
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
        solutions = [(problem.question, problem.answers, text) for problem, text in pairs]
        with counted("grading") as tick:
            return self._grader.grade_answers(solutions, progress=tick)
