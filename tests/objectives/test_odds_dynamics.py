"""What training does to chosen and rejected log-probabilities: a tiny model under SFT, ASFT, ORPO and DPO.

The claims are signs and orderings. A recurrent model of 12 tokens learns 800 sequences of 8 tokens, then goes on
for 200 full-batch steps of Adam with 400 pairs of them, in which the response with more even tokens is preferred.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefopt.objectives.odds import asft, orpo
from prefopt.objectives.pairwise import dpo
from prefopt.objectives.types import Losses, Pairs

VOCABULARY, LENGTH, PAIRS, STEPS = 12, 8, 400, 200


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY + 1, 24)
        self.gru = nn.GRU(24, 24, batch_first=True)
        self.head = nn.Linear(24, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Log-probability sum of each sequence, the first token being predicted from a start token."""
        inputs = F.pad(tokens[:, :-1], (1, 0), value=VOCABULARY)
        logps = self.head(self.gru(self.embedding(inputs))[0]).log_softmax(-1)
        return logps.gather(-1, tokens[..., None])[..., 0].sum(1)


def sequences(generator: torch.Generator) -> Tensor:
    """[2 * PAIRS, LENGTH] tokens of a random Markov chain; the first half is preferred to the second."""
    chain = (2 * torch.randn(VOCABULARY, VOCABULARY, generator=generator)).softmax(-1)
    tokens = torch.randint(VOCABULARY, (2 * PAIRS, 1), generator=generator)
    for _ in range(LENGTH - 1):
        follower = torch.multinomial(chain[tokens[:, -1]], 1, generator=generator)
        tokens = torch.cat([tokens, follower], 1)
    first, second = tokens.chunk(2)
    swap = ((first % 2 == 0).sum(1) < (second % 2 == 0).sum(1))[:, None]
    return torch.cat([torch.where(swap, second, first), torch.where(swap, first, second)])


class Start(NamedTuple):
    model: Model
    tokens: Tensor
    reference: Tensor


@pytest.fixture(scope="module")
def start() -> Start:
    """A model that gives chosen and rejected responses about the same probability."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    tokens, model = sequences(generator), Model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        (-model(tokens).mean()).backward()
        optimizer.step()
    return Start(model, tokens, model(tokens).detach())


def trained(start: Start, loss: Callable[[Pairs], Losses]) -> list[tuple[float, float]]:
    """Mean token log-probability of chosen and rejected responses before every step and at the end."""
    model = copy.deepcopy(start.model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    length = torch.full((PAIRS,), float(LENGTH))
    reference_chosen, reference_rejected = start.reference.chunk(2)
    trace: list[tuple[float, float]] = []
    for _ in range(STEPS + 1):
        chosen, rejected = model(start.tokens).chunk(2)
        trace.append((chosen.mean().item() / LENGTH, rejected.mean().item() / LENGTH))
        pairs = Pairs(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            length_chosen=length,
            length_rejected=length,
        )
        optimizer.zero_grad()
        loss(pairs).loss.mean().backward()
        optimizer.step()
    return trace


@pytest.fixture(scope="module")
def asft_trace(start: Start) -> list[tuple[float, float]]:
    return trained(start, asft)


@pytest.mark.slow
def test_likelihood_rises_with_odds_and_falls_with_dpo(start: Start, asft_trace) -> None:
    traces = {
        "sft": trained(start, partial(asft, lambda_=0.0)),
        "asft": asft_trace,
        "align": trained(start, partial(asft, ce_coef=0.0)),
        "orpo": trained(start, partial(orpo, beta=1.0)),
        "dpo": trained(start, dpo),
    }
    before = traces["sft"][0]
    assert abs(before[0] - before[1]) < 0.1, "the start prefers neither side"
    assert all(traces[name][-1][0] > before[0] for name in ("sft", "asft", "align", "orpo"))
    assert traces["dpo"][-1][0] < before[0] and traces["dpo"][-1][1] < before[1]
    rejected = [trace[-1][1] for trace in traces.values()]
    assert rejected == sorted(rejected, reverse=True), "SFT > ASFT > align-only > ORPO > DPO"


@pytest.mark.slow
def test_closed_and_naive_form_train_alike(start: Start, asft_trace) -> None:
    def naive(pairs: Pairs) -> Losses:
        m_w, m_l = pairs.policy_chosen / LENGTH, pairs.policy_rejected / LENGTH
        r_w, r_l = (m - torch.log(1 - torch.exp(m)) for m in (m_w, m_l))
        return Losses(-m_w - F.logsigmoid(r_w) - F.logsigmoid(-r_l), {})

    torch.testing.assert_close(
        torch.tensor(asft_trace), torch.tensor(trained(start, naive)), rtol=0, atol=5e-5
    )
