"""Random numbers that belong to a sample, and tokens drawn with them."""

from typing import Any

import numpy as np
import pytest
import torch

from prefopt.generate.draw import draw_tokens, uniforms
from prefopt.generate.seeds import sample_key


def test_uniforms_are_the_published_splitmix64_stream():
    # First outputs of SplitMix64 from seed 0 and seed 1234567, as in its reference implementations.
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    other = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for position in range(3):
        expected = [(first[position] >> 11) / 2**53, (other[position] >> 11) / 2**53]
        assert uniforms([0, 1234567], position).tolist() == expected


def test_keys_depend_on_every_part():
    base: dict[str, Any] = {"seed": 1, "purpose": "errors", "id": "a", "sample": 0}
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"seed": 2},
        {"purpose": "fixes"},
        {"id": "b"},
        {"sample": 1},
    )
    assert len({sample_key(**{**base, **change}) for change in changes}) == 5
    assert sample_key(seed=1, purpose="x", id="11", sample=1) != sample_key(
        seed=1, purpose="x1", id="1", sample=1
    )


def test_uniforms_fill_the_interval_evenly():
    keys = [sample_key(seed=0, purpose="t", id=str(i), sample=0) for i in range(20_000)]
    for position in (0, 1, 63):
        counts, _ = np.histogram(uniforms(keys, position), bins=10, range=(0, 1))
        # Standard deviation of a count is 42.
        assert np.abs(counts - 2000).max() < 200


def draw(probabilities, numbers, **settings):
    logits = torch.log(torch.tensor([probabilities] * len(numbers)))
    uniform = torch.tensor(numbers, dtype=torch.float64)
    return draw_tokens(logits, uniform, **{"temperature": 1.0, "top_p": 1.0, **settings}).tolist()


def test_the_cumulative_distribution_is_inverted():
    assert draw([0.2, 0.5, 0.3], [0.0, 0.19, 0.21, 0.69, 0.71, 0.999]) == [0, 0, 1, 1, 2, 2]


def test_tokens_without_probability_are_never_drawn():
    last = 1 - 2.0**-53
    assert draw([0.0, 0.5, 0.0, 0.5, 0.0], [0.0, 0.49, 0.51, last]) == [1, 1, 3, 3]
    assert draw([1.0, 0.0, 0.0], [0.0, last]) == [0, 0]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.45, [1, 1, 1]), (0.55, [1, 2, 2]), (0.85, [0, 2, 2]), (1e-9, [1, 1, 1])],
)
def test_the_nucleus_holds_the_most_probable_tokens(top_p, expected):
    # In order of probability: 1 (0.5), 2 (0.3), 0 (0.15), 3 (0.05).
    assert draw([0.15, 0.5, 0.3, 0.05], [0.1, 0.7, 0.999], top_p=top_p) == expected


def test_temperature_sharpens():
    # At temperature 0.5 the probabilities 0.25, 0.75 become 0.1, 0.9.
    assert draw([0.25, 0.75], [0.0999, 0.1001], temperature=0.5) == [0, 1]


def test_sums_over_a_large_vocabulary_stay_exact():
    size = 200_000
    numbers = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    drawn = draw_tokens(torch.zeros(1, size).expand(50, size), numbers, temperature=1.0, top_p=1.0)
    assert (drawn - (numbers * size).floor()).abs().max() <= 1
