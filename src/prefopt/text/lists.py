"""Rows with several responses: the texts, scores and ranks of a list, as they stand in the data."""

from __future__ import annotations

from typing import NamedTuple

from prefopt.errors import RecordError
from prefopt.text.cells import Cells
from prefopt.text.prompts import Content
from prefopt.values import JsonValue, describe, read_object

_ITEM_TEXT = ("completion", "response", "text", "content", "answer", "output")
_ITEM_SCORE = ("score", "overall_score", "rating", "reward", "fine-grained_score")


class ListedResponse(NamedTuple):
    """One response of a list."""

    name: str
    """Its place in the row, for error messages."""
    content: Content
    score: float | None
    rank: int | None


def listed_columns(cells: Cells) -> list[ListedResponse]:
    """Responses with parallel lists of scores and ranks.

    Raises:
        RecordError: the lists differ in length, or hold what is no response, score or rank.
    """
    name = cells.name("responses")
    values = cells.items("responses")
    scores = _parallel(cells, "scores", len(values))
    ranks = _parallel(cells, "ranks", len(values))
    return [
        ListedResponse(
            f"{name}[{i}]",
            cells.content(value, f"{name}[{i}]"),
            None if scores is None else cells.score(scores[i], f"{cells.name('scores')}[{i}]"),
            None if ranks is None else cells.rank(ranks[i], f"{cells.name('ranks')}[{i}]"),
        )
        for i, value in enumerate(values)
    ]


def _parallel(cells: Cells, role: str, count: int) -> list[JsonValue] | None:
    if not cells.has(role) or (role == "scores" and cells.get(role) in (None, "")):
        return None
    values = cells.items(role)
    if len(values) != count:
        raise RecordError(
            f"{cells.origin}: {count} {cells.name('responses')} but {len(values)} {cells.name(role)}; "
            "give one for each, in the same order"
        )
    return values


def listed_objects(cells: Cells) -> list[ListedResponse]:
    """Responses as objects with their score or rank inside; ranks may count from 0 (NeMo).

    Raises:
        RecordError: an object has no text, or holds what is no response, score or rank.
    """
    objects = [
        read_object(value, f"{cells.name('items')}[{i}]", cells.origin)
        for i, value in enumerate(cells.items("items"))
    ]
    first = 0 if any(item.get("rank") == 0 for item in objects) else 1
    return [
        _object(cells, item, f"{cells.name('items')}[{i}]", first_rank=first)
        for i, item in enumerate(objects)
    ]


def _object(
    cells: Cells, item: dict[str, JsonValue], name: str, *, first_rank: int
) -> ListedResponse:
    key = next((key for key in _ITEM_TEXT if key in item), None)
    if key is None:
        raise RecordError(
            f"{cells.origin}: '{name}' is {describe(item)}; give it one of {', '.join(_ITEM_TEXT)}"
        )
    scores = (cells.score(item.get(key), f"{name}.{key}") for key in _ITEM_SCORE)
    found = next((score for score in scores if score is not None), None)
    rank = item.get("rank")
    if isinstance(rank, int) and not isinstance(rank, bool):
        rank += 1 - first_rank
    return ListedResponse(
        name,
        cells.content(item[key], f"{name}.{key}"),
        _mean_rating(item) if found is None else found,
        None if rank is None else cells.rank(rank, f"{name}.rank"),
    )


def _mean_rating(item: dict[str, JsonValue]) -> float | None:
    """The mean of the ratings that UltraFeedback's `annotations` give an answer by aspect; None where there is none."""
    aspects = item.get("annotations")
    if not isinstance(aspects, dict):
        return None
    given = [aspect.get("Rating") for aspect in aspects.values() if isinstance(aspect, dict)]
    ratings = [
        float(r) for r in given if isinstance(r, str | int) and str(r).isdecimal()
    ]  # "N/A" is none
    return sum(ratings) / len(ratings) if ratings else None
