"""Token credit for people: one HTML page with a heat map of every response, and the same as JSON.

The page holds its data, styles and script and opens without a network. Texts are drawn when a response is opened, so
that hundreds of them load at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prefopt.analysis.credit import (
    CreditNumbers,
    CreditText,
    ResponseCredit,
    compare_credit,
    credit_numbers,
    response_numbers,
)
from prefopt.analysis.earlier import NUMBERS, PAGE, ROWS
from prefopt.grade.statistics import Estimate
from prefopt.text.whole import write_whole
from prefopt.values import JsonValue

SATURATED = 0.98
"""Quantile of |r| from which on the colour is full."""


class CreditFiles(NamedTuple):
    """What was written."""

    page: Path
    rows: Path
    numbers: Path
    facts: dict[str, JsonValue]
    """The content of `numbers`, see `credit_json`."""


def write_credit(
    folder: Path,
    policies: Mapping[str, Sequence[ResponseCredit]],
    *,
    reference: str,
    source: str,
    settings: Mapping[str, JsonValue] | None = None,
) -> CreditFiles:
    """The files `credit.html`, `credit.jsonl` and `credit.json` in `folder`, which is made where it is missing.

    Args:
        folder: where to.
        policies: name -> credits of the same responses in the same order; each policy has one `beta`.
        reference: what the reference is called.
        source: what the records are called.
        settings: how they were made, for `prefopt.analysis.earlier`.

    Raises:
        StorageError: a file cannot be written; it is then as it was before.
    """
    facts = credit_json(policies, reference=reference, source=source)
    if settings is not None:
        facts["settings"] = dict(settings)
    page, rows, numbers = (folder / name for name in (PAGE, ROWS, NUMBERS))
    write = partial(write_whole, errors="backslashreplace", remedy="choose another --output")
    write(rows, (_line(row) for row in credit_rows(policies)))
    write(numbers, [json.dumps(facts, indent=1, ensure_ascii=False) + "\n"])
    write(page, [credit_page(policies, facts)])
    return CreditFiles(page, rows, numbers, facts)


def _line(row: Mapping[str, JsonValue]) -> str:
    return json.dumps(dict(row), ensure_ascii=False) + "\n"


def credit_json(
    policies: Mapping[str, Sequence[ResponseCredit]], *, reference: str, source: str
) -> dict[str, JsonValue]:
    """The numbers of all policies and the paired differences of every two of them, for `credit.json`."""
    names = list(policies)
    first = policies[names[0]]
    comparisons: list[JsonValue] = [
        {
            "first": a,
            "second": b,
            "auroc_difference": _estimate(compare_credit(policies[a], policies[b])),
        }
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    remarks: dict[str, JsonValue] = {}
    for credit in first:
        remark = credit.text.located.remark
        if remark:
            count = remarks.get(remark, 0)
            remarks[remark] = (count if isinstance(count, int) else 0) + 1
    return {
        "source": source,
        "reference": reference,
        "beta": {name: found[0].beta for name, found in policies.items()},
        "responses_without_span": remarks,
        "policies": {name: _numbers_json(credit_numbers(c)) for name, c in policies.items()},
        "comparisons": comparisons,
    }


def _estimate(value: Estimate | None) -> JsonValue:
    return None if value is None else dict(value._asdict())


def _numbers_json(numbers: CreditNumbers) -> dict[str, JsonValue]:
    return {
        key: _estimate(value) if isinstance(value, Estimate) else value
        for key, value in numbers._asdict().items()
    }


def credit_rows(
    policies: Mapping[str, Sequence[ResponseCredit]],
) -> Iterable[dict[str, JsonValue]]:
    """One object per response: its tokens and, for each policy, rewards, log-probabilities, steps and numbers."""
    for together in zip(*policies.values(), strict=True):
        text = together[0].text
        error = text.error
        tokens: list[JsonValue] = [*text.tokens]
        offsets: list[JsonValue] = [[start, end] for start, end in text.offsets]
        yield {
            "id": text.id,
            "response": text.response,
            "role": text.role,
            "text": text.text,
            "error_span": None if error is None else [error.start, error.end],
            "remark": text.located.remark,
            "tokens": tokens,
            "offsets": offsets,
            "logp_reference": _rounded(together[0].reference),
            "policies": {name: _policy_json(c) for name, c in zip(policies, together, strict=True)},
        }


def _policy_json(credit: ResponseCredit) -> dict[str, JsonValue]:
    parts: list[JsonValue] = [
        {
            "number": p.part.number,
            "kind": p.part.kind,
            "start": p.part.start,
            "end": p.part.end,
            "tokens": p.tokens,
            "sum": p.total,
            "mean": p.mean if p.tokens else None,
        }
        for p in credit.parts()
    ]
    return {
        "reward": credit.total,
        "r": _rounded(credit.rewards),
        "logp": _rounded(credit.policy),
        "steps": parts,
        "numbers": dict(response_numbers(credit)._asdict()),
    }


def _rounded(values: np.ndarray) -> list[JsonValue]:
    return [float(f"{value:.6g}") for value in values]


def credit_page(
    policies: Mapping[str, Sequence[ResponseCredit]], facts: Mapping[str, JsonValue]
) -> str:
    """The HTML text of the page; `facts` is what `credit_json` made of the same credits."""
    names = list(policies)
    limits = [
        float(np.quantile(np.abs(np.concatenate([c.rewards for c in side])), SATURATED))
        for side in policies.values()
    ]
    data = {
        "names": names,
        "limits": limits,
        "items": [_item(together) for together in zip(*policies.values(), strict=True)],
    }
    # Inside of a script element only "<" could end it or begin a comment.
    embedded = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    environment = Environment(
        loader=PackageLoader("prefopt.analysis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(estimate=_shown_estimate, number=_shown)
    return environment.get_template("credit.html.j2").render(
        facts=facts,
        names=names,
        data=Markup(embedded),  # noqa: S704 - JSON with "<" escaped
        tokens=sum(len(c.rewards) for c in policies[names[0]]),
        responses=len(policies[names[0]]),
    )


def _item(together: Sequence[ResponseCredit]) -> dict[str, object]:
    """One response for the script of the page; numbers have the digits that are shown."""
    text = together[0].text
    numbers = [response_numbers(credit) for credit in together]
    return {
        "id": text.id,
        "role": text.role,
        "why": text.located.remark,
        "pieces": _pieces(text),
        "parts": [_part_name(text, i) for i in range(len(text.parts))],
        "owner": text.part_of_token().tolist(),
        "error": np.flatnonzero(text.in_error()).tolist(),
        "errorPart": None if text.error is None else text.error.part,
        "reference": [round(float(v), 4) for v in together[0].reference],
        "policy": [[round(float(v), 4) for v in credit.policy] for credit in together],
        "r": [[float(f"{v:.4g}") for v in credit.rewards] for credit in together],
        "sums": [[float(f"{p.total:.4g}") for p in credit.parts()] for credit in together],
        "total": [credit.total for credit in together],
        "auroc": [n.auroc for n in numbers],
        "rank": [n.sum_rank for n in numbers],
        "steps": numbers[0].steps,
    }


def _part_name(text: CreditText, index: int) -> str:
    part = text.parts[index]
    return part.kind if part.number is None else f"{part.kind} {part.number}"


def _pieces(text: CreditText) -> list[list[str]]:
    """For each token [text before it that is not scored, its own text]; together they are the whole text.

    Tokenizers may leave white space out of a token's offsets; it is shown with the token that follows. Where several
    tokens make up one character, the first has it.
    """
    pieces: list[list[str]] = []
    at = 0
    for start, end in text.offsets:
        gap = text.text[at:start]
        blank = not gap.strip()
        own = text.text[at if blank else start : end] if end > at else ""
        pieces.append(["" if blank else gap, own])
        at = max(at, end)
    if pieces and at < len(text.text):
        pieces.append([text.text[at:], ""])
    return pieces


def _shown(value: float | None, places: int = 3) -> str:
    if value is None:
        return "–"
    # Rounded first and plus zero, so that there is no minus before a zero.
    return f"{round(value, places) + 0.0:.{places}f}".replace("-", "\N{MINUS SIGN}")


def _shown_estimate(value: Mapping[str, float] | None, places: int = 3) -> str:
    if value is None:
        return "–"
    low, high = _shown(value["low"], places), _shown(value["high"], places)
    return f"{_shown(value['value'], places)} ({low} to {high})"
