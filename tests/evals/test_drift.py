"""Divergence along samples: against full enumeration, against logits of plain calls, and at its limits."""

import itertools
import math

import pytest
import torch
from torch import nn

from prefopt.errors import ConfigError, NonFiniteError, RecordError
from prefopt.evals.drift import sequence_kl
from prefopt.generate.base import Completion, Request, Sampling
from prefopt.generate.local import LocalGenerator
from prefopt.records import Message
from prefopt.worlds.base import tiny_llama
from prefopt.worlds.reviews import ReviewSettings, ReviewWorld
from prefopt.worlds.tokenizer import EOS, word_tokenizer

WORDS = ["a", "b", "c"]
LIMIT = 3
PROMPT = (Message("user", "ab"),)


@pytest.fixture(scope="module")
def tiny():
    """Two models that write only a, b, c and the end: everything else has a probability of about 1e-17."""
    tokenizer = word_tokenizer(WORDS)
    written = [tokenizer.get_vocab()[word] for word in (*WORDS, EOS)]
    models = []
    for seed in (0, 1):
        model = tiny_llama(tokenizer, hidden_size=16, layers=1, positions=32, seed=seed)
        head = nn.Linear(16, len(tokenizer), bias=True)
        with torch.no_grad():
            head.weight.copy_(4 * model.lm_head.weight)
            head.bias.fill_(-40.0)
            head.bias[written] = 0.0
        model.lm_head = head
        models.append(model.double().eval())
    return tokenizer, *models


def everything():
    """All texts of at most LIMIT tokens: those that end by themselves, and those that are cut."""
    ended = [t for n in range(LIMIT) for t in itertools.product(WORDS, repeat=n)]
    cut = list(itertools.product(WORDS, repeat=LIMIT))
    return [
        Completion("p", k, "".join(t), "stop" if len(t) < LIMIT else "length", min(len(t) + 1, LIMIT))
        for k, t in enumerate([*ended, *cut])
    ]  # fmt: skip


def requests(completions, prompt=PROMPT):
    return [Request(c.id, c.sample, prompt) for c in completions]


@torch.no_grad()
def conditionals(model, tokenizer, completion):
    """Log-probabilities `[n, V]` before each token of a completion, and the tokens, by a plain call."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "ab"}], tokenize=False, add_generation_prompt=True
    )
    head = tokenizer(text, add_special_tokens=False)["input_ids"]
    ends = completion.finish_reason == "stop"
    tail = tokenizer(completion.text, add_special_tokens=False)["input_ids"]
    tail += [tokenizer.eos_token_id] if ends else []
    logits = model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1]
    return logits.log_softmax(-1), torch.tensor(tail)


def test_the_expectation_is_the_divergence_of_the_sequences(tiny):
    tokenizer, policy, reference = tiny
    texts = everything()
    found = sequence_kl(
        policy, reference, tokenizer, requests=requests(texts), completions=texts, batch_size=7
    )
    exact = expected = k1 = total = 0.0
    for completion, estimate in zip(texts, found.per_sample, strict=True):
        (log_p, ids), (log_q, _) = (conditionals(m, tokenizer, completion) for m in tiny[1:])
        p = float(log_p.gather(1, ids[:, None]).sum())
        q = float(log_q.gather(1, ids[:, None]).sum())
        along = float((log_p.exp() * (log_p - log_q)).sum())
        assert estimate == pytest.approx(along, abs=1e-10)
        exact += math.exp(p) * (p - q)
        expected += math.exp(p) * estimate
        k1 += p - q
        total += math.exp(p)
    assert total == pytest.approx(1, abs=1e-12), "nothing else is written"
    assert exact > 0.1
    assert expected == pytest.approx(exact, abs=1e-10)
    assert found.k1 == pytest.approx(k1 / len(texts), abs=1e-10)
    assert found.tokens == pytest.approx(sum(c.tokens for c in texts) / len(texts))


def test_samples_estimate_it_and_k1_with_a_larger_variance(tiny):
    tokenizer, policy, reference = tiny
    exact = 0.0
    for completion in everything():
        (log_p, ids), (log_q, _) = (conditionals(m, tokenizer, completion) for m in tiny[1:])
        p, q = (float(x.gather(1, ids[:, None]).sum()) for x in (log_p, log_q))
        exact += math.exp(p) * (p - q)
    asked = [Request("p", k, PROMPT) for k in range(600)]
    generator = LocalGenerator(policy, tokenizer, batch_size=512)
    sampling = Sampling(temperature=1.0, max_new_tokens=LIMIT)
    drawn = sorted(generator.generate(asked, sampling), key=lambda c: c.sample)
    found = sequence_kl(
        policy, reference, tokenizer, requests=asked, completions=drawn, batch_size=512
    )
    error = torch.tensor(found.per_sample).std().item() / math.sqrt(600)
    assert abs(found.mean - exact) < 4 * error
    assert abs(found.k1 - exact) < 0.3 and abs(found.k3 - exact) < 0.6
    ratios = []
    for completion in drawn[:200]:
        (log_p, ids), (log_q, _) = (conditionals(m, tokenizer, completion) for m in tiny[1:])
        ratios.append(float((log_p - log_q).gather(1, ids[:, None]).sum()))
    assert torch.tensor(found.per_sample[:200]).var() < 0.7 * torch.tensor(ratios).var()


def test_k3_by_hand(tiny):
    tokenizer, policy, reference = tiny
    texts = everything()[:3]
    found = sequence_kl(policy, reference, tokenizer, requests=requests(texts), completions=texts)
    values = []
    for completion in texts:
        (log_p, ids), (log_q, _) = (conditionals(m, tokenizer, completion) for m in tiny[1:])
        r = float((log_q - log_p).gather(1, ids[:, None]).sum())
        values.append(math.exp(r) - 1 - r)
    assert found.k3 == pytest.approx(sum(values) / 3, abs=1e-10)


@pytest.fixture(scope="module")
def world():
    return ReviewWorld(ReviewSettings(hidden_size=32, layers=1))


@pytest.fixture(scope="module")
def sampled(world):
    policy, tokenizer = world.blank_model(1), world.tokenizer()
    asked = [Request(p.id, k, p.prompt) for p in world.prompts("test", 12) for k in range(2)]
    drawn = {
        (c.id, c.sample): c
        for c in LocalGenerator(policy, tokenizer).generate(
            asked, Sampling(temperature=1.0, max_new_tokens=10)
        )
    }
    return policy, tokenizer, asked, [drawn[r.id, r.sample] for r in asked]


def test_a_policy_is_no_distance_from_itself(sampled):
    policy, tokenizer, asked, drawn = sampled
    policy.train()
    found = sequence_kl(policy, policy, tokenizer, requests=asked, completions=drawn)
    assert (found.mean, found.low, found.high, found.k1, found.k3) == (0, 0, 0, 0, 0)
    assert policy.training, "the mode is left as it was"
    policy.eval()


def test_batches_do_not_matter(world, sampled):
    policy, tokenizer, asked, drawn = sampled
    one = sequence_kl(
        policy, world.blank_model(2), tokenizer, requests=asked, completions=drawn, batch_size=1
    )
    all_at_once = sequence_kl(
        policy, world.blank_model(2), tokenizer, requests=asked, completions=drawn
    )
    assert one.per_sample == pytest.approx(all_at_once.per_sample, rel=1e-5)
    assert 0 < one.low < one.mean < one.high


def test_what_does_not_belong_together_is_refused(world, sampled):
    policy, tokenizer, asked, drawn = sampled
    with pytest.raises(ConfigError, match="there are no completions"):
        sequence_kl(policy, policy, tokenizer, requests=[], completions=[])
    with pytest.raises(ConfigError, match="24 requests and 23 completions part at position 23"):
        sequence_kl(policy, policy, tokenizer, requests=asked, completions=drawn[:-1])
    with pytest.raises(ConfigError, match="24 requests and 24 completions part at position 0"):
        sequence_kl(policy, policy, tokenizer, requests=asked, completions=drawn[::-1])
    other = tiny_llama(word_tokenizer(WORDS), hidden_size=16, layers=1, positions=32, seed=0)
    with pytest.raises(ConfigError, match=r"vocabulary of \d+, the reference of 10"):
        sequence_kl(policy, other, tokenizer, requests=asked, completions=drawn)
    nothing = Completion("p", 0, "", "length", 0)
    with pytest.raises(
        RecordError, match="record 'p, sample 0': response 0 has no tokens to score"
    ):
        sequence_kl(policy, policy, tokenizer, requests=requests([nothing]), completions=[nothing])


def test_broken_weights_are_named_with_their_record(world, sampled):
    policy, tokenizer, asked, drawn = sampled
    broken = world.blank_model(3)
    with torch.no_grad():
        broken.lm_head.weight[5] = math.nan
    with pytest.raises(
        NonFiniteError, match=r"record 'test-0-\d+, sample \d': log-probabilities .* nan"
    ):
        sequence_kl(policy, broken, tokenizer, requests=asked, completions=drawn)
