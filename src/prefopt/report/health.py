"""Remarks on a finished run: what its curves show that a glance at the loss does not, and what to try.

Every remark quotes the numbers it rests on. Start and end of a curve are the means of its first and last
tenth (`series.change`), and a rise or fall counts only beyond two standard errors of the logged lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prefopt.report.folder import Evaluation, JsonObject, Run, number
from prefopt.report.numerals import count, decimal, percent, plural
from prefopt.report.remark import Level, Remark, move_words
from prefopt.report.rewards import displacement, no_gradient, saturated, unmoved, wrong_order
from prefopt.report.series import change, smooth
from prefopt.report.verdict import difference, show_value

NOISY_SCATTER = 0.12
"""Standard deviation of logged accuracies around their moving average: one line of about 17 pairs at 50%."""
LENGTH_DRIFT = 0.2
LOST_ROWS = 0.1


def examine(run: Run, baseline: Evaluation | None = None) -> list[Remark]:
    """The remarks on a run, the serious ones first; `baseline` is the evaluation of its starting point."""
    found = [remark for check in _CHECKS if (remark := check(run)) is not None]
    found.extend(
        _lost_rows(split, ledger) for split, ledger in run.ledgers.items() if _loses(ledger)
    )
    worse = _worse(run, baseline)
    found.extend([worse] if worse else [])
    found.extend(
        Remark("note", "Part of the run folder could not be read", text) for text in run.unread
    )
    order: Sequence[Level] = ("serious", "warning", "note")
    if run.trained and not any(remark.level in ("serious", "warning") for remark in found):
        found.append(_sound(run))
        order = ("good", *order)
    return sorted(found, key=lambda remark: order.index(remark.level))


def _not_finite(run: Run) -> Remark | None:
    for column in ("loss", "grad_norm", "eval_loss"):
        series = run.series.get(column)
        if series is None:
            continue
        bad = np.flatnonzero(~np.isfinite(series.values))
        if len(bad):
            return Remark(
                "serious",
                f"{column} is not finite",
                f"{column} is not a finite number in {count(len(bad))} of {plural(len(series.values), 'line')}, "
                f"first at step {count(float(series.steps[int(bad[0])]))}.",
                "Start again from the last checkpoint before that step with a lower learning rate, or with "
                "float32 where the run used float16.",
            )
    return None


def _overfit(run: Run) -> Remark | None:
    train, held_out = run.series.get("loss"), run.series.get("eval_loss")
    if train is None or held_out is None or len(held_out.values) < 3:
        return None
    finite = np.where(np.isfinite(held_out.values), held_out.values, np.inf)
    best, last, fall = int(finite.argmin()), float(finite[-1]), change(train)
    if fall is None or not fall.fell or not last - finite[best] > 0.05 * abs(finite[best]):
        return None
    return Remark(
        "warning",
        "The evaluation loss rises again",
        f"eval_loss was lowest at step {count(held_out.steps[best])} ({decimal(float(finite[best]))}) and ends at "
        f"{decimal(last)}, while the training loss went on from {decimal(fall.start)} to {decimal(fall.end)}.",
        f"Use the checkpoint nearest to step {count(held_out.steps[best])}, or train for fewer steps.",
    )


def _noisy(run: Run) -> Remark | None:
    series = run.series.get("rewards/accuracies")
    if series is None or len(series.values) < 10:
        return None
    values = series.values[np.isfinite(series.values)]
    if len(values) < 10:
        return None
    neighbours = float(np.sqrt(np.mean(np.diff(values) ** 2) / 2))
    if neighbours <= NOISY_SCATTER:
        return None
    middle = float(np.clip(smooth(values).mean(), 0.05, 0.95))
    pairs = max(1, round(middle * (1 - middle) / neighbours**2))
    batch = number(run.plan, "batch_size")
    known = f" (batch size {count(batch)})" if batch else ""
    return Remark(
        "note",
        "The accuracy curve is mostly noise",
        f"From one logged line to the next rewards/accuracies scatters by ±{decimal(neighbours)}, as if a line "
        f"covered about {plural(pairs, 'pair')}{known}; read the thick line, not single values.",
        "Log less often (logging_steps) or use larger batches; training itself is not affected by logging.",
    )


def _length_drift(run: Run) -> Remark | None:
    for column, series in run.series.items():
        moved = change(series)
        if "length" not in column or column.startswith("eval_") or moved is None or not moved.start:
            continue
        share = moved.amount / moved.start
        if abs(share) > LENGTH_DRIFT and (moved.rose or moved.fell):
            return Remark(
                "warning",
                "The responses change in length",
                f"{move_words(column, moved)} ({'+' if share > 0 else '−'}{percent(abs(share), places=0)}).",
                "Check whether chosen responses are systematically longer or shorter than rejected ones; a "
                "length-normalised objective or length-matched pairs remove that shortcut.",
            )
    return None


def _loses(ledger: JsonObject) -> bool:
    read, dropped = number(ledger, "read"), number(ledger, "dropped")
    return bool(read) and (dropped or 0.0) > LOST_ROWS * (read or 0.0)


def _lost_rows(split: str, ledger: JsonObject) -> Remark:
    read, dropped = number(ledger, "read") or 0.0, number(ledger, "dropped") or 0.0
    reasons = ledger.get("reasons")
    counts = (
        {key: number(reasons, key) or 0.0 for key in reasons} if isinstance(reasons, dict) else {}
    )
    most = max(counts, key=lambda key: counts[key], default="")
    why = (
        f'; the most frequent reason on record is "{most}" ({count(counts[most])})' if most else ""
    )
    return Remark(
        "warning",
        f"Many {split} rows were dropped",
        f"{count(dropped)} of {plural(read, 'row')} ({percent(dropped / read)}) were dropped{why}.",
        "See the ledger below for the rows; overlong rows can be kept with a larger max_length.",
    )


def _worse(run: Run, baseline: Evaluation | None) -> Remark | None:
    """For metrics where more is better by their name; the others are left to the reader."""
    after = run.evaluation
    if after is None or baseline is None or after is baseline or "accuracy" not in after.metric:
        return None
    moved = difference(after, baseline)
    if moved is None or not moved.certain or moved.value > 0:
        return None
    return Remark(
        "serious",
        "The model became worse",
        f"{after.subject} fell from {show_value(baseline)} to {show_value(after)}: {moved.words()}.",
        "Lower the learning rate or stop earlier, and look at the pairs: they may not show what is being measured.",
    )


def _sound(run: Run) -> Remark:
    loss = run.series.get("loss")
    facts = [f"the loss is finite in all {plural(len(loss.values), 'logged line')}"] if loss else []
    chosen = change(run.series.get("rewards/chosen"))
    if chosen is not None and not chosen.fell:
        facts.append(
            f"the chosen responses did not become less likely (rewards/chosen ends at {decimal(chosen.end)})"
        )
    accuracy = change(run.series.get("rewards/accuracies"))
    if accuracy is not None:
        facts.append(
            f"{percent(accuracy.end)} of the training pairs are in the right order at the end"
        )
    text = "; ".join(facts)
    return Remark(
        "good", "No sign of trouble in the curves", f"{text[:1].upper()}{text[1:]}." if text else ""
    )


_CHECKS: tuple[Callable[[Run], Remark | None], ...] = (
    _not_finite,
    no_gradient,
    wrong_order,
    displacement,
    saturated,
    unmoved,
    _overfit,
    _noisy,
    _length_drift,
)
