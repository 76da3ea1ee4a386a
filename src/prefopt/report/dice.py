"""What the builds of DICE say in the report: alpha, lengths, margins, repetitions, and the picture of the fit."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prefopt.config import load_recipe
from prefopt.errors import ConfigError, StorageError
from prefopt.report.folder import JsonObject, Run, number
from prefopt.report.numerals import MISSING, decimal, percent

HEADER = (
    "run", "alpha", "before beta", "gap at alpha 0", "gap at alpha", "chosen", "rejected", "margin", "repeated",
)  # fmt: skip


class OwnAnswers(NamedTuple):
    """The build that a run was trained on."""

    run: str
    unit: str
    """Of lengths."""
    cells: list[str]
    """Under `HEADER`; what is missing is a dash."""
    picture: str
    """The length gap over alpha as a `data:` address; empty where alpha was given."""


def own_answers(runs: Sequence[Run]) -> list[OwnAnswers]:
    """One for each run whose build ranked its own answers and is still there, made with the model it started from.

    Where a build with other settings is in its place, the row says so and has no numbers.
    """
    return [found for run in runs if (found := _read(run)) is not None]


def _read(run: Run) -> OwnAnswers | None:
    place = _object(run.settings, "build").get("output_dir")
    if not isinstance(place, str):
        return None
    method = str(run.settings.get("method"))
    folder = Path(place.replace("{method}", method)).expanduser()
    try:
        facts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict) or not isinstance(facts.get("alpha"), dict):
        return None
    started = _object(facts, "models").get("policy")
    if started != run.settings.get("model_name_or_path"):
        return None
    unit = str(_object(facts, "length").get("unit") or MISSING)
    if _is_other(run, folder):
        cells = [
            f"{run.name} (the build there has other settings)",
            *[MISSING] * (len(HEADER) - 1),
        ]
        return OwnAnswers(run.name, unit, cells, "")
    return OwnAnswers(run.name, unit, [run.name, *_cells(facts)], _picture(folder / "alpha.png"))


_OF_BUILDS = (
    "model_name_or_path", "model_revision", "tokenizer_name_or_path", "chat_template", "dtype", "prompt_format",
    "response_separator",
)  # fmt: skip
"""Keys outside the section `build` that decide what is built; so does `max_length` where the section has none."""
_WITHOUT_EFFECT = {"batch_size", "output_dir", "rounds", "later_rounds"}
"""Keys of the section that do not."""


def _is_other(run: Run, folder: Path) -> bool:
    """Whether the build was made with other settings than the run has."""
    try:
        recipe = load_recipe(folder / "build.yaml")
    except (ConfigError, StorageError):
        return False  # an older build, of which nothing else is known
    ours, theirs = _object(run.settings, "build"), _object(recipe, "build")
    keys = (ours.keys() | theirs.keys()) - _WITHOUT_EFFECT
    outside = (*_OF_BUILDS, *(("max_length",) if ours.get("max_length") is None else ()))
    return any(ours.get(key) != theirs.get(key) for key in keys) or any(
        run.settings.get(key) != recipe.get(key) for key in outside
    )


def _cells(facts: JsonObject) -> list[str]:
    alpha, length, margin, samples = (
        _object(facts, key) for key in ("alpha", "length", "margin", "samples")
    )
    return [
        *(_small(number(alpha, key)) for key in ("value", "before_beta")),
        decimal(number(length, "gap_without_alpha"), signed=True),
        decimal(number(length, "gap"), signed=True),
        decimal(number(length, "chosen")),
        decimal(number(length, "rejected")),
        decimal(number(margin, "mean")),
        percent(number(samples, "duplicate_rate")),
    ]


def _small(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"


def _picture(file: Path) -> str:
    try:
        return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    except OSError:
        return ""


def _object(facts: JsonObject, key: str) -> JsonObject:
    value = facts.get(key)
    return value if isinstance(value, dict) else {}
