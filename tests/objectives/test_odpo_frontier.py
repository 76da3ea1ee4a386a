"""ODPO against DPO at equal KL, few pairs, many seeds: a log-linear policy whose reward and KL are exact.

The claim of Amini et al. 2024 in the form in which it can be checked in seconds: with 40 pairs, ODPO (log, alpha = 1)
has the higher expected reward at equal KL, averaged over seeds. The size of the gain is not asserted.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from prefopt.objectives import dpo, odpo
from prefopt.objectives.types import Pairs

SEEDS, PROMPTS, ANSWERS, FEATURES, PAIRS = 8, 30, 16, 24, 40
BETAS = tuple(1.5 * 1.4**k for k in range(11))
"""Close enough together that interpolation decides nothing: the test measures that with DPO against itself."""


class Problem:
    """Independent problems at once: features, rewards in (0, .5) or (1.5, 2), a reference, pairs sampled from it."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.features = torch.randn(SEEDS, PROMPTS * ANSWERS, FEATURES, generator=g)
        direction = torch.randn(SEEDS, FEATURES, 1, generator=g) / FEATURES**0.5
        taste = torch.sigmoid(2 * (self.features @ direction)).view(SEEDS, PROMPTS, ANSWERS)
        self.reward = torch.where(taste > 0.5, 1 + taste, taste)
        self.reference = torch.log_softmax(torch.randn(SEEDS, PROMPTS, ANSWERS, generator=g), -1)
        prompt = torch.randint(0, PROMPTS, (SEEDS, PAIRS, 1), generator=g)
        self.seed = torch.arange(SEEDS)[:, None].expand(SEEDS, PAIRS)
        weights = self.reference[self.seed, prompt[..., 0]].exp().flatten(0, 1)
        drawn = torch.multinomial(weights, 2, generator=g).view(SEEDS, PAIRS, 2)
        scores = self.reward[self.seed[..., None], prompt, drawn]
        drawn = drawn.gather(-1, scores.argsort(-1, descending=True))
        self.prompt, self.chosen, self.rejected = prompt[..., 0], drawn[..., 0], drawn[..., 1]

    def frontier(self, objective) -> tuple[np.ndarray, np.ndarray]:
        """KL and reward `[beta, seed]` after 400 Adam steps."""
        theta = torch.zeros(len(BETAS), SEEDS, FEATURES, 1, requires_grad=True)
        # A step of Adam changes z by beta times what it changes h by: larger betas take smaller steps.
        adam = torch.optim.Adam([theta], lr=0.05)
        scale = torch.tensor([min(1.0, 1 / beta) for beta in BETAS])[:, None, None, None]
        for _ in range(400):
            log_p = self.policy(theta * scale)
            losses = [
                objective(self.pairs(log_p[b]), beta=beta).loss.sum()
                for b, beta in enumerate(BETAS)
            ]
            (gradient,) = torch.autograd.grad(torch.stack(losses).sum() / PAIRS, theta)
            theta.grad = gradient
            adam.step()
        with torch.no_grad():
            log_p = self.policy(theta * scale)
            kl = (log_p.exp() * (log_p - self.reference)).sum(-1).mean(-1)
            return kl.numpy(), (log_p.exp() * self.reward).sum(-1).mean(-1).numpy()

    def policy(self, theta: torch.Tensor) -> torch.Tensor:
        shift = (self.features @ theta).view(len(BETAS), SEEDS, PROMPTS, ANSWERS)
        return torch.log_softmax(self.reference + shift, -1)

    def pairs(self, log_p: torch.Tensor) -> Pairs:
        def at(values: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
            return values[self.seed, self.prompt, answer].flatten()

        return Pairs(
            at(log_p, self.chosen), at(log_p, self.rejected),
            at(self.reference, self.chosen), at(self.reference, self.rejected),
            score_chosen=at(self.reward, self.chosen), score_rejected=at(self.reward, self.rejected),
        )  # fmt: skip


def reward_at(kl: float, kls: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """Reward of each seed at `kl`, interpolated along beta, linearly in the square root of the KL."""
    roots = np.sqrt(kls[::-1])
    return np.array([np.interp(kl**0.5, roots[:, s], rewards[::-1, s]) for s in range(SEEDS)])


@pytest.mark.slow
def test_odpo_has_more_reward_at_equal_kl_with_few_pairs() -> None:
    problem = Problem(seed=2)
    kls, rewards = problem.frontier(dpo)
    offset = problem.frontier(partial(odpo, alpha=1.0, offset="log"))
    for kl in (0.1, 0.3, 1.0):
        plain = reward_at(kl, kls, rewards)
        gain = reward_at(kl, *offset) - plain
        assert (gain > 0).sum() > SEEDS // 2, (kl, gain)
        # The same curve read at every other beta: what interpolation alone can do.
        null = reward_at(kl, kls[::2], rewards[::2]) - reward_at(kl, kls[1::2], rewards[1::2])
        assert gain.mean() > 2 * abs(null.mean()), (kl, gain.mean(), null.mean())
