"""Whether several models were judged alike: a difference between judges would show as one between models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefopt.errors import RecordError
from prefopt.evals.earlier import differences
from prefopt.evals.given import Entrant
from prefopt.values import JsonValue

_ASIDE = frozenset(
    {"kind", "outputs_sha256", "baseline_sha256", "join", "seed", "known_as"},
)
"""Settings of a judgement that may differ: files (answers are compared prompt by prompt), and what chance decides."""


def judged_alike(entrants: Sequence[Entrant], *, mixed: bool) -> list[str]:
    """Remarks on differences between judges; none where all models were judged alike.

    One name at two addresses is taken for one judge, with a remark, as is a file that does not name its judge.

    Args:
        entrants: at least one; each is compared with the first.
        mixed: whether other differences are remarks, too.

    Raises:
        RecordError: two models were judged differently, and `mixed` is not set.
    """
    first, remarks = entrants[0], list[str]()
    for other in entrants[1:]:
        pair = f"{first.name} and {other.name}"
        found = _differences(first.judge, other.judge)
        if not found:
            continue
        shown = "; ".join(f"{name} {both}" for name, both in found.items())
        if set(found) == {"annotator"} and not (first.judge and other.judge):
            remarks.append(f"{pair}: who judged one of them is unknown ({shown})")
        elif set(found) == {"model"} and _has_moved(first.judge, other.judge):
            remarks.append(f"{pair}: one judge is taken to be at both addresses ({shown})")
        elif mixed:
            remarks.append(
                f"{pair} were judged differently ({shown}): what is between them is also between their judges"
            )
        else:
            raise RecordError(
                f"{first.source} and {other.source} were judged differently ({shown}), which is no difference between "
                "models; judge both alike, or give --mixed-judges to compare them all the same"
            )
    return remarks


def _differences(
    first: Mapping[str, JsonValue], other: Mapping[str, JsonValue]
) -> Mapping[str, str]:
    """What differs, each with `first / other`."""
    if _is_annotated(first) != _is_annotated(other):
        return {"judge": f"{_called(first)} / {_called(other)}"}
    return differences(_deciding(first), _deciding(other))


def _is_annotated(judge: Mapping[str, JsonValue]) -> bool:
    return "generator" not in judge


def _called(judge: Mapping[str, JsonValue]) -> str:
    return str(judge.get("annotator", judge.get("target", "unknown")))


def _deciding(judge: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {key: value for key, value in judge.items() if key not in _ASIDE}


def _has_moved(first: Mapping[str, JsonValue], other: Mapping[str, JsonValue]) -> bool:
    """Whether both are judges on servers, of one name at two addresses."""
    if first.get("server") is None or other.get("server") is None:
        return False
    return first.get("target") == other.get("target") and _address(first) != _address(other)


def _address(judge: Mapping[str, JsonValue]) -> JsonValue:
    return judge.get("known_as") or judge.get("server")
