"""What the objectives of a run's recipe say about its rewards: whose they are, and whether their zero is the reference.

The declarations of the objectives decide, not their names. Runs whose recipe has no `loss_type` were trained with DPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefopt.report.folder import Run, number

if TYPE_CHECKING:
    from prefopt.objectives import Needs

DEFAULT = "dpo"
"""The objective of recipes that name none."""

Zero = Literal["reference", "none", "unknown"]
"""What a reward of 0 means: as likely as under the reference; nothing; this version does not know the objective."""


class Weighed(NamedTuple):
    """One entry of `loss_type` with its entry of `loss_weights`."""

    name: str
    weight: float


class Rewards(NamedTuple):
    """What is known about the logged rewards of a run."""

    objective: str
    """The one that logged them: the first that has rewards of chosen and rejected responses."""
    zero: Zero
    beta: float | None
    """What they are divided by to get sums of log-ratios in nats; None: they are something else."""


def objectives_of(run: Run) -> list[Weighed]:
    """The objectives in the order of the recipe, 1 where there is no weight; empty for recipes without `loss_type`."""
    listed, weights = run.settings.get("loss_type"), run.settings.get("loss_weights")
    names = [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []
    given = (
        weights if isinstance(weights, list) and len(weights) == len(names) else [1] * len(names)
    )
    return [
        Weighed(str(name), float(weight) if isinstance(weight, int | float) else 1.0)
        for name, weight in zip(names, given, strict=True)
    ]


def objective_words(run: Run) -> str:
    """`0.8 dpo + 0.2 bco_pair + sft`; empty where it is the method's own objective alone."""
    listed = objectives_of(run)
    if listed in ([Weighed(name, 1.0)] for name in (DEFAULT, str(run.settings.get("method")))):
        return ""
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in listed)


def rewards_of(run: Run, *, paired: bool = False) -> Rewards:
    """What the rewards of a run are.

    Of several objectives the first that logs rewards of chosen and rejected responses counts, as in training. `paired`:
    the first that takes pairs, whose rewards the samples hold.
    """
    names = [name for name, _ in objectives_of(run)] or [DEFAULT]
    for name in names:
        need = _needs(name)
        if need is None:
            return Rewards(name, "unknown", None)
        if need.view == "pairs" or ("labels" in need.annotations and not paired):
            free = need.view == "pairs" and run.settings.get("reference_free") is True
            zero: Zero = "reference" if need.reference and not free else "none"
            plain = zero == "reference" and need.view == "pairs" and not _bent(name, run)
            return Rewards(name, zero, number(run.settings, "beta") if plain else None)
    return Rewards(names[0], "unknown", None)


def rewards_note(runs: Sequence[Run]) -> str:
    """What the curves of the rewards are, for the runs that have them."""
    sentences = {run.name: _zero_words(rewards_of(run)) for run in runs}
    kind = (
        "Implicit reward" if all(rewards_of(run).zero == "reference" for run in runs) else "Reward"
    )
    return f"{kind} of chosen (solid) and rejected (dashed) responses. {_by_run(sentences)}"


def margin_note(runs: Sequence[Run]) -> str:
    """What the margins of the samples are, for the runs that have them."""
    return _by_run({run.name: _margin_words(rewards_of(run, paired=True)) for run in runs})


def _needs(name: str) -> Needs | None:
    """The declaration of an objective; None for one that this version does not have."""
    from prefopt.objectives import find_objective, needs_of  # torch: not for the summary table

    try:
        return needs_of(find_objective(name))
    except ValueError:
        return None


def _bent(name: str, run: Run) -> bool:
    """Whether a modifier makes rewards something else than beta times the log-ratio to the starting point."""
    from prefopt.objectives import find_objective, parameters_of

    used = {**parameters_of(find_objective(name))}
    used |= {key: value for key, value in run.settings.items() if value is not None}
    return (
        used.get("f_divergence_type") not in (None, "reverse_kl")
        or used.get("ld_alpha") not in (None, 1)
        or used.get("reference") == "moving"
    )


def _zero_words(rewards: Rewards) -> str:
    if rewards.zero == "reference":
        return "Below zero: less likely than under the reference."
    if rewards.zero == "none":
        return f"On the scale of {rewards.objective}, without a reference: zero is not where training started."
    return f"On the scale of {rewards.objective}."


def _margin_words(rewards: Rewards) -> str:
    if rewards.zero == "reference":
        return "The margin says how much further the trained policy raised the chosen response than the rejected one."
    scale = f"on the scale of {rewards.objective}"
    scale += ", without a reference" if rewards.zero == "none" else ""
    return f"The margin is the reward of the chosen minus that of the rejected response, {scale}."


def _by_run(sentences: dict[str, str]) -> str:
    """One sentence where all runs share it; otherwise each with the runs that it is about."""
    different = list(dict.fromkeys(sentences.values()))
    if len(different) < 2:
        return "".join(different)
    return " ".join(
        f"{', '.join(name for name, said in sentences.items() if said == sentence)}: "
        f"{sentence[:1].lower()}{sentence[1:]}"
        for sentence in different
    )
