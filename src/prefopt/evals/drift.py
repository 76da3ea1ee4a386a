"""How far a policy has moved from its reference: KL divergence of what it writes, estimated on its own samples.

The reward-KL frontier of a method is drawn with it. Every conditional distribution along a sample is compared
exactly, over the whole vocabulary; only the samples themselves are random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from prefopt.errors import ConfigError, NonFiniteError
from prefopt.generate.base import Completion, Request
from prefopt.grade.statistics import bootstrap_mean
from prefopt.models.likelihood import batches, response_examples
from prefopt.models.load import CausalModel, embedding_rows
from prefopt.models.scorer import Scorer, lengths, sum_by_response
from prefopt.pack.batch import PackedBatch
from prefopt.records import Preference, Response
from prefopt.text.render import RenderSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_AS_IT_IS = RenderSettings()


class KlEstimate(NamedTuple):
    """KL(policy || reference) of whole responses given their prompts, in nats, averaged over samples."""

    mean: float
    """Sum of exact token divergences along the samples."""
    low: float
    """95% bootstrap interval that resamples whole prompts."""
    high: float
    k1: float
    """Mean of log pi(y) - log pi_ref(y): unbiased too, with a larger variance."""
    k3: float
    """Mean of e^r - 1 - r with r = log pi_ref(y) - log pi(y), of whole sequences as in the official ODPO code:
    for drifted policies its variance is beyond use."""
    per_sample: tuple[float, ...]
    """The sum of token divergences of each sample, in the order of the completions."""
    tokens: float
    """Mean number of tokens that were compared, end-of-sequence token included."""


class _Sums(NamedTuple):
    """Of one response, nats."""

    kl: float
    policy: float
    reference: float
    tokens: int


def sequence_kl(
    policy: CausalModel,
    reference: CausalModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    requests: Sequence[Request],
    completions: Sequence[Completion],
    render: RenderSettings = _AS_IT_IS,
    batch_size: int = 64,
) -> KlEstimate:
    """KL(policy || reference) of responses, from completions that the policy wrote at temperature 1 and top-p 1.

    ``E_{y ~ policy} sum_t sum_v pi(v | x, y_<t) (log pi(v | x, y_<t) - log pi_ref(v | x, y_<t))``: by the chain rule
    this is the divergence of the sequences, and it is the conditional expectation of k1, so its variance is smaller
    (Rao-Blackwell). Response tokens only; the token that ends a response counts, and none is added to a
    completion that was cut at the token limit: then it is the divergence of texts up to that limit.

    Completions drawn in another way (greedy, nucleus, another model) give the mean divergence along those texts, which
    is no KL. Texts are tokenised again; where that does not give back the sampled tokens (rare with byte-level
    vocabularies) the divergence along the retokenised text is taken.

    Args:
        policy: the model that wrote the completions; both models are run in eval mode, without gradients.
        reference: the model it is compared with; same vocabulary, same device.
        tokenizer: of both.
        requests: what was asked, in the order of `completions`.
        completions: what the policy wrote.
        render: how prompts became text.
        batch_size: responses run together.

    Raises:
        ConfigError: nothing to compare, completions that answer other requests, or different vocabularies.
        RecordError: a prompt cannot be rendered, or a response has no tokens.
        NonFiniteError: a log-probability is not a number, or the reference excludes what the policy writes.
    """
    _check(policy, reference, requests, completions)
    examples = response_examples(_records(requests, completions), tokenizer, render)
    found: dict[int, _Sums] = {}
    scorers = Scorer(policy), Scorer(reference)
    was_training = [scorer.training for scorer in scorers]
    for scorer in scorers:
        scorer.eval()
    try:
        for part, batch in batches(examples, batch_size):
            sums = _compare(scorers[0], scorers[1], batch.to(policy.device))
            found.update(zip(part, sums, strict=True))
    finally:
        for scorer, training in zip(scorers, was_training, strict=True):
            scorer.train(training)
    return _estimate([found[i] for i in range(len(examples))], requests)


def _check(
    policy: CausalModel,
    reference: CausalModel,
    requests: Sequence[Request],
    completions: Sequence[Completion],
) -> None:
    if not completions:
        raise ConfigError("drift: there are no completions to compare on; sample at least one")
    asked = [(request.id, request.sample) for request in requests]
    answered = [(completion.id, completion.sample) for completion in completions]
    if asked != answered:
        wrong = next(
            (i for i, (a, b) in enumerate(zip(asked, answered, strict=False)) if a != b),
            min(len(asked), len(answered)),
        )
        raise ConfigError(
            f"drift: {len(asked)} requests and {len(answered)} completions part at position {wrong}; give each "
            "request's completion, in the same order"
        )
    sizes = embedding_rows(policy), embedding_rows(reference)
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"drift: the policy has a vocabulary of {sizes[0]}, the reference of {sizes[1]}; compare models of one "
            "family"
        )


def _records(requests: Sequence[Request], completions: Sequence[Completion]) -> list[Preference]:
    """Each request as a record whose one response is its completion."""
    return [
        Preference(
            f"{request.id}, sample {request.sample}",
            request.prompt,
            (Response(completion.text, ends=completion.finish_reason == "stop"),),
            prefix=request.prefix,
            meta=request.meta,
        )
        for request, completion in zip(requests, completions, strict=True)
    ]


@torch.no_grad()
def _compare(policy: Scorer, reference: Scorer, batch: PackedBatch) -> Iterator[_Sums]:
    own = policy(batch).logp
    # The scorer measures KL(given states || its own model): with the policy's states given, that is
    # KL(policy || reference).
    other = reference(batch, against=policy.states(batch))
    if other.kl is None:
        raise AssertionError
    kl, mine, theirs = (
        sum_by_response(batch, values.double()).tolist() for values in (other.kl, own, other.logp)
    )
    tokens = lengths(batch).tolist()
    for name, divergence, p, q, n in zip(batch.ids, kl, mine, theirs, tokens, strict=True):
        if not all(map(math.isfinite, (divergence, p, q))):
            raise NonFiniteError(
                f"record '{name}': log-probabilities {p:g} (policy) and {q:g} (reference), KL {divergence:g}; "
                "check the weights of both models, or use dtype float32"
            )
        yield _Sums(divergence, p, q, int(n))


def _estimate(sums: Sequence[_Sums], requests: Sequence[Request]) -> KlEstimate:
    kl = [s.kl for s in sums]
    mean, low, high = bootstrap_mean(kl, clusters=[r.id for r in requests])
    ratio = np.array([s.policy - s.reference for s in sums])
    with np.errstate(over="ignore"):
        k3 = float(np.mean(np.expm1(-ratio) + ratio))
    tokens = float(np.mean([s.tokens for s in sums]))
    return KlEstimate(mean, low, high, float(ratio.mean()), k3, tuple(kl), tokens)
