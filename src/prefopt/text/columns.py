"""What the columns of a data set mean: one decision per file, from the columns of its first rows.

The names are those that users bring from TRL, LLaMA-Factory, ms-swift, OpenRLHF, NeMo, Axolotl, Argilla,
UltraFeedback, Together/OpenAI, Step-DPO and plain question/answer sets. Reading the values is in `rows.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from prefopt.errors import ConfigError, RecordError
from prefopt.text.files import Row, RowSource
from prefopt.text.nested import STAGE
from prefopt.values import JsonValue


class Shape(StrEnum):
    """How responses and preferences lie in a row."""

    NATIVE = "native"
    """What `write_preferences` writes."""
    PAIR = "pair"
    """`chosen` and `rejected`, and maybe `gold`."""
    LIST = "list"
    """`responses` with parallel `scores` or `ranks`."""
    ITEMS = "items"
    """A list of objects, each with a response and its score or rank."""
    LABEL = "label"
    """One response and whether it is desirable."""
    SUPERVISED = "supervised"
    """One response to imitate."""


class Recognised(NamedTuple):
    """The meaning of a file's columns."""

    shape: Shape
    columns: Mapping[str, str]
    """role -> column."""
    mapping: Mapping[str, str]
    """column -> role, for every column of the first rows; `meta` and `not used` are roles too."""


ALIASES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "idx", "uid"),
    "prompt": ("prompt", "instruction", "question", "query", "problem", "input", "context"),
    "messages": ("messages", "conversations", "conversation"),
    "chosen": (
        "chosen",
        "chosen_response",
        "response_chosen",
        "preferred_output",
        "chosen_messages",
    ),
    "rejected": (
        "rejected",
        "rejected_response",
        "response_rejected",
        "non_preferred_output",
        "rejected_messages",
    ),
    "gold": ("gold", "gold_response", "gold_completion"),
    "responses": ("responses", "all_generated_responses", "generations"),
    "items": ("completions", "responses", "answers"),
    "response": ("completion", "response", "output", "solution", "answer"),
    "text": ("text",),
    "label": ("label", "kto_tag"),
    "scores": ("scores", "all_rm_scores", "rewards", "ratings"),
    "ranks": ("ranks",),
    "score_chosen": (
        "score_chosen",
        "chosen_score",
        "chosen_rating",
        "chosen-rating",
        "rating_chosen",
    ),
    "score_rejected": (
        "score_rejected",
        "rejected_score",
        "rejected_rating",
        "rejected-rating",
        "rating_rejected",
    ),
    "margin": ("margin",),
    "weight": ("weight",),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "input": ("input",),
    "prefix": ("initial_reason_steps", "prefix"),
    "ends": ("ends",),
    "tools": ("tools",),
}
"""Role -> names of columns that play it, the first present one wins."""

_NOT_USED = {
    "ref_chosen_logps",
    "ref_rejected_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
}
"""Cached log-probabilities of other trainers: they do not say of which weights, tokens and precision."""

_MEDIA = {"image", "images", "video", "videos", "audio", "audios"}

_PARTS: Mapping[Shape, tuple[str, ...]] = {
    Shape.PAIR: (
        "chosen",
        "rejected",
        "gold",
        "score_chosen",
        "score_rejected",
        "margin",
        "weight",
    ),
    Shape.LIST: ("responses", "scores", "ranks"),
    Shape.ITEMS: ("items",),
    Shape.LABEL: ("response", "label"),
    Shape.SUPERVISED: ("response",),
}
_NATIVE_KEYS = {"id", "prompt", "prefix", "responses", "pairs", "meta"}
_COMMON = ("prompt", "messages", "system", "history", "input", "prefix", "ends", "tools")
_FIRST_ROWS = 100


def recognise(
    source: RowSource,
    columns: Mapping[str, str] | None = None,
    *,
    optional: Collection[str] = (),
) -> Recognised:
    """What the columns of `source` mean, decided from its first 100 rows.

    Args:
        source: the rows.
        columns: `{role: column}` of the user, which wins over every name; the role `meta` (several columns
            separated by commas) keeps columns from being recognised at all, and so does `stage`, which curricula
            read there, also from the `meta` of records of our own.
        optional: roles of `columns` whose column may be missing.

    Raises:
        ConfigError: `columns` names an unknown role.
        RecordError: `columns` names a missing column, or no known shape fits; the message lists the columns.
    """
    first = [row.values for row in source.rows[:_FIRST_ROWS]]
    names = list(dict.fromkeys(name for row in first for name in row))
    wanted = {r: c for r, c in (columns or {}).items() if r not in optional or c in names}
    chosen = _check_mapping(wanted, names, _noted(first), source.name)
    free = [name for name in names if name not in chosen.values() and name not in _hidden(columns)]
    roles = dict(chosen)
    samples = {name: _sample(first, name) for name in names}
    shape = _find_shape(roles, free, samples)
    if shape is None:
        raise RecordError(_unrecognised(source, names))
    _refuse_media(free, source)
    if "gold" in chosen and shape is not Shape.PAIR:
        raise RecordError(
            f"columns.gold: a gold response goes with a chosen and a rejected one, and {source.name} has "
            f"{', '.join(names)}; name those too, or leave columns.gold out"
        )
    if shape is Shape.NATIVE:
        return Recognised(shape, {}, dict.fromkeys(names, "native"))
    for role in ("id", *_COMMON, *_PARTS[shape]):
        _assign(role, roles, free)
    _settle_prompt(shape, roles)
    if shape is not Shape.PAIR and not {"prompt", "messages", "text"} & set(roles):
        raise RecordError(
            f"{source.rows[0].origin}: no prompt recognised in the columns {', '.join(names)}; "
            "name it with columns.prompt=<column>"
        )
    return Recognised(shape, roles, _explain(names, roles))


def _hidden(columns: Mapping[str, str] | None) -> set[str]:
    hidden = (columns or {}).get("meta", "").split(",")
    return {name.strip() for name in (*hidden, (columns or {}).get(STAGE, ""))}


def _noted(rows: Iterable[Row]) -> list[str]:
    """What the `meta` of records of our own says."""
    notes = (row.get("meta") for row in rows)
    return list(dict.fromkeys(name for note in notes if isinstance(note, dict) for name in note))


def _check_mapping(
    columns: Mapping[str, str], names: list[str], noted: list[str], where: str
) -> dict[str, str]:
    for role, column in columns.items():
        if role not in (*ALIASES, "meta", STAGE):
            near = difflib.get_close_matches(role, [*ALIASES, STAGE], n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(
                f"columns: unknown role '{role}'; {hint}known roles are {', '.join(ALIASES)}, {STAGE} and meta"
            )
        for name in column.split(",") if role == "meta" else [column]:
            there = [*names, *noted] if role == STAGE else names
            if name.strip() not in there:
                near = difflib.get_close_matches(name, there, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(there)}"
                raise RecordError(f"columns.{role}: {where} has no column '{name.strip()}'; {hint}")
    return {role: column for role, column in columns.items() if role not in ("meta", STAGE)}


def _sample(rows: Iterable[Row], name: str) -> JsonValue:
    """The first value of the column that is not null."""
    return next((row[name] for row in rows if row.get(name) is not None), None)


def _find_shape(
    roles: dict[str, str], free: list[str], samples: Mapping[str, JsonValue]
) -> Shape | None:
    """The first shape whose columns are there; assigns the roles that depend on the kind of value."""
    items = _find(("items",), roles, free)
    objects = items is not None and _holds_objects(samples[items])
    if not roles and objects and items == "responses" and _native(samples):
        return Shape.NATIVE
    if _has("rejected", roles, free) and (
        _has("chosen", roles, free) or _has("messages", roles, free)
    ):
        return Shape.PAIR
    if objects and items is not None:
        roles["items"] = items
        return Shape.ITEMS
    if _has("responses", roles, free):
        return Shape.LIST
    if not (
        _has("response", roles, free) or _has("messages", roles, free) or _has("text", roles, free)
    ):
        return None
    if not _has("response", roles, free) and not _has("messages", roles, free):
        _assign("text", roles, free)
        return Shape.SUPERVISED
    return Shape.LABEL if _has("label", roles, free) else Shape.SUPERVISED


def _native(samples: Mapping[str, JsonValue]) -> bool:
    """Whether rows are records of our own: `pairs` say so, or that no column is foreign."""
    needed = {"id", "prompt", "responses"} <= set(samples)
    return needed and ("pairs" in samples or set(samples) <= _NATIVE_KEYS)


def _holds_objects(value: JsonValue) -> bool:
    if isinstance(value, str):  # a CSV cell
        return value.lstrip().startswith("[{")
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _find(wanted: tuple[str, ...], roles: Mapping[str, str], free: list[str]) -> str | None:
    for role in wanted:
        if role in roles:
            return roles[role]
        for name in ALIASES[role]:
            if name in free:
                return name
    return None


def _has(role: str, roles: Mapping[str, str], free: list[str]) -> bool:
    return _find((role,), roles, free) is not None


def _assign(role: str, roles: dict[str, str], free: list[str]) -> None:
    """Give the role its column, unless the column plays another role already."""
    if role in roles:
        return
    name = next((n for n in ALIASES[role] if n in free and n not in roles.values()), None)
    if name is not None:
        roles[role] = name


def _settle_prompt(shape: Shape, roles: dict[str, str]) -> None:
    """Leave one source of the prompt and of the response where a file offers two."""
    if "text" in roles:
        for role in ("prompt", "input", "system", "history"):
            roles.pop(role, None)
    if "prompt" in roles and (shape not in (Shape.LABEL, Shape.SUPERVISED) or "response" in roles):
        roles.pop("messages", None)
    elif "messages" in roles:
        roles.pop("prompt", None)
        roles.pop("response", None)
    if roles.get("input") == roles.get("prompt") or "prompt" not in roles:
        roles.pop("input", None)


def _explain(names: list[str], roles: Mapping[str, str]) -> dict[str, str]:
    by_column = {column: role for role, column in roles.items()}
    return {
        name: by_column.get(name, "not used" if name in _NOT_USED else "meta") for name in names
    }


def _refuse_media(free: list[str], source: RowSource) -> None:
    for name in _MEDIA.intersection(free):
        for row in source.rows:
            if row.values.get(name):
                raise RecordError(
                    f"{row.origin}: column '{name}' holds media, which text training would ignore; "
                    f"remove the column, or keep it unread with columns.meta={name}"
                )


def _unrecognised(source: RowSource, names: list[str]) -> str:
    hint = (
        "; if the first line holds data, add a header line above it, such as prompt,chosen,rejected"
        if source.textual
        else ""
    )
    return (
        f"{source.rows[0].origin}: no responses recognised in the columns {', '.join(names) or '(none)'}; "
        "name them with columns, for example columns.chosen=better columns.rejected=worse "
        f"(roles: chosen + rejected, responses + scores, response, response + label, messages, text){hint}"
    )
