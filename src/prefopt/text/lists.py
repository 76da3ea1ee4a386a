"""Rows with several responses: the texts, scores and ranks of a list, as they stand in the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prefopt.errors import RecordError
from prefopt.text.cells import Cells
from prefopt.text.prompts import Content
from prefopt.values import JsonValue, describe, read_object, read_score, refuse

_ITEM_TEXT = ("completion", "response", "text", "content", "answer", "output")
_ITEM_SCORE = ("score", "overall_score", "rating", "reward", "fine-grained_score")
_NO_RATING = ("", "n/a")


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

    Scores come from one source for the whole list, since sources have different scales: the first key that any response
    has a score under, or else the ratings in `annotations`. A response without that one has no score.

    Raises:
        RecordError: an object has no text, or holds what is no response, score or rank.
    """
    objects = [
        read_object(value, f"{cells.name('items')}[{i}]", cells.origin)
        for i, value in enumerate(cells.items("items"))
    ]
    first = 0 if any(item.get("rank") == 0 for item in objects) else 1
    names = [f"{cells.name('items')}[{i}]" for i in range(len(objects))]
    scores = _scores(cells, objects, names)
    return [
        _object(cells, item, name, score, first_rank=first)
        for item, name, score in zip(objects, names, scores, strict=True)
    ]


def _scores(
    cells: Cells, objects: Sequence[dict[str, JsonValue]], names: Sequence[str]
) -> list[float | None]:
    for key in _ITEM_SCORE:
        scores = [
            cells.score(item.get(key), f"{name}.{key}")
            for item, name in zip(objects, names, strict=True)
        ]
        if any(score is not None for score in scores):
            return scores
    return [
        _mean_rating(item, name, cells.origin) for item, name in zip(objects, names, strict=True)
    ]


def _object(
    cells: Cells, item: dict[str, JsonValue], name: str, score: float | None, *, first_rank: int
) -> ListedResponse:
    key = next((key for key in _ITEM_TEXT if key in item), None)
    if key is None:
        raise RecordError(
            f"{cells.origin}: '{name}' is {describe(item)}; give it one of {', '.join(_ITEM_TEXT)}"
        )
    rank = item.get("rank")
    if isinstance(rank, int) and not isinstance(rank, bool):
        rank += 1 - first_rank
    return ListedResponse(
        name,
        cells.content(item[key], f"{name}.{key}"),
        score,
        None if rank is None else cells.rank(rank, f"{name}.rank"),
    )


def _mean_rating(item: dict[str, JsonValue], name: str, origin: str) -> float | None:
    """The mean of the ratings that UltraFeedback's `annotations` give an answer by aspect; None where there is none."""
    aspects = item.get("annotations")
    if not isinstance(aspects, dict):
        return None
    found = [
        _rating(aspect.get("Rating"), f"{name}.annotations.{key}.Rating", origin)
        for key, aspect in aspects.items()
        if isinstance(aspect, dict)
    ]
    ratings = [rating for rating in found if rating is not None]
    return sum(ratings) / len(ratings) if ratings else None


def _rating(value: JsonValue, name: str, origin: str) -> float | None:
    """A number or the text of one; None where there is none ("N/A")."""
    if isinstance(value, str):
        if value.strip().lower() in _NO_RATING:
            return None
        try:
            value = float(value)
        except ValueError:
            refuse(value, name, origin, "give a number, or null where there is none")
    return read_score(value, name, origin)
