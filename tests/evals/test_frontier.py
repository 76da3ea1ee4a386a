"""The frontier's geometry by hand, and a policy measured against itself and another."""

from functools import partial

import pytest

from prefopt.errors import ConfigError
from prefopt.evals.frontier import FrontierPoint, measure, pareto, reward_at
from prefopt.generate.base import Sampling
from prefopt.worlds.reviews import ReviewSettings, ReviewWorld

P = FrontierPoint
SAMPLING = Sampling(temperature=1.0, max_new_tokens=10)


def test_pareto_by_hand():
    points = [P(0.0, 1.0), P(0.5, 1.2), P(0.5, 1.1), P(0.6, 1.2), P(1.0, 1.5), P(2.0, 1.4)]
    assert pareto(points) == [True, True, False, False, True, False]
    assert pareto([P(1.0, 1.0), P(1.0, 1.0)]) == [True, True]
    assert pareto([]) == []
    assert pareto(points[::-1]) == pareto(points)[::-1]


def test_reward_at_by_hand():
    points = [P(2.0, 1.6), P(0.0, 1.0), P(1.0, 1.4)]
    assert [reward_at(points, kl) for kl in (0.0, 0.5, 1.0, 1.5, 2.0)] == pytest.approx(
        [1.0, 1.0 + 0.4 * 0.5**0.5, 1.4, 1.4 + 0.2 * (1.5**0.5 - 1) / (2**0.5 - 1), 1.6]
    )
    assert reward_at(points, 2.1) is None and reward_at(points[:1], 1.9) is None
    assert reward_at([], 1.0) is None
    assert reward_at([P(0.0, 1.0), P(1.0, 1.0), P(1.0, 2.0)], 0.25) == pytest.approx(1.25)


def test_a_curve_read_at_other_points_is_the_same_curve():
    """What decides a comparison at equal KL must be the policies, not where their betas put them."""

    def curve(kls: list[float]) -> list[FrontierPoint]:
        return [P(0.0, 1.0), *(P(kl, 1.0 + 0.8 * (1 - 2.718281828 ** -(kl**0.5))) for kl in kls)]

    one, other = curve([0.05, 0.2, 0.8, 3.0]), curve([0.1, 0.4, 1.6, 6.0])
    for kl in (0.1, 0.3, 1.0, 2.0):
        assert reward_at(one, kl) == pytest.approx(reward_at(other, kl), abs=0.01)


@pytest.fixture(scope="module")
def world():
    return ReviewWorld(ReviewSettings(hidden_size=32, layers=1))


def test_a_policy_is_measured_on_its_own_samples(world):
    first, second, tokenizer = world.blank_model(0), world.blank_model(1), world.tokenizer()
    ask = partial(
        measure, first, tokenizer=tokenizer, prompts=world.prompts("test", 8), score=world.score,
        sampling=SAMPLING, samples=3,
    )  # fmt: skip
    own = ask(first)
    assert own.kl.mean == 0
    texts = [c.text for c in own.completions]
    assert len(texts) == 24 and len(set(texts)) > 20
    assert own.reward.value == pytest.approx(sum(map(world.score, texts)) / 24)
    assert own.reward.low <= own.reward.value <= own.reward.high
    other = ask(second)
    assert other.completions == own.completions and other.kl.mean > 0
    assert len(other.kl.per_sample) == 24


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.7), Sampling(temperature=1.0, top_p=0.9), Sampling()]
)
def test_other_policies_than_the_model_s_own_are_refused(world, sampling):
    model = world.blank_model()
    with pytest.raises(ConfigError, match="change the policy that is measured; use 1 and 1"):
        measure(
            model, model, world.tokenizer(), prompts=world.prompts("test", 1), score=world.score,
            sampling=sampling,
        )  # fmt: skip
