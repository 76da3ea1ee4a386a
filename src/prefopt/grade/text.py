"""Overlap of generated texts with reference texts: corpus BLEU-4 and ROUGE-L, with bootstrap intervals.

The scores themselves are those of sacrebleu and rouge-score (extra `eval`), so that they can be compared with
published ones. Both are given in percent, 0 to 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from prefopt.errors import MissingExtraError
from prefopt.grade.statistics import Estimate, bootstrap_mean, percentile_interval


def bleu4(
    outputs: Sequence[str],
    references: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The corpus BLEU-4 of the outputs against one reference each, in percent, with its bootstrap interval.

    ``100 * min(1, e^(1 - r/o)) * (p1 p2 p3 p4)^(1/4)``: p_n the share of the outputs' n-grams that occur in their
    reference, over the whole corpus; o and r the tokens of outputs and references. sacrebleu's defaults: 13a
    tokens, case kept, exponential smoothing where no n-gram of an order matches. Corpus BLEU is no mean of
    sentence scores, so the interval resamples sentences and counts anew.
    Papineni et al. 2002, ACL; Post 2018, arXiv 1804.08771; Koehn 2004, EMNLP, for the bootstrap.

    Raises:
        MissingExtraError: sacrebleu is not installed.
        TypeError: a single string instead of a list.
        ValueError: unequal numbers of outputs and references, none, or `level` is not between 0 and 1.
    """
    _check(outputs, references)
    metrics = _sacrebleu()
    bleu = metrics.BLEU()
    # Effective order only keeps sacrebleu from advising it for single sentences; counts do not depend on it.
    counter = metrics.BLEU(effective_order=True)
    statistics = np.array([
        [*found.counts, *found.totals, found.sys_len, found.ref_len]
        for found in (
            counter.sentence_score(output, [reference])
            for output, reference in zip(outputs, references, strict=True)
        )
    ])  # fmt: skip

    def score(totals: np.ndarray) -> float:
        counts = totals.tolist()
        found = bleu.compute_bleu(
            counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp"
        )
        return float(found.score)

    rng = np.random.default_rng(seed)
    n = len(outputs)
    # How often each sentence is drawn decides the resampled totals: one matrix product for all resamples.
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    low, high = percentile_interval([score(row) for row in drawn @ statistics], level)
    return Estimate(score(statistics.sum(axis=0)), low, high)


def rouge_l(
    outputs: Sequence[str],
    references: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """The mean ROUGE-L F1 of the outputs against one reference each, in percent, with its bootstrap interval.

    ``F1 = 2 P R / (P + R)`` with P and R the longest common subsequence over the tokens of output and reference;
    rouge-score's tokens: lower-cased runs of letters and digits, no stemming. Lin 2004, ACL.

    Raises:
        MissingExtraError: rouge-score is not installed.
        TypeError: a single string instead of a list.
        ValueError: unequal numbers of outputs and references, none, or `level` is not between 0 and 1.
    """
    _check(outputs, references)
    scorer = _rouge_scorer().RougeScorer(["rougeL"], use_stemmer=False)
    values = [
        100 * float(scorer.score(reference, output)["rougeL"].fmeasure)
        for output, reference in zip(outputs, references, strict=True)
    ]
    return bootstrap_mean(values, level=level, resamples=resamples, seed=seed)


def _check(outputs: Sequence[str], references: Sequence[str]) -> None:
    if isinstance(outputs, str) or isinstance(references, str):
        raise TypeError("outputs and references are lists of texts; a single string was given")
    if len(outputs) != len(references) or not outputs:
        raise ValueError(
            f"{len(outputs)} outputs and {len(references)} references; give one reference for each output, at "
            "least 1"
        )


def _sacrebleu() -> ModuleType:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise MissingExtraError(
            "BLEU-4 needs sacrebleu, which is not installed; run: pip install 'prefopt[eval]'"
        ) from error
    return metrics


def _rouge_scorer() -> ModuleType:
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise MissingExtraError(
            "ROUGE-L needs rouge-score, which is not installed; run: pip install 'prefopt[eval]'"
        ) from error
    return rouge_scorer
