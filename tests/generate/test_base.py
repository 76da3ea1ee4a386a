"""Requests and sampling settings: what makes two of them the same."""

import dataclasses
import re

import pytest

from prefopt.errors import ConfigError
from prefopt.generate.base import Request, Sampling
from prefopt.records import Message

CHAT = (Message("user", "2 + 2?"),)


def test_a_request_is_what_the_model_is_shown():
    request = Request("a", 0, CHAT, "Step 1:")
    shown = {
        request.digest(),
        Request("a", 0, CHAT).digest(),
        Request("a", 0, "2 + 2?", "Step 1:").digest(),
        Request("a", 0, (Message("system", "2 + 2?"),), "Step 1:").digest(),
        Request("a", 0, CHAT, "Step 1:", meta={"tools": ["search"]}).digest(),
    }
    assert len(shown) == 5
    assert Request("b", 7, CHAT, "Step 1:").digest() == request.digest()
    assert Request("a", 0, CHAT, "Step 1:", meta={"answer": "4"}).digest() == request.digest()


def test_moving_text_between_prompt_and_prefix_is_another_request():
    assert Request("a", 0, "ab", "c").digest() != Request("a", 0, "a", "bc").digest()


def test_the_digest_stays_the_same_between_versions():
    assert Request("a", 0, "prompt").digest() == "2e8f6edcf09df9e2"
    assert Sampling().digest() == "5f22f105f9db1c1a"


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.5}, {"top_p": 0.9}, {"max_new_tokens": 3}, {"stop": ("\n",)}, {"seed": 1}],
)
def test_every_sampling_setting_counts(change):
    assert dataclasses.replace(Sampling(), **change).digest() != Sampling().digest()


def test_the_purpose_is_kept_apart():
    assert Sampling(purpose="errors").digest() == Sampling().digest()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1.0}, "sampling: temperature is -1.0; use 0 (greedy) or more"),
        ({"temperature": float("nan")}, "sampling: temperature is nan; use 0 (greedy) or more"),
        ({"top_p": 0.0}, "sampling: top_p is 0.0; use more than 0 and at most 1"),
        ({"top_p": 1.5}, "sampling: top_p is 1.5; use more than 0 and at most 1"),
        ({"max_new_tokens": 0}, "sampling: max_new_tokens is 0; use 1 or more"),
        ({"stop": ("",)}, "sampling: stop is ('',); an empty string would end every completion"),
    ],
)
def test_impossible_sampling_is_refused(setting, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Sampling(**setting)
