"""Remarks on a finished run: what its curves show that a glance at the loss does not, and what to try.

Every remark quotes the numbers it rests on. Start and end of a curve are the means of its first and last
tenth (`series.change`), and a rise or fall counts only beyond two standard errors of the logged lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from prefopt.report.folder import Evaluation, JsonObject, Run, number
from prefopt.report.numerals import count, decimal, percent, plural
from prefopt.report.series import Change, change, smooth
from prefopt.report.verdict import difference, show_value

Level = Literal["serious", "warning", "note", "good"]

SATURATED_ACCURACY = 0.995
SATURATED_LOSS = 0.05
NOISY_SCATTER = 0.12
"""Standard deviation of logged accuracies around their moving average: one line of about 17 pairs at 50%."""
LENGTH_DRIFT = 0.2
LOST_ROWS = 0.1
UNMOVED_LOSS = 0.01
"""nats"""


class Remark(NamedTuple):
    """One observation."""

    level: Level
    title: str
    text: str
    """What was seen, with numbers."""
    advice: str = ""
    """What to try; empty where nothing needs doing."""


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


def _wrong_order(run: Run) -> Remark | None:
    accuracy = change(run.series.get("rewards/accuracies"))
    if accuracy is None or accuracy.end >= 0.5:
        return None
    below = accuracy.end < 0.5 - 2 * accuracy.error
    return Remark(
        "serious" if below else "warning",
        "Training ends below chance" if below else "Training ends no better than chance",
        f"At the end {percent(accuracy.end)} of the training pairs are in the right order; tossing a coin gives "
        f"50%.",
        "Check that chosen and rejected are not swapped in the data, then that the learning rate is large enough "
        "for the loss to fall.",
    )


def _displacement(run: Run) -> Remark | None:
    """Likelihood displacement: chosen and rejected responses both became less likely.

    Judged by the rewards where they are logged: they compare with the reference pair by pair, whereas the plain
    log-probabilities also move with the length of the pairs that happen to be in a batch.
    """
    kind = "rewards" if "rewards/chosen" in run.series else "logps"
    chosen, rejected = (change(run.series.get(f"{kind}/{side}")) for side in ("chosen", "rejected"))
    if chosen is None or rejected is None or not (chosen.fell and rejected.fell):
        return None
    parts = [f"{_move(f'{kind}/chosen', chosen)} and {_move(f'{kind}/rejected', rejected)}"]
    if kind == "rewards":
        logps = [
            (name, change(run.series.get(name))) for name in ("logps/chosen", "logps/rejected")
        ]
        known = [_move(name, moved) + " nats" for name, moved in logps if moved is not None]
        beta = number(run.settings, "beta")
        if beta:
            nats = [decimal(-moved.amount / beta) for moved in (chosen, rejected)]
            parts.append(
                f"at beta {beta:g} the chosen responses lost {nats[0]} and the rejected {nats[1]} nats each"
            )
        parts.extend([" and ".join(known)] if known else [])
    further = rejected.amount < chosen.amount
    grew = " The margin grew only because the rejected responses fell further." if further else ""
    return Remark(
        "warning",
        "Chosen responses became less likely too (likelihood displacement)",
        f"{'; '.join(parts)}.{grew}",
        "A little of this is usual. If the evaluation falls as well: a lower learning rate, fewer steps, a larger "
        "beta, or a supervised term on the chosen responses.",
    )


def _saturated(run: Run) -> Remark | None:
    loss, accuracy = change(run.series.get("loss")), change(run.series.get("rewards/accuracies"))
    margin = change(run.series.get("rewards/margins"))
    if loss is None or accuracy is None:
        return None
    if accuracy.end < SATURATED_ACCURACY or loss.end >= SATURATED_LOSS:
        return None
    known = f" and the margin {decimal(margin.end)}" if margin else ""
    return Remark(
        "warning",
        "The margins are saturated",
        f"At the end {percent(accuracy.end)} of the training pairs are in the right order, the loss is "
        f"{decimal(loss.end)}{known}: the pairs have nothing left to teach, further steps only push them apart.",
        "Stop earlier, lower the learning rate, or add harder pairs.",
    )


def _unmoved(run: Run) -> Remark | None:
    loss, accuracy = change(run.series.get("loss")), change(run.series.get("rewards/accuracies"))
    if loss is None or accuracy is None or not 0.5 <= accuracy.end < 0.6:
        return None
    if abs(loss.amount) >= UNMOVED_LOSS:
        return None
    return Remark(
        "warning",
        "The policy hardly moved",
        f"The loss went from {decimal(loss.start)} to {decimal(loss.end)} and {percent(accuracy.end)} of the "
        f"training pairs are in the right order.",
        "Raise the learning rate or train for longer.",
    )


def _overfit(run: Run) -> Remark | None:
    train, held_out = run.series.get("loss"), run.series.get("eval_loss")
    if train is None or held_out is None or len(held_out.values) < 3:
        return None
    finite = np.where(np.isfinite(held_out.values), held_out.values, np.inf)
    best, last, fall = int(finite.argmin()), float(finite[-1]), change(train)
    if fall is None or not fall.fell or not last > finite[best] * 1.05:
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
                f"{_move(column, moved)} ({'+' if share > 0 else '−'}{percent(abs(share), places=0)}).",
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


def _move(name: str, moved: Change) -> str:
    if math.isclose(moved.start, moved.end, rel_tol=1e-9, abs_tol=1e-12):
        return f"{name} stayed at {decimal(moved.end)}"
    verb = "fell" if moved.amount < 0 else "rose"
    return f"{name} {verb} by {decimal(abs(moved.amount))} ({decimal(moved.start)} → {decimal(moved.end)})"


_CHECKS: tuple[Callable[[Run], Remark | None], ...] = (
    _not_finite,
    _wrong_order,
    _displacement,
    _saturated,
    _unmoved,
    _overfit,
    _noisy,
    _length_drift,
)
