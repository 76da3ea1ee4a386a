"""What the study of DICE plants and measures with: a bias of length in the labels and in the judge, and the oracle.

Offline pairs say of two answers that the longer one is better with some probability, whatever the rewards; the judge
prefers longer answers too. The oracle is the reward of the world.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from prefopt.grade.length_controlled import length_controlled_winrate
from prefopt.judge.agreement import agreement_with_pairs
from prefopt.judge.implicit import ImplicitReward, ScoringSettings
from prefopt.records import Pair, Preference, Response


class Outputs(NamedTuple):
    """What a policy writes: one answer to each test prompt, in their order."""

    rewards: tuple[float, ...]
    lengths: tuple[int, ...]
    """Characters."""
    kl: float
    """To the base model, nats per prompt."""
    faithful: float
    """Share of the answers that are about what was asked for and nothing else."""


class WinRates(NamedTuple):
    """Of a policy over a baseline, in percent."""

    raw: float
    """By the judge that likes length."""
    length_controlled: float
    """Of the same verdicts."""
    true: float
    """By a judge without that taste."""


class Agreements(NamedTuple):
    """What an implicit reward says of held-out pairs, as shares of them."""

    oracle: float
    """Pairs in which the response that the oracle prefers has the higher reward."""
    longer: float
    """Pairs of unequal length in which the longer response has the higher reward; 0.5 where there are none."""


def label_with_bias(
    records: Sequence[Preference], *, bias: float, seed: int
) -> tuple[list[Preference], float]:
    """The records (two scored responses each) labelled anew and without scores; the share that the oracle agrees with.

    With probability `bias` the longer response is chosen, else the one of higher score; the latter too where both are
    equally long.
    """
    rng = random.Random(f"labels/{seed}")
    labelled: list[Preference] = []
    right: list[bool] = []
    for record in records:
        better = int(score_of(record.responses[1]) > score_of(record.responses[0]))
        lengths = [len(response.text) for response in record.responses]
        by_length = rng.random() < bias and lengths[0] != lengths[1]
        chosen = int(lengths[1] > lengths[0]) if by_length else better
        right.append(chosen == better)
        bare = tuple(replace(response, score=None) for response in record.responses)
        labelled.append(replace(record, responses=bare, pairs=(Pair(chosen, 1 - chosen),)))
    return labelled, statistics.fmean(right)


def score_of(response: Response) -> float:
    """The oracle's score, which all responses here have."""
    assert response.score is not None  # noqa: S101 - made by scored_samples
    return response.score


def win_rates(model: Outputs, baseline: Outputs, *, bias: float) -> WinRates:
    """Win rates by ``P(win) = sigmoid(reward gap + bias * length gap)``, prompt by prompt."""
    reward_gaps = [a - b for a, b in zip(model.rewards, baseline.rewards, strict=True)]
    length_gaps = [a - b for a, b in zip(model.lengths, baseline.lengths, strict=True)]
    found = length_controlled_winrate(
        [
            1 + sigmoid(reward + bias * length)
            for reward, length in zip(reward_gaps, length_gaps, strict=True)
        ],
        model.lengths,
        baseline.lengths,
        bootstrap=None,
    )
    true = 100 * statistics.fmean(map(sigmoid, reward_gaps))
    return WinRates(found.raw, found.value, true)


def sigmoid(x: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-x))


def agreements(
    records: Sequence[Preference], policy: Path, reference: Path, *, beta: float
) -> Agreements:
    """The implicit reward of two models against the pairs of the records."""
    reward = ImplicitReward(policy, reference, beta=beta, settings=ScoringSettings(batch_size=128))
    scores: Mapping[str, Sequence[float | None]] = {
        name: [score.reward for score in found] for name, found in reward.score(records).items()
    }
    by_length = [longer_chosen(record) for record in records]
    found = agreement_with_pairs(records, scores)
    longer = agreement_with_pairs(by_length, scores)
    return Agreements(share(found.right, found.total), share(longer.right, longer.total))


def longer_chosen(record: Preference) -> Preference:
    """The record with its pairs turned so that the longer response is chosen; without those of equal length."""
    lengths = [len(response.text) for response in record.responses]
    turned = [
        Pair(*sorted((pair.chosen, pair.rejected), key=lambda k: -lengths[k]))
        for pair in record.pairs
        if lengths[pair.chosen] != lengths[pair.rejected]
    ]
    return replace(record, pairs=tuple(turned))


def share(part: int, whole: int) -> float:
    """``part / whole``; a half of nothing."""
    return part / whole if whole else 0.5
