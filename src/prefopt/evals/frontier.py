"""The reward-KL frontier: how much reward a policy gains for how far it moves from its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from prefopt.errors import ConfigError
from prefopt.evals.drift import KlEstimate, sequence_kl
from prefopt.generate.base import Completion, Request, Sampling
from prefopt.generate.journal import complete
from prefopt.generate.local import LocalGenerator
from prefopt.grade.statistics import Estimate, bootstrap_mean
from prefopt.models.load import CausalModel
from prefopt.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Prompt(Protocol):
    """What is sampled on."""

    @property
    def id(self) -> str:
        """Unique within the set."""
        ...

    @property
    def prompt(self) -> str | tuple[Message, ...]:
        """What the model is shown."""
        ...


class Measured(NamedTuple):
    """Where a policy stands."""

    reward: Estimate
    """Mean reward of its samples, with a 95% bootstrap interval that resamples whole prompts."""
    kl: KlEstimate
    requests: tuple[Request, ...]
    completions: tuple[Completion, ...]
    """One for each request."""


class FrontierPoint(NamedTuple):
    """One policy on the plane of KL (nats, less is better) and reward (more is better)."""

    kl: float
    reward: float


def measure(
    policy: CausalModel,
    reference: CausalModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    prompts: Sequence[Prompt],
    score: Callable[[str], float],
    sampling: Sampling,
    samples: int = 1,
) -> Measured:
    """Reward and KL of a policy, both from the same samples.

    Args:
        policy: what is measured.
        reference: what the KL is taken against.
        tokenizer: of both.
        prompts: with unique ids.
        score: the reward of a text.
        sampling: at temperature 1 and top-p 1, where samples are those of the policy itself. Policies measured
            with equal seeds share their random numbers, which makes their difference less noisy.
        samples: of each prompt.

    Raises:
        ConfigError: another temperature or top-p, or nothing to sample.
    """
    if sampling.temperature != 1 or sampling.top_p != 1:
        raise ConfigError(
            f"frontier: temperature {sampling.temperature:g} and top_p {sampling.top_p:g} change the policy that is "
            "measured; use 1 and 1"
        )
    requests = [Request(p.id, k, p.prompt) for p in prompts for k in range(samples)]
    generator = LocalGenerator(policy, tokenizer, batch_size=512)
    completions = complete(generator, requests, sampling)
    kl = sequence_kl(
        policy,
        reference,
        tokenizer,
        requests=requests,
        completions=completions,
        batch_size=128,
    )
    rewards = [score(completion.text) for completion in completions]
    reward = bootstrap_mean(rewards, clusters=[request.id for request in requests])
    return Measured(reward, kl, tuple(requests), tuple(completions))


def pareto(points: Sequence[FrontierPoint]) -> list[bool]:
    """Which points no other point beats: none has as much reward at less KL, or more reward at as little.

    Equal points are all kept.
    """
    return [
        not any(
            (other.kl <= point.kl and other.reward > point.reward)
            or (other.kl < point.kl and other.reward >= point.reward)
            for other in points
        )
        for point in points
    ]


def reward_at(points: Sequence[FrontierPoint], kl: float) -> float | None:
    """The reward at a given KL, interpolated between the two nearest points; None outside of them.

    Linear in the square root of the KL, in which a frontier is nearly straight near the reference (the reward of the
    best policy grows as sqrt(KL) there); linear in the KL itself, a chord lies well below so curved a line, and curves
    with points at other KLs seem to differ. Points of equal KL count as one with their mean reward.
    """
    by_kl: dict[float, list[float]] = {}
    for point in points:
        by_kl.setdefault(point.kl, []).append(point.reward)
    known = sorted(by_kl)
    if not known or not known[0] <= kl <= known[-1]:
        return None
    return float(np.interp(kl**0.5, np.sqrt(known), [np.mean(by_kl[k]) for k in known]))
