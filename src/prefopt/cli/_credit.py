"""What `prefopt analyse credit` finds out before it scores: the beta of each policy, and the settings to keep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.cli._data import render_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from prefopt.values import JsonValue

_USUAL = 0.1


def find_betas(
    policies: Sequence[str], names: Sequence[str], given: Sequence[float]
) -> list[float]:
    """The beta of each policy: as given, else as its run folder says, else the usual one; says which and why."""
    from prefopt.progress import say

    if given:
        found = list(given) if len(given) > 1 else [*given] * len(policies)
        reasons = ["as given"] * len(policies)
    else:
        recipes = [_recipe(policy) for policy in policies]
        known = [_beta_of(recipe) for recipe in recipes]
        found = [_USUAL if beta is None else beta for beta in known]
        reasons = [_reason(*pair) for pair in zip(recipes, known, strict=True)]
    for name, beta, reason in zip(names, found, reasons, strict=True):
        say(f"{name}: beta {beta:g} ({reason})")
    return found


def _reason(recipe: Path | None, beta: float | None) -> str:
    if beta is not None:
        return f"of {recipe}"
    where = "it is no run folder" if recipe is None else f"{recipe} names none"
    return f"the usual one, as {where}; give --beta if training used another"


def _recipe(policy: str) -> Path | None:
    """The recipe of a run folder, or of the run folder that a model stands in."""
    path = Path(policy)
    folder = path.parent if path.absolute().name == "model" else path
    return folder / "run.yaml" if (folder / "run.yaml").is_file() else None


def _beta_of(recipe: Path | None) -> float | None:
    from prefopt.config import load_recipe

    value = None if recipe is None else load_recipe(recipe).get("beta")
    return float(value) if isinstance(value, int | float) and value > 0 else None


def stored(
    arguments: argparse.Namespace, names: Sequence[str], betas: Sequence[float]
) -> dict[str, JsonValue]:
    """What decides the results, as `credit.json` keeps it."""
    policies: dict[str, JsonValue] = dict(zip(names, arguments.policy, strict=True))
    return {
        "source": str(arguments.file),
        "reference": str(arguments.reference),
        "policies": policies,
        "beta": list(betas),
        "response": arguments.response,
        "max_rows": arguments.max_rows,
        "split": arguments.split,
        "column": list(arguments.column),
        "render": [str(value) for value in render_settings(arguments)],
        "chat_template": None if arguments.chat_template is None else str(arguments.chat_template),
        "dtype": arguments.dtype,
    }
