"""Decoding with transformers models: against `generate` of transformers, and against itself in other batches."""

import random
from collections import Counter
from typing import Any, cast

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from prefopt.errors import ConfigError, ModelError, NonFiniteError, RecordError
from prefopt.generate.base import Request, Sampling
from prefopt.generate.journal import Journal, complete
from prefopt.generate.local import LocalGenerator
from prefopt.models.lora import LoraSettings, add_lora
from prefopt.records import Message
from tests.tiny import make_model_folder, make_tokenizer

PROMPTS = [
    "Step 1: 3 + 4 = 7",
    "What is the capital of France?",
    "a",
    "You are a helpful assistant. Please answer the question of the user, and do it well.",
    "The summary of this post: she said",
]


def load(folder) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load(make_model_folder(tmp_path_factory.mktemp("llama"), "llama", initializer_range=0.2))


def texts(generator, requests, sampling):
    return {(c.id, c.sample): c for c in generator.generate(requests, sampling)}


def plain_requests(samples=1):
    return [Request(f"r{i}", k, p) for i, p in enumerate(PROMPTS) for k in range(samples)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma3", "mistral"])
def test_greedy_equals_transformers(tmp_path, family):
    wide: dict[str, Any] = {} if family in {"gpt2", "llama", "qwen2"} else {"sliding_window": 8}
    folder = make_model_folder(tmp_path, family, initializer_range=0.2, **wide)
    model, tokenizer = load(folder)
    generator = LocalGenerator(model, tokenizer, batch_size=3)
    found = texts(generator, plain_requests(), Sampling(max_new_tokens=24))
    for i, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt")
        written = model.generate(
            **ids, do_sample=False, max_new_tokens=24, pad_token_id=tokenizer.pad_token_id
        )[0, ids["input_ids"].shape[1] :]
        assert found[f"r{i}", 0].text == tokenizer.decode(written, skip_special_tokens=True)
        assert found[f"r{i}", 0].tokens == len(written)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batches_and_order_do_not_matter(llama, temperature):
    sampling = Sampling(temperature=temperature, top_p=0.95, max_new_tokens=12, seed=3)
    requests = plain_requests(samples=5)
    found = [texts(LocalGenerator(*llama, batch_size=64), requests, sampling)]
    for size, seed in ((1, 0), (7, 1), (64, 2)):
        random.Random(seed).shuffle(requests)
        found.append(texts(LocalGenerator(*llama, batch_size=size), requests, sampling))
    assert found[0] == found[1] == found[2] == found[3]
    if temperature:
        assert len({c.text for c in found[0].values()}) > 20


@pytest.mark.parametrize("change", [{"seed": 4}, {"purpose": "other"}])
def test_seed_and_purpose_make_other_samples(llama, change):
    generator = LocalGenerator(*llama)
    settings: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 8}
    first = texts(generator, plain_requests(), Sampling(**settings))
    other = texts(generator, plain_requests(), Sampling(**settings, **change))
    assert all(first[key].text != other[key].text for key in first)


def test_samples_follow_the_model_s_distribution(llama):
    model, tokenizer = llama
    with torch.no_grad():
        logits = model(**tokenizer("What is the", return_tensors="pt")).logits[0, -1]
    expected: Counter[str] = Counter()
    for token, p in enumerate(torch.softmax(logits / 1.3, -1).tolist()):
        expected[tokenizer.decode([token], skip_special_tokens=True)] += p
    requests = [Request("r", k, "What is the") for k in range(4000)]
    sampling = Sampling(temperature=1.3, max_new_tokens=1)
    drawn = LocalGenerator(*llama, batch_size=1000).generate(requests, sampling)
    counts = Counter(c.text for c in drawn)
    for text, p in expected.most_common(8):
        # Four standard deviations of a binomial share.
        assert counts[text] / 4000 == pytest.approx(p, abs=4 * (p * (1 - p) / 4000) ** 0.5)


def test_a_tiny_nucleus_is_greedy(llama):
    greedy = texts(LocalGenerator(*llama), plain_requests(), Sampling(max_new_tokens=8))
    sampling = Sampling(temperature=1.0, top_p=1e-6, max_new_tokens=8)
    assert texts(LocalGenerator(*llama), plain_requests(), sampling) == greedy


def test_conversations_and_prefixes_are_rendered_as_in_training(llama):
    model, tokenizer = llama
    chat = (Message("system", "You are"), Message("user", "What is the capital of France?"))
    generator = LocalGenerator(model, tokenizer)
    request = Request("r", 0, chat, "Step 1:")
    found = texts(generator, [request], Sampling(max_new_tokens=12))["r", 0]
    text = (
        "<|im_start|>system\nYou are<|im_end|>\n<|im_start|>user\nWhat is the capital of France?"
        "<|im_end|>\n<|im_start|>assistant\nStep 1:"
    )
    same = texts(generator, [Request("r", 0, text)], Sampling(max_new_tokens=12))["r", 0]
    assert found == same


def test_a_bos_token_is_added_where_the_tokenizer_adds_one(tmp_path):
    tokenizer = make_tokenizer(bos=True)
    model, tokenizer = load(make_model_folder(tmp_path, "llama", tokenizer=tokenizer))
    ids = torch.tensor(
        [[tokenizer.bos_token_id, *tokenizer("a", add_special_tokens=False).input_ids]]
    )
    with torch.no_grad():
        expected = tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax())
    found = texts(
        LocalGenerator(model, tokenizer), [Request("r", 0, "a")], Sampling(max_new_tokens=1)
    )
    assert found["r", 0].text == expected
    empty = texts(
        LocalGenerator(model, tokenizer), [Request("r", 0, "")], Sampling(max_new_tokens=2)
    )
    assert empty["r", 0].tokens == 2


def test_stop_strings_end_the_text_before_them(llama):
    generator = LocalGenerator(*llama)
    free = texts(generator, plain_requests(), Sampling(max_new_tokens=20))
    for key, completion in free.items():
        stop = completion.text[5:8]
        request = [r for r in plain_requests() if (r.id, r.sample) == key]
        cut = texts(generator, request, Sampling(max_new_tokens=20, stop=(stop, "never there")))
        assert cut[key].text == completion.text[: completion.text.index(stop)]
        assert cut[key].finish_reason == "stop"
        assert cut[key].tokens < 20


def test_special_tokens_end_a_text_as_stop_strings_and_as_end_tokens(tmp_path):
    model, tokenizer = load(make_model_folder(tmp_path, "llama"))
    request = [Request("r", 0, PROMPTS[0])]
    # Weights are small, so every token, special ones included, comes up about once in 375 draws.
    settings: dict[str, Any] = {"max_new_tokens": 200, "temperature": 1.0, "seed": 5}
    by_string = Sampling(**settings, stop=("<|im_start|>",))
    found = [texts(LocalGenerator(model, tokenizer), request, by_string)["r", 0]]
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids("<|im_start|>")]
    found.append(texts(LocalGenerator(model, tokenizer), request, Sampling(**settings))["r", 0])
    assert found[0] == found[1]
    assert found[0].finish_reason == "stop"
    assert 1 < found[0].tokens < 200


def test_the_limit_is_told(llama):
    found = texts(LocalGenerator(*llama), plain_requests(), Sampling(max_new_tokens=3))
    assert {(c.finish_reason, c.tokens) for c in found.values()} == {("length", 3)}


def test_the_model_s_context_is_never_exceeded(tmp_path):
    model, tokenizer = load(make_model_folder(tmp_path, "gpt2", max_position_embeddings=32))
    room = 32 - len(tokenizer("a b c d e f g h").input_ids)
    generator = LocalGenerator(model, tokenizer)
    request = Request("r", 0, "a b c d e f g h")
    found = texts(generator, [request], Sampling(max_new_tokens=100, temperature=0.5))["r", 0]
    assert found.tokens <= room
    with pytest.raises(
        RecordError, match=r"record 'long': the prompt has \d+ tokens, .*context of 32"
    ):
        list(generator.generate([Request("long", 0, "zq " * 40)], Sampling()))


def test_prompts_that_fill_the_context_can_be_refused_while_the_others_go_on(tmp_path):
    model, tokenizer = load(make_model_folder(tmp_path / "m", "gpt2", max_position_embeddings=32))
    requests = [Request("long", 0, "zq " * 40), Request("short", 0, "a b")]
    sampling = Sampling(max_new_tokens=4)
    generator = LocalGenerator(model, tokenizer, overlong="refuse")
    with Journal(tmp_path / "j.sqlite") as journal:
        long, short = complete(generator, requests, sampling, journal)
        assert journal.count() == 1, "a refusal is no completion"
    assert (long.finish_reason, long.tokens) == ("error", 0)
    tokens = len(tokenizer("zq " * 40).input_ids)
    assert long.text == (
        f"the prompt has {tokens} tokens, which leaves no room in the model's context of 32"
    )
    assert short == next(LocalGenerator(model, tokenizer).generate(requests[1:], sampling))
    assert list(generator.generate(requests[:1], sampling)) == [long]
    with pytest.raises(ConfigError, match="overlong is 'skip'; use error or refuse"):
        LocalGenerator(model, tokenizer, overlong=cast("Any", "skip"))


def test_leading_spaces_survive_decoders_that_strip_them(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", "\u2581Step", "\u25811:", "\u25817", "\u25818"]
    backend = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    model, tokenizer = load(make_model_folder(tmp_path, "llama", tokenizer=tokenizer))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
    # All logits are equal: greedy takes token 0; a bias towards "7" comes from the sampling below.
    sampling = Sampling(temperature=1.0, max_new_tokens=1)
    requests = [Request("r", k, "Step 1:") for k in range(40)]
    found = {c.text for c in LocalGenerator(model, tokenizer).generate(requests, sampling)}
    assert {" 7", " 8", " Step"} <= found
    assert "7" not in found


def test_adapters_count(tmp_path):
    model, tokenizer = load(make_model_folder(tmp_path, "llama", initializer_range=0.2))
    base = LocalGenerator(model, tokenizer)
    plain = texts(base, plain_requests(), Sampling(max_new_tokens=8))
    before = base.identity
    adapted = add_lora(model, LoraSettings())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    generator = LocalGenerator(adapted, tokenizer)
    assert generator.identity != before
    assert texts(generator, plain_requests(), Sampling(max_new_tokens=8)) != plain
    with adapted.disable_adapter():
        assert texts(generator, plain_requests(), Sampling(max_new_tokens=8)) == plain


def test_the_model_is_left_as_it_was(llama):
    model, tokenizer = llama
    model.train()
    list(LocalGenerator(model, tokenizer).generate(plain_requests(), Sampling(max_new_tokens=2)))
    assert model.training
    model.eval()


def test_identity_is_of_weights_tokenizer_and_rendering(tmp_path, llama):
    model, tokenizer = llama
    again = load(make_model_folder(tmp_path / "same", "llama", initializer_range=0.2))
    other = load(make_model_folder(tmp_path / "other", "llama", initializer_range=0.2, seed=1))
    identity = LocalGenerator(model, tokenizer).identity
    assert LocalGenerator(*again, batch_size=1).identity == identity
    assert LocalGenerator(other[0], tokenizer).identity != identity
    assert (
        LocalGenerator(model, make_tokenizer(chat_template="{{ messages }}")).identity != identity
    )


def test_requests_that_cannot_be_answered(llama):
    model, tokenizer = llama
    with pytest.raises(RecordError, match="record 'e': the prompt is empty"):
        list(LocalGenerator(model, tokenizer).generate([Request("e", 0, "")], Sampling()))
    bare = make_tokenizer(chat_template=None)
    chat = Request("c", 0, (Message("user", "hello"),))
    with pytest.raises(
        ModelError, match=r"record 'c': the prompt is a conversation, .*no chat template"
    ):
        list(LocalGenerator(model, bare).generate([chat], Sampling()))
    with pytest.raises(ConfigError, match="batch_size is 0; use 1 or more"):
        LocalGenerator(model, tokenizer, batch_size=0)


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    model, tokenizer = load(make_model_folder(tmp_path, "llama"))
    with torch.no_grad():
        model.lm_head.weight[5, 3] = float("nan")
    message = "record 'r0': the model's logits are not numbers at token 1 of the completion"
    with pytest.raises(NonFiniteError, match=message):
        list(LocalGenerator(model, tokenizer).generate(plain_requests()[:1], Sampling()))


def test_nothing_to_do(llama):
    assert list(LocalGenerator(*llama).generate([], Sampling())) == []


def test_the_stop_string_that_ended_a_text_is_named(tmp_path):
    model, tokenizer = load(make_model_folder(tmp_path / "m", "llama"))
    generator = LocalGenerator(model, tokenizer)
    request = Request("a", 0, PROMPTS[1])
    (whole,) = generator.generate([request], Sampling(max_new_tokens=40))
    assert whole.stopped_by is None
    middle = len(whole.text) // 2
    stop = next(whole.text[k : k + 2] for k in range(middle, middle + 8))
    sampling = Sampling(max_new_tokens=40, stop=("never", stop))
    (cut,) = generator.generate([request], sampling)
    assert (cut.stopped_by, cut.finish_reason) == (stop, "stop")
    assert cut.text == whole.text[: whole.text.index(stop)]
