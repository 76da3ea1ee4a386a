"""Special tokens in completions: kept or left out, the same tokens either way; and how much room a prompt leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prefopt.generate.base import Bounded, Request, Sampling
from prefopt.generate.local import LocalGenerator
from prefopt.models.load import load_model
from prefopt.models.special_tokens import add_special_tokens
from prefopt.text.blocks import SPECIAL_TOKENS, conversation
from tests.tiny import make_model_folder, make_tokenizer


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> LocalGenerator:
    folder = tmp_path_factory.mktemp("models") / "m"
    model, tokenizer, _ = load_model(
        make_model_folder(folder, "llama", tokenizer=make_tokenizer(chat_template=None))
    )
    add_special_tokens(model, tokenizer, SPECIAL_TOKENS, multiple=1)
    return LocalGenerator(model, tokenizer)


REQUESTS = [Request(f"r{i}", 0, conversation("", "3 + 4?"), "<|text|>7") for i in range(12)]
PLAIN = Sampling(temperature=1.5, max_new_tokens=24)


def test_kept_or_left_out_the_tokens_are_the_same(generator: LocalGenerator) -> None:
    kept = {c.id: c for c in generator.generate(REQUESTS, replace(PLAIN, keep_special=True))}
    plain = {c.id: c for c in generator.generate(REQUESTS, PLAIN)}
    assert kept.keys() == plain.keys()
    marked = 0
    for record, completion in kept.items():
        text = completion.text
        for token in generator._tokenizer.all_special_tokens:
            marked += text.count(token)
            text = text.replace(token, "")
        # Bytes that a marker kept apart may join into one character: only whole characters are compared.
        if "\ufffd" not in completion.text + plain[record].text:
            assert text == plain[record].text
        assert completion.tokens == plain[record].tokens
    assert marked > 3


def test_what_stopped_a_completion_is_told_and_not_part_of_it(generator: LocalGenerator) -> None:
    stop = ("<|endofblock|>", "<|endofmessage|>")
    sampling = Sampling(temperature=1.5, max_new_tokens=100, stop=stop, keep_special=True)
    found = list(generator.generate(REQUESTS, sampling))
    assert {c.stopped_by for c in found} & set(stop)
    assert all((c.stopped_by is None) or (c.finish_reason == "stop") for c in found)
    assert not any(s in c.text for c in found for s in stop)


def test_keeping_special_tokens_is_another_sampling_and_the_default_keeps_its_journals() -> None:
    assert Sampling(keep_special=True).digest() != Sampling().digest()
    assert Sampling(temperature=0.7, stop=("x",)).digest() == "2b63019ce54d78c0"


def test_room_counts_what_the_model_reads(generator: LocalGenerator) -> None:
    assert isinstance(generator, Bounded)
    prompts = [Request("a", 0, "ab"), Request("b", 0, "ab", "<|text|>" * 10)]
    first, second = generator.room(prompts)
    assert first - second == 10
    assert first == 256 - len(generator._tokenizer("ab").input_ids)
    assert generator.room([Request("c", 0, "<|text|>" * 300)]) == [-44]
