"""Token credit: which tokens of a response a trained policy rewards, and how well that finds the wrong ones.

The implicit reward of a token is ``r_i = beta (log pi(x_i | s_i) - log pi_ref(x_i | s_i))`` (Step-Controlled DPO, Lu et
al. 2024, arXiv 2407.00782, eq. 7). The paper colours texts by it; here it is also measured: does a policy give
the tokens of the known error less than the others? Pages and files are written by `heatmap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from prefopt.analysis.tokens import (
    CreditText,
    PartCredit,
    ResponseCredit,
    Which,
    credit_texts,
    text_logps,
)
from prefopt.grade.statistics import Estimate, bootstrap_mean
from prefopt.models.load import CausalModel
from prefopt.records import Preference
from prefopt.text.render import RenderSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "CreditNumbers",
    "CreditText",
    "PartCredit",
    "ResponseCredit",
    "ResponseNumbers",
    "auroc",
    "compare_credit",
    "credit_numbers",
    "credit_texts",
    "response_numbers",
    "text_logps",
    "token_credit",
]

_AS_IT_IS = RenderSettings()


class ResponseNumbers(NamedTuple):
    """How well the rewards of one response point at its error; None where a number is not defined."""

    auroc: float | None
    """Of -r, the tokens of the error span against the others."""
    sum_difference: float | None
    """Summed reward of the wrong step minus the mean summed reward of the other steps."""
    mean_difference: float | None
    """The same with mean rewards per token."""
    sum_rank: float | None
    """Place of the wrong step by summed reward, 1 is the lowest; equal ones share their mean place."""
    mean_rank: float | None
    """The same by mean reward per token."""
    sum_lowest: float | None
    """1 if the wrong step has the lowest summed reward, 1/n if n steps share it, else 0."""
    mean_lowest: float | None
    steps: int
    """Steps that compete."""


class CreditNumbers(NamedTuple):
    """How well the rewards point at the errors, over many responses.

    Estimates are means over responses with 95% bootstrap intervals that resample whole records; None where no response
    defines the number.
    """

    responses: int
    located: int
    """Responses whose error is known; all numbers below are theirs."""
    tokens: int
    """Their tokens, interpreter output left out."""
    error_tokens: int
    auroc_pooled: float | None
    """Of all tokens together; depends on how rewards compare between responses."""
    auroc: Estimate | None
    """Mean over responses. 0.5 is chance; above it, error tokens are rewarded less."""
    auroc_responses: int
    """Responses with tokens inside and outside of the error."""
    sum_difference: Estimate | None
    mean_difference: Estimate | None
    sum_rank: Estimate | None
    mean_rank: Estimate | None
    random_rank: float | None
    """Expected rank of a step drawn at random: the mean of (steps + 1) / 2."""
    sum_lowest: Estimate | None
    """Share of responses whose wrong step is the lowest."""
    mean_lowest: Estimate | None
    random_lowest: float | None
    """The same for a step drawn at random: the mean of 1 / steps."""
    ranked_responses: int
    """Responses whose wrong step competes with others."""


def token_credit(  # noqa: PLR0913 - two models, a tokenizer, and how records are read
    policy: CausalModel,
    reference: CausalModel,
    tokenizer: PreTrainedTokenizerFast,
    records: Sequence[Preference],
    *,
    beta: float = 0.1,
    which: Which = "rejected",
    render: RenderSettings = _AS_IT_IS,
    batch_size: int = 32,
) -> list[ResponseCredit]:
    """The token rewards of the responses of the records, by record, then response.

    Args:
        policy: on its device; run in eval mode, without gradients.
        reference: the model its training started from.
        tokenizer: of both.
        records: prompts with responses; errors are read from `meta` (see `spans.locate_error`).
        beta: of the training.
        which: the rejected responses, the chosen ones, or all.
        render: how records become text.
        batch_size: responses run together.

    Raises:
        RecordError: no such response, a record cannot be rendered, or its annotation is wrong.
        NonFiniteError: a log-probability is not finite.
    """
    texts = credit_texts(records, tokenizer, which=which, render=render)
    after = text_logps(policy, texts, batch_size=batch_size)
    before = text_logps(reference, texts, batch_size=batch_size)
    return [ResponseCredit(*item, beta) for item in zip(texts, after, before, strict=True)]


def response_numbers(credit: ResponseCredit) -> ResponseNumbers:
    """How well the rewards of one response point at its error.

    Tokens of interpreter output are left out: the model does not write them. Steps without tokens and the text before
    the first step do not compete. Without a known error, or with nothing beside it, numbers are None.
    """
    text = credit.text
    ours, wrong = text.written(), text.in_error()
    inside = int((wrong & ours).sum())
    apart = text.error is not None and 0 < inside < int(ours.sum())
    area = auroc(-credit.rewards[ours], wrong[ours]) if apart else None
    at = text.error.part if text.error is not None else None
    parts = [(i, p) for i, p in enumerate(credit.parts()) if p.tokens and p.part.ranked]
    place = next((k for k, (i, _) in enumerate(parts) if i == at), None)
    if place is None or len(parts) < 2:
        return ResponseNumbers(area, None, None, None, None, None, None, len(parts))
    sums = _Standing.of([p.total for _, p in parts], place)
    means = _Standing.of([p.mean for _, p in parts], place)
    return ResponseNumbers(
        area,
        sums.difference,
        means.difference,
        sums.rank,
        means.rank,
        sums.lowest,
        means.lowest,
        len(parts),
    )


class _Standing(NamedTuple):
    """One of several numbers among the others."""

    difference: float
    rank: float
    lowest: float

    @classmethod
    def of(cls, values: Sequence[float], place: int) -> _Standing:
        own = values[place]
        others = [v for i, v in enumerate(values) if i != place]
        below, equal = sum(v < own for v in others), sum(v == own for v in others)
        lowest = 0.0 if below else 1 / (1 + equal)
        return cls(own - math.fsum(others) / len(others), 1 + below + equal / 2, lowest)


def credit_numbers(
    credits: Sequence[ResponseCredit], *, resamples: int = 10_000, seed: int = 0
) -> CreditNumbers:
    """How well the rewards of many responses point at their errors.

    Args:
        credits: from one policy.
        resamples: of the bootstrap.
        seed: equal seeds give equal intervals.
    """
    known = [credit for credit in credits if credit.text.error is not None]
    single = [response_numbers(credit) for credit in known]
    ids = [credit.text.id for credit in known]

    def estimate(values: Sequence[float | None]) -> Estimate | None:
        there = [(v, i) for v, i in zip(values, ids, strict=True) if v is not None]
        if not there:
            return None
        numbers, clusters = zip(*there, strict=True)
        return bootstrap_mean(numbers, clusters=clusters, resamples=resamples, seed=seed)

    rewards = [c.rewards[c.text.written()] for c in known]
    wrong = [c.text.in_error()[c.text.written()] for c in known]
    tokens, errors = sum(map(len, rewards)), sum(int(mask.sum()) for mask in wrong)
    pooled = 0 < errors < tokens
    steps = [s.steps for s in single if s.sum_rank is not None]
    return CreditNumbers(
        responses=len(credits),
        located=len(known),
        tokens=tokens,
        error_tokens=errors,
        auroc_pooled=auroc(-np.concatenate(rewards), np.concatenate(wrong)) if pooled else None,
        auroc=estimate([s.auroc for s in single]),
        auroc_responses=sum(s.auroc is not None for s in single),
        sum_difference=estimate([s.sum_difference for s in single]),
        mean_difference=estimate([s.mean_difference for s in single]),
        sum_rank=estimate([s.sum_rank for s in single]),
        mean_rank=estimate([s.mean_rank for s in single]),
        random_rank=sum((n + 1) / 2 for n in steps) / len(steps) if steps else None,
        sum_lowest=estimate([s.sum_lowest for s in single]),
        mean_lowest=estimate([s.mean_lowest for s in single]),
        random_lowest=sum(1 / n for n in steps) / len(steps) if steps else None,
        ranked_responses=len(steps),
    )


def compare_credit(
    first: Sequence[ResponseCredit],
    second: Sequence[ResponseCredit],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate | None:
    """The mean difference of per-response AUROC, `second` minus `first`, with a paired 95% bootstrap interval.

    None where no response defines an AUROC. Whole records are resampled.

    Raises:
        ValueError: the two sides are not about the same responses in the same order.
    """
    sides = [[(c.text.id, c.text.response) for c in side] for side in (first, second)]
    if sides[0] != sides[1]:
        raise ValueError("the two sides credit different responses; score the same records")
    pairs = [
        (response_numbers(a).auroc, response_numbers(b).auroc, a.text.id)
        for a, b in zip(first, second, strict=True)
        if a.text.error is not None
    ]
    there = [(b - a, record) for a, b, record in pairs if a is not None and b is not None]
    if not there:
        return None
    differences, clusters = zip(*there, strict=True)
    return bootstrap_mean(differences, clusters=clusters, resamples=resamples, seed=seed)


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """The chance that a positive item scores higher than another one, ties counting half.

    ``(sum of the positives' ranks - n_pos (n_pos + 1) / 2) / (n_pos n_neg)`` with ties at their mean rank.

    Args:
        scores: [N] numbers; for error spans, minus the token rewards.
        positive: [N] booleans.

    Raises:
        ValueError: lengths differ, a score is NaN, or one of the two kinds is missing.
    """
    values = np.asarray(scores, dtype=np.float64)
    mask = np.asarray(positive, dtype=np.bool_)
    if values.shape != mask.shape or values.ndim != 1 or np.isnan(values).any():
        raise ValueError(f"give numbers and booleans of one length: {values.shape}, {mask.shape}")
    n = int(mask.sum())
    if n in {0, len(mask)}:
        raise ValueError(f"{n} of {len(mask)} items are positive; AUROC needs some of both kinds")
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[inverse]
    return float((rank[mask].sum() - n * (n + 1) / 2) / (n * (len(mask) - n)))
