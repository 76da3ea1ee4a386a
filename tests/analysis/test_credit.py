"""Token credit against plain calls of transformers, and its numbers against brute force and literal cases."""

import math
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from prefopt.analysis.credit import (
    CreditText,
    ResponseCredit,
    auroc,
    compare_credit,
    credit_numbers,
    credit_texts,
    response_numbers,
    token_credit,
)
from prefopt.analysis.spans import Located, locate_error, split_parts
from prefopt.errors import NonFiniteError, RecordError
from prefopt.models.load import load_model
from prefopt.records import Message, Pair, Preference, Response
from prefopt.text.tokens import TokenSequence
from tests.tiny import make_model_folder, make_tokenizer

QUESTION = "3 + 4 - 2?"
RIGHT = "Step 1: 3 + 4 = 7.\nStep 2: 7 - 2 = 5.\nThe answer is 5."
WRONG = "Step 1: 3 + 4 = 8.\nStep 2: 8 - 2 = 6.\nThe ànswer is 6 — 猫."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    return [make_model_folder(home / str(seed), "llama", seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def models(folders):
    return [load_model(folder) for folder in folders]


def records():
    prompt = (Message("user", QUESTION),)
    both = (Response(RIGHT), Response(WRONG))
    prefix, tail = "Step 1: 3 + 4 = 7.\nStep 2:", (" 7 - 2 = 5.", " 7 - 2 = 4.")
    return [
        Preference("whole", prompt, both, (Pair(0, 1),), meta={"step": 1}),
        Preference("text", "Sum: ", both, (Pair(0, 1),), meta={"step": 2}),
        Preference(
            "step",
            prompt,
            tuple(Response(t, ends=False) for t in tail),
            (Pair(0, 1),),
            prefix=prefix,
            meta={"step": 2},
        ),
    ]


@torch.no_grad()
def plain(folder, tokenizer, text, tail):
    """Log-probabilities of the last characters of a text, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor([encoded["input_ids"]])
    logp = model(ids).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    first = sum(end <= len(text) - tail for _, end in encoded["offset_mapping"])
    return logp[first - 1 :].numpy()


def test_rewards_against_plain_calls(folders, models):
    policy, reference = models[0], models[1]
    found = token_credit(
        policy.model, reference.model, policy.tokenizer, records(), beta=0.3, batch_size=2
    )
    chat = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    end = "<|im_end|>"
    cases = [
        (chat + WRONG + end, len(WRONG + end)),
        ("Sum: " + WRONG + end, len(WRONG + end)),
        (chat + "Step 1: 3 + 4 = 7.\nStep 2: 7 - 2 = 4.", len(" 7 - 2 = 4.")),
    ]
    assert [credit.text.id for credit in found] == ["whole", "text", "step"]
    assert [credit.text.role for credit in found] == ["rejected"] * 3
    for credit, (text, tail) in zip(found, cases, strict=True):
        first, second = (plain(f, policy.tokenizer, text, tail) for f in folders[:2])
        assert credit.policy == pytest.approx(first, abs=1e-5)
        assert credit.reference == pytest.approx(second, abs=1e-5)
        assert credit.rewards == pytest.approx(0.3 * (first - second), abs=1e-5)


def test_sums_telescope(models):
    """A3: token rewards add up to step rewards, step rewards to the reward of the tail."""
    policy, reference = models[0], models[1]
    for credit in token_credit(
        policy.model, reference.model, policy.tokenizer, records(), beta=0.1, which="all"
    ):
        parts = credit.parts()
        assert sum(p.tokens for p in parts) == len(credit.rewards)
        assert sum(p.total for p in parts) == pytest.approx(credit.total, abs=1e-12)
        whole = 0.1 * (credit.policy.sum() - credit.reference.sum())
        assert credit.total == pytest.approx(whole, abs=1e-12)
        assert [p.total for p in parts if p.tokens] == pytest.approx(
            [
                sum(
                    r
                    for r, (start, _) in zip(credit.rewards, credit.text.offsets, strict=True)
                    if p.part.start <= start < p.part.end
                )
                for p in parts
                if p.tokens
            ]
        )


def test_a_policy_that_is_its_reference_rewards_nothing(models):
    model, tokenizer, _ = models[0]
    for credit in token_credit(model, model, tokenizer, records()):
        assert not credit.rewards.any()


def test_tokens_lie_where_the_text_is(models):
    tokenizer = models[0].tokenizer
    whole, text, step = credit_texts(records(), tokenizer)
    assert step.text == " 7 - 2 = 4."
    assert step.in_error().all()
    assert whole.text == WRONG + "<|im_end|>"
    assert whole.error is not None
    first = WRONG[whole.error.start : whole.error.end]
    assert first == " 3 + 4 = 8."
    pieces = tokenizer.decode(np.array(whole.tokens)[whole.in_error()])
    assert pieces == " 3 + 4 = 8."
    second = tokenizer.decode(np.array(text.tokens)[text.in_error()])
    assert second == " 8 - 2 = 6.\nThe ànswer is 6 — 猫."


def test_batches_do_not_matter(models):
    policy, reference, tokenizer = models[0].model, models[1].model, models[0].tokenizer
    policy.train()
    one, many = (
        token_credit(policy, reference, tokenizer, records(), batch_size=n, which="all")
        for n in (1, 9)
    )
    assert policy.training
    policy.eval()
    for a, b in zip(one, many, strict=True):
        assert a.rewards == pytest.approx(b.rewards, abs=1e-6)


def test_which_responses(models):
    tokenizer = models[0].tokenizer
    assert [t.role for t in credit_texts(records()[:1], tokenizer, which="all")] == [
        "chosen",
        "rejected",
    ]
    assert [t.text for t in credit_texts(records()[2:], tokenizer, which="chosen")] == [
        " 7 - 2 = 5."
    ]
    plain_one = Preference("p", "q ", (Response("x"),))
    with pytest.raises(RecordError, match="none of the 1 records has a rejected response"):
        credit_texts([plain_one], tokenizer)
    assert [t.role for t in credit_texts([plain_one], tokenizer, which="all")] == ["response"]


def test_bad_numbers_are_named(folders, models):
    broken = AutoModelForCausalLM.from_pretrained(folders[0])
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="record '.*', response 1: token 0 has a log-prob"):
        token_credit(broken, models[1].model, models[0].tokenizer, records())


def test_turns_are_parts(models):
    turns = (
        Message("assistant", "3 + 4 = 7"),
        Message("user", "go on"),
        Message("assistant", "7 - 2 = 5"),
    )
    record = Preference("t", (Message("user", QUESTION),), (Response(turns=turns),))
    (text,) = credit_texts([record], models[0].tokenizer, which="all")
    assert [(p.number, p.kind) for p in text.parts] == [(1, "turn"), (2, "turn")]
    assert set(text.part_of_token()) == {0, 1}
    assert "go on" in text.text


def brute(scores, positive):
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, p in zip(scores, positive, strict=True)
        for b, q in zip(scores, positive, strict=True)
        if p and not q
    ]
    return sum(wins) / len(wins)


def test_auroc_against_every_comparison():
    rng = random.Random(0)
    for size in (2, 3, 10, 60):
        for _ in range(20):
            scores = [rng.choice([-1.0, 0.0, 0.25, rng.random()]) for _ in range(size)]
            positive = [True, False, *(rng.random() < 0.3 for _ in range(size - 2))]
            assert auroc(scores, positive) == pytest.approx(brute(scores, positive), abs=1e-12)


def test_auroc_by_hand():
    assert auroc([3, 2, 1], [True, False, False]) == 1.0
    assert auroc([1, 2, 3], [True, False, False]) == 0.0
    assert auroc([1, 1, 1, 1], [True, False, True, False]) == 0.5
    assert auroc([2, 1, 2], [True, False, False]) == 0.75


@pytest.mark.parametrize(
    ("scores", "positive"),
    [([1, 2], [True, True]), ([1, 2], [False, False]), ([1], [True, False]), ([], [])],
)
def test_auroc_without_both_kinds(scores, positive):
    with pytest.raises(ValueError):
        auroc(scores, positive)


def test_auroc_refuses_nan():
    with pytest.raises(ValueError, match="numbers"):
        auroc([math.nan, 1.0], [True, False])


STEPS = "Step 1: ab\nStep 2: cd\nStep 3: ef"
"""A token a character: three steps of 11, 11 and 10."""


def credit(rewards, *, step: int | None = 2, name="r", text=STEPS):
    record = Preference(name, "q", (Response(text),), meta={} if step is None else {"step": step})
    parts = split_parts("", text, len(text))
    located = locate_error(record, 0, parts) if step else Located(None, "")
    n = len(text)
    sequence = TokenSequence([0] * (n + 1), [False] + [True] * n, [-1] + [0] * n)
    offsets = tuple((i, i + 1) for i in range(n))
    one = CreditText(name, 0, "rejected", text, sequence, offsets, parts, located)
    return ResponseCredit(one, np.array(rewards, dtype=float), np.zeros(n), 1.0)


def auroc_of(one: ResponseCredit) -> float:
    found = response_numbers(one).auroc
    assert found is not None
    return found


def steps(first, second, third):
    return [first / 11] * 11 + [second / 11] * 11 + [third / 10] * 10


def test_numbers_of_one_response_by_hand():
    found = response_numbers(credit(steps(1.0, -2.0, 0.5)))
    assert found.steps == 3
    assert (found.sum_rank, found.mean_rank) == (1, 1)
    assert (found.sum_lowest, found.mean_lowest) == (1, 1)
    assert found.sum_difference == pytest.approx(-2.0 - 0.75)
    assert found.mean_difference == pytest.approx(-2 / 11 - (1 / 11 + 0.5 / 10) / 2)
    # The error span is " cd": 3 of the 11 lowest tokens; the other 8 tie with them, 21 are above.
    assert found.auroc == pytest.approx((8 / 2 + 21) / 29)


def test_ranks_of_equal_steps_are_shared():
    found = response_numbers(credit([0.0] * 32))
    assert (found.sum_rank, found.mean_rank, found.auroc) == (2.0, 2.0, 0.5)
    assert found.sum_lowest == pytest.approx(1 / 3)
    highest = response_numbers(credit(steps(-1.0, 1.0, -1.0)))
    assert (highest.sum_rank, highest.mean_rank, highest.sum_lowest) == (3.0, 3.0, 0.0)


def test_sums_and_means_can_disagree():
    found = response_numbers(credit(steps(-1.05, -1.0, -1.04), step=3))
    assert (found.sum_rank, found.mean_rank) == (2.0, 1.0)


def test_without_a_known_error_there_are_no_numbers():
    assert response_numbers(credit([0.0] * 32, step=None)) == (*[None] * 7, 3)
    numbers = credit_numbers([credit([0.0] * 32, step=None)])
    assert (numbers.responses, numbers.located, numbers.tokens) == (1, 0, 0)
    assert numbers.auroc is None and numbers.auroc_pooled is None and numbers.random_rank is None


def test_interpreter_output_does_not_count():
    text = "<|code|>a<|endofblock|><|execution|>9<|endofblock|><|text|>b<|endofblock|>"
    rewards = np.zeros(len(text))
    rewards[text.index("<|execution|>") : text.index("<|text|>")] = -9.0
    rewards[text.index("a<")] = -1.0
    found = credit(rewards, step=1, text=text)
    assert response_numbers(found).auroc == 1.0
    assert response_numbers(found).steps == 2
    assert credit_numbers([found]).tokens == len(text) - len("<|execution|>9<|endofblock|>")


def test_numbers_of_many_responses():
    several = [
        credit(steps(1.0, -2.0, 0.5), name="a"),
        credit(steps(-1.0, 1.0, -1.0), name="b"),
        credit([0.0] * 32, step=None, name="c"),
    ]
    found = credit_numbers(several, resamples=500)
    assert (found.responses, found.located, found.ranked_responses) == (3, 2, 2)
    assert (found.tokens, found.error_tokens) == (64, 6)
    assert found.random_rank == 2.0
    assert found.random_lowest == pytest.approx(1 / 3)
    assert found.sum_rank is not None and found.sum_rank.value == 2.0
    assert found.sum_lowest is not None and found.sum_lowest.value == 0.5
    first, second = (auroc_of(c) for c in several[:2])
    assert found.auroc is not None
    assert found.auroc.value == pytest.approx((first + second) / 2)
    assert (found.auroc.low, found.auroc.high) == pytest.approx((min(first, second), first))
    scores = np.concatenate([-c.rewards for c in several[:2]])
    mask = np.concatenate([c.text.in_error() for c in several[:2]])
    assert found.auroc_pooled == pytest.approx(brute(scores, mask))


def test_paired_comparison():
    better = [credit(steps(1.0, -2.0, 0.5), name=n) for n in "abc"]
    worse = [credit([0.0] * 32, name=n) for n in "abc"]
    gain = auroc_of(better[0]) - 0.5
    assert compare_credit(worse, better) == pytest.approx((gain, gain, gain))
    assert compare_credit(worse[:1], [credit([0.0] * 32, step=None, name="a")]) is None
    with pytest.raises(ValueError, match="same records"):
        compare_credit(worse, better[:2])


def test_byte_tokens_of_one_character(models):
    """A character of several tokens: each of them is in the span, and the text is covered once."""
    tokenizer = make_tokenizer()
    (text,) = credit_texts([records()[0]], tokenizer)
    cat = text.text.index("猫")
    covering = [o for o in text.offsets if o == (cat, cat + 1)]
    assert len(covering) == 3
