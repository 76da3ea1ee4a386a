"""Log-probabilities of responses against plain calls of the model."""

import pytest
import torch

from prefopt.errors import RecordError
from prefopt.models.likelihood import response_logps
from prefopt.records import Message, Preference, Response
from prefopt.worlds.reviews import ReviewSettings, ReviewWorld

QUESTION = "Review this comedy: plot, acting."
TEXTS = ["This comedy is good.", "This comedy is not very good. The plot is dull.", ""]


@pytest.fixture(scope="module")
def world():
    return ReviewWorld(ReviewSettings(hidden_size=32, layers=1))


def records(ends=True):
    prompt = (Message("user", QUESTION),)
    return [
        Preference("a", prompt, tuple(Response(t, ends=ends) for t in TEXTS[:2])),
        Preference("b", prompt, (Response(TEXTS[2]),)),
    ]


@torch.no_grad()
def plain(model, tokenizer, text, *, ends):
    head = tokenizer(f"<bos><|user|>{QUESTION}<eos><|assistant|>", add_special_tokens=False)
    tail = tokenizer(text, add_special_tokens=False)["input_ids"]
    tail += [tokenizer.eos_token_id] if ends else []
    ids = torch.tensor([head["input_ids"] + tail])
    logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return float(logp[-len(tail) :].sum()), len(tail)


@pytest.mark.parametrize("ends", [True, False])
def test_against_plain_calls(world, ends):
    model, tokenizer = world.blank_model(), world.tokenizer()
    model.train()
    found = response_logps(model, tokenizer, records(ends), batch_size=1)
    assert model.training, "the mode is left as it was"
    assert found[0] != () and len(found) == 2
    cases = [*zip(found[0], TEXTS[:2], [ends, ends], strict=True), (found[1][0], "", True)]
    for response, text, ended in cases:
        total, tokens = plain(model, tokenizer, text, ends=ended)
        assert response.total == pytest.approx(total, abs=1e-4)
        assert response.tokens == tokens
        assert response.mean == pytest.approx(total / tokens, abs=1e-4)
    together = response_logps(model, tokenizer, records(ends))
    for one, other in zip(found, together, strict=True):
        assert [r.total for r in one] == pytest.approx([r.total for r in other], abs=1e-4)


def test_a_response_without_tokens_is_named(world):
    nothing = Preference("n", (Message("user", QUESTION),), (Response("", ends=False),))
    with pytest.raises(RecordError, match="record 'n': response 0 has no tokens to score"):
        response_logps(world.blank_model(), world.tokenizer(), [nothing])
