"""Earlier results of token credit in a folder: whether new ones may take their place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from prefopt.errors import ConfigError, StorageError
from prefopt.progress import say
from prefopt.values import JsonValue

PAGE, ROWS, NUMBERS = "credit.html", "credit.jsonl", "credit.json"


def require_writable(folder: Path) -> None:
    """Nothing, if files can be written there; the folder is not made yet.

    Raises:
        StorageError: it is no folder, or may not be written.
    """
    nearest = folder
    while not nearest.exists() and nearest.parent != nearest:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise StorageError(f"{nearest}: is no folder; choose another --output")
    if not os.access(nearest, os.W_OK):
        raise StorageError(f"{nearest}: no permission to write; choose another --output")


def require_replaceable(
    folder: Path, settings: Mapping[str, JsonValue], *, overwrite: bool
) -> None:
    """Nothing, if the folder holds no results, or some of the same settings; others only with `overwrite`.

    Raises:
        ConfigError: it holds results of other settings, and `overwrite` is not set; the message says which differ.
    """
    held = next((name for name in (NUMBERS, ROWS, PAGE) if (folder / name).exists()), None)
    if held is None:
        return
    before = _settings(folder / NUMBERS)
    changed = "" if before is None else _changed(before, settings)
    if before is not None and not changed:
        return
    what = f"{held} of other settings"
    what += f" (then / now: {changed})" if changed else ", which it does not say"
    if not overwrite:
        raise ConfigError(
            f"{folder}: holds {what}; give --output another folder, or replace it with --overwrite"
        )
    say(f"{folder}: replaces {what}")


def _settings(path: Path) -> Mapping[str, JsonValue] | None:
    """The settings of earlier results; None where they are not to be read."""
    try:
        facts: JsonValue = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = facts.get("settings") if isinstance(facts, dict) else None
    return found if isinstance(found, dict) else None


def _changed(before: Mapping[str, JsonValue], after: Mapping[str, JsonValue]) -> str:
    keys = [*after, *(key for key in before if key not in after)]
    return "; ".join(
        f"{key} {json.dumps(before.get(key))} / {json.dumps(after.get(key))}"
        for key in keys
        if before.get(key) != after.get(key)
    )
