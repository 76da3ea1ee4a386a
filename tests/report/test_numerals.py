import math

import pytest

from prefopt.report.numerals import count, decimal, interval, percent, plural, points, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.12345, "0.123"),
        (-0.5, "−0.500"),
        (3.14159, "3.14"),
        (1234.56, "1234.6"),
        (1e-5, "1.00e-05"),
        (2.5e6, "2.50e+06"),
        (None, "–"),
        (math.nan, "not a number"),
        (-math.inf, "−∞"),
    ],
)
def test_decimal(value, text):
    assert decimal(value) == text


def test_signs():
    assert decimal(2.0, signed=True) == "+2.00"
    assert decimal(0.0, signed=True) == "0.000"
    assert points(0.238) == "+23.8"
    assert points(-0.042) == "−4.2"


def test_shares_and_counts():
    assert percent(0.8125) == "81.2%"
    assert percent(None) == "–"
    assert count(47300) == "47,300"
    assert interval(0.805, 0.87, proportion=True) == "80.5–87.0%"
    assert interval(1.2, 1.45, proportion=False) == "1.20 to 1.45"
    assert interval(None, 1.0, proportion=True) == "–"
    assert plural(1, "pair") == "1 pair"
    assert plural(360, "pair") == "360 pairs"


def test_size_in_binary_units():
    assert size(512) == "512 B"
    assert size(1536) == "1.5 KiB"
    assert size(64 * 2**20) == "64.0 MiB"
    assert size(3 * 2**40) == "3.0 TiB"
