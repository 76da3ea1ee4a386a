"""Remarks on what the objective did: the order of the pairs, the rewards of both sides, and whether anything moved."""

from __future__ import annotations

from prefopt.report.folder import Run
from prefopt.report.numerals import decimal, percent, plural
from prefopt.report.objectives import rewards_of
from prefopt.report.remark import Remark, move_words
from prefopt.report.series import Change, change

SATURATED_ACCURACY = 0.995
SATURATED_LOSS = 0.05
UNMOVED_LOSS = 0.01
"""nats"""


def no_gradient(run: Run) -> Remark | None:
    """A gradient of exactly 0 in every logged line."""
    if not _still(run):
        return None
    ties = change(run.series.get("ties"))
    tied = ties is not None and ties.start == ties.end == 1
    lines = len(run.series["grad_norm"].values)
    where = f"all {plural(lines, 'logged line')}" if lines > 1 else "the only logged line"
    why, advice = (_TIED, _UNTIE) if tied else (_FLAT, _BEND)
    return Remark(
        "serious",
        "The loss has no gradient",
        f"grad_norm is 0 in {where}: there was nothing to learn from. {why}",
        advice,
    )


def wrong_order(run: Run) -> Remark | None:
    """Fewer than half of the training pairs in the right order."""
    accuracy = change(run.series.get("rewards/accuracies"))
    if accuracy is None or accuracy.end >= 0.5 or _still(run):
        return None
    if rewards_of(run).zero == "none":
        return _likelier_rejected(accuracy)
    below = accuracy.end < 0.5 - 2 * accuracy.error
    return Remark(
        "serious" if below else "warning",
        "Training ends below chance" if below else "Training ends no better than chance",
        f"At the end {percent(accuracy.end)} of the training pairs are in the right order; tossing a coin gives "
        f"50%.",
        "Check that chosen and rejected are not swapped in the data, then that the learning rate is large enough "
        "for the loss to fall.",
    )


def _likelier_rejected(accuracy: Change) -> Remark:
    """Without a reference the pairs start in whatever order the starting model has them, not at chance."""
    return Remark(
        "serious" if accuracy.fell else "warning",
        "Most rejected responses still have the higher reward",
        f"{percent(accuracy.end)} of the training pairs are in the right order at the end, {percent(accuracy.start)} "
        f"at the start; without a reference the start depends on the starting model.",
        "Check that chosen and rejected are not swapped in the data."
        if accuracy.fell
        else "Train for longer or with a higher learning rate; if nothing moves, check that chosen and rejected are "
        "not swapped in the data.",
    )


def displacement(run: Run) -> Remark | None:
    """Likelihood displacement: chosen and rejected responses both became less likely.

    Judged by the rewards where they are logged: those of most objectives compare with the reference pair by pair,
    whereas plain log-probabilities also move with the length of the pairs that happen to be in a batch.
    """
    kind = "rewards" if "rewards/chosen" in run.series else "logps"
    chosen, rejected = (change(run.series.get(f"{kind}/{side}")) for side in ("chosen", "rejected"))
    if chosen is None or rejected is None or not (chosen.fell and rejected.fell):
        return None
    parts = [
        f"{move_words(f'{kind}/chosen', chosen)} and {move_words(f'{kind}/rejected', rejected)}"
    ]
    if kind == "rewards":
        logps = [
            (name, change(run.series.get(name))) for name in ("logps/chosen", "logps/rejected")
        ]
        known = [move_words(name, moved) + " nats" for name, moved in logps if moved is not None]
        beta = rewards_of(run).beta
        if beta:
            nats = [decimal(-moved.amount / beta) for moved in (chosen, rejected)]
            parts.append(
                f"at beta {beta:g} the chosen responses lost {nats[0]} and the rejected {nats[1]} nats each"
            )
        parts.extend([" and ".join(known)] if known else [])
    further = rejected.amount < chosen.amount
    grew = " The margin grew only because the rejected responses fell further." if further else ""
    anchor = "" if rewards_of(run).zero == "none" else "a larger beta, "
    return Remark(
        "warning",
        "Chosen responses became less likely too (likelihood displacement)",
        f"{'; '.join(parts)}.{grew}",
        f"A little of this is usual. If the evaluation falls as well: a lower learning rate, fewer steps, {anchor}"
        "or a supervised term on the chosen responses (sft as a further loss_type).",
    )


def saturated(run: Run) -> Remark | None:
    """All pairs in the right order and almost no loss left."""
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


def unmoved(run: Run) -> Remark | None:
    """An accuracy around chance and a loss that stays where it was."""
    loss, accuracy = change(run.series.get("loss")), change(run.series.get("rewards/accuracies"))
    if loss is None or accuracy is None or not 0.5 <= accuracy.end < 0.6 or _still(run):
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


def _still(run: Run) -> bool:
    norm = run.series.get("grad_norm")
    return norm is not None and len(norm.values) > 0 and not norm.values.any()


_TIED = (
    "ties is 1 throughout: both responses of every pair have the same score, and such a pair has neither loss nor "
    "gradient under offset log."
)
_UNTIE = (
    "Check that the scores of chosen and rejected responses are read from the right columns. With on_ties: drop such "
    "pairs are left out; with offset: difference, or with a delta_min, they are trained on."
)
_FLAT = "Either the loss is flat where training starts, or nothing that it depends on is trained."
_BEND = (
    "Look for pairs that the objective leaves alone (equal scores, a margin that is reached already), weights of 0 in "
    "the data, and a model whose parameters are all frozen."
)
