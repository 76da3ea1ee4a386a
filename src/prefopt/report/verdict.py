"""What the evaluations of several runs say, in words: which run is the starting point, what changed, what is noise.

The runs' evaluations are compared as if their problems were drawn independently. On the same problems this
overstates the noise, so that a difference called real is real.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from prefopt.report.folder import Evaluation, Run, number
from prefopt.report.numerals import count, decimal, interval, percent, plural, points
from prefopt.report.objectives import objective_words
from prefopt.report.series import change


class Difference(NamedTuple):
    """`after - before` of one metric with its 95% interval."""

    value: float
    low: float | None
    high: float | None
    proportion: bool

    @property
    def certain(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and self.low * self.high > 0

    def words(self) -> str:
        """`+22.8 points (+17.4 to +28.0)`."""
        show = points if self.proportion else _signed
        text = show(self.value) + (" points" if self.proportion else "")
        if self.low is None or self.high is None:
            return text
        return f"{text} ({show(self.low)} to {show(self.high)})"


def find_baseline(runs: Sequence[Run]) -> Run | None:
    """The evaluated run that the others started from, if there is one.

    It is the run whose folder, or a folder inside it, another run names as its model; failing that, the first
    run without training curves when other runs have some.
    """
    evaluated = [run for run in runs if run.evaluation is not None]
    for run in evaluated:
        if any(_starts_from(other, run) for other in runs if other is not run):
            return run
    if any(run.trained for run in runs):
        return next((run for run in evaluated if not run.trained), None)
    return None


def difference(after: Evaluation, before: Evaluation) -> Difference | None:
    """The difference with its 95% interval; None when metric or split differ.

    The interval joins the two single ones: ``d - sqrt((a - a_low)^2 + (b_high - b)^2)`` and
    ``d + sqrt((a_high - a)^2 + (b - b_low)^2)`` (Newcombe 1998, Statistics in Medicine 17, method 10, which has
    Wilson intervals here). It is missing when one of the two is.
    """
    if after.subject != before.subject:
        return None
    value = after.value - before.value
    proportion = after.proportion and before.proportion
    if None in (after.low, after.high, before.low, before.high):
        return Difference(value, None, None, proportion)
    below = math.hypot(after.value - (after.low or 0.0), (before.high or 0.0) - before.value)
    above = math.hypot((after.high or 0.0) - after.value, before.value - (before.low or 0.0))
    return Difference(value, value - below, value + above, proportion)


def verdict(runs: Sequence[Run], baseline: Run | None) -> list[str]:
    """Sentences, the most important first: each trained run against the baseline, then the runs among themselves."""
    trained = [run for run in runs if run is not baseline and run.evaluation is not None]
    sentences = [_outcome(run, baseline) for run in trained]
    sentences.extend(_contest(trained))
    sentences.extend(_training(run) for run in runs if run.trained and run.evaluation is None)
    if not sentences and baseline is not None and baseline.evaluation is not None:
        sentences.append(f"{baseline.name}: {value_words(baseline.evaluation)}.")
    return sentences or ["None of these runs has been trained or evaluated yet."]


def recipe_words(run: Run) -> str:
    """What was trained on what: `dpo, 360 pairs from pairs.jsonl, 90 steps, learning rate 1e-05, beta 0.3`.

    Where the objectives are not the method's own, they follow it: `dpo with 0.8 dpo + sft, ...`.
    """
    settings = run.settings
    words = [str(settings["method"])] if settings.get("method") else []
    words.extend([objectives] if (objectives := objective_words(run)) else [])
    parts = [" with ".join(words)] if words else []
    pairs, steps = number(run.plan, "pairs"), _last_step(run)
    source = settings.get("train_file") or settings.get("dataset_name")
    origin = f" from {PurePath(source).name}" if isinstance(source, str) else ""
    if pairs is not None:
        parts.append(plural(pairs, "pair") + origin)
    elif origin:
        parts.append(origin.strip())
    if steps is not None:
        parts.append(plural(steps, "step"))
    for key, words in (("learning_rate", "learning rate"), ("beta", "beta")):
        if settings.get(key) is not None:
            parts.append(f"{words} {settings[key]}")
    return ", ".join(parts)


def value_words(evaluation: Evaluation) -> str:
    """`accuracy on test is 84.0% (95% interval 80.5–87.0%)`."""
    span = interval(evaluation.low, evaluation.high, proportion=evaluation.proportion)
    tail = "" if evaluation.low is None or evaluation.high is None else f" (95% interval {span})"
    return f"{evaluation.subject} is {show_value(evaluation)}{tail}"


def show_value(evaluation: Evaluation) -> str:
    """The value as a percentage when it is a share of items, as a decimal otherwise."""
    return percent(evaluation.value) if evaluation.proportion else decimal(evaluation.value)


def _outcome(run: Run, baseline: Run | None) -> str:
    after = run.evaluation
    if after is None:
        raise ValueError(f"run {run.name} has no evaluation")
    before = baseline.evaluation if baseline else None
    moved = difference(after, before) if before else None
    if before is None or moved is None:
        return f"{run.name}: {value_words(after)}."
    verb = "moved" if not moved.certain else "raised" if moved.value > 0 else "lowered"
    span = interval(after.low, after.high, proportion=after.proportion)
    shown = "" if after.low is None else f" (95% interval {span})"
    text = (
        f"{run.name}{_effort(run)} {verb} {after.subject} from {show_value(before)} to {show_value(after)}{shown}: "
        f"{moved.words()}"
    )
    doubt = f", which {_evidence(after)} cannot tell from no change" if not moved.certain else ""
    return f"{text}{doubt}."


def _effort(run: Run) -> str:
    """` (simpo, 360 pairs, 90 steps)`, as far as it is known; the objectives where they are not the method's own."""
    pairs, steps = number(run.plan, "pairs"), _last_step(run)
    parts = [objectives] if (objectives := objective_words(run)) else []
    parts.extend([plural(pairs, "pair")] if pairs is not None else [])
    parts.extend([plural(steps, "step")] if steps is not None else [])
    return f" ({', '.join(parts)})" if parts else ""


def _contest(runs: Sequence[Run]) -> list[str]:
    """Whether the highest and the lowest of the trained runs can be told apart."""
    ranked = sorted(
        ((run.evaluation, run.name) for run in runs if run.evaluation is not None),
        key=lambda entry: entry[0].value,
    )
    subjects = {evaluation.subject for evaluation, _ in ranked}
    if len(ranked) < 2 or len(subjects) != 1:
        return []
    (lowest, low_name), (highest, high_name) = ranked[0], ranked[-1]
    gap = difference(highest, lowest)
    if gap is None or gap.low is None:
        return []
    if gap.certain:
        return [f"{high_name} ends above {low_name}: {gap.words()}."]
    names = f"{high_name} and {low_name}" if len(ranked) == 2 else f"The {len(ranked)} trained runs"
    return [
        f"{names} are level: {gap.words()} between them is within the noise of {_evidence(highest)}."
    ]


def _training(run: Run) -> str:
    loss, accuracy = (change(run.series.get(key)) for key in ("loss", "rewards/accuracies"))
    steps = _last_step(run)
    objectives, effort = objective_words(run), f" for {plural(steps, 'step')}" if steps else ""
    facts = [
        f"{run.name} was trained{f' with {objectives}' if objectives else ''}{effort}",
    ]
    if loss is not None:
        facts.append(f"loss went from {decimal(loss.start)} to {decimal(loss.end)}")
    if accuracy is not None:
        facts.append(
            f"training pairs in the right order from {percent(accuracy.start)} to {percent(accuracy.end)}"
        )
    return "; ".join(facts) + ". It has no evaluation, so nothing is said about held-out problems."


def _starts_from(run: Run, other: Run) -> bool:
    model = run.settings.get("model_name_or_path")
    if not isinstance(model, str) or not model:
        return False
    start, folder = run.path.parent.joinpath(model).resolve(), other.path.resolve()
    here = Path.cwd().joinpath(model).resolve()
    return any(folder == path or folder in path.parents for path in (start, here))


def _last_step(run: Run) -> int | None:
    planned = number(run.plan, "steps")
    reached = [int(series.steps[-1]) for series in run.series.values() if len(series.steps)]
    return max(reached) if reached else None if planned is None else int(planned)


def _evidence(evaluation: Evaluation) -> str:
    return f"{count(evaluation.total)} items" if evaluation.total else "this evaluation"


def _signed(value: float) -> str:
    return decimal(value, signed=True)
