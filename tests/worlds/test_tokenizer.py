"""Word-level tokenizers: exact texts back, offsets, chat template."""

import pytest
from transformers import AutoTokenizer

from prefopt.worlds.tokenizer import word_tokenizer

WORDS = ["\n", "Step", " 1", " 12", " 12:", " + 3", " + 3 =", "1"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Step 12: 12 + 3 = 1\nStep", ["Step", " 12:", " 12", " + 3 =", " 1", "\n", "Step"]),
        (" 1 + 3", [" 1", " + 3"]),
        ("1 1\n\n", ["1", " 1", "\n", "\n"]),
    ],
)
def test_texts_come_back_exactly(tokenizer, text, tokens):
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == tokens
    assert [text[a:b] for a, b in encoded["offset_mapping"]] == tokens
    assert tokenizer.decode(encoded["input_ids"]) == text


def test_other_words_are_unknown(tokenizer):
    ids = tokenizer("Step two 1", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["Step", "<unk>", " 1"]


def test_plain_texts_begin_with_bos_and_conversations_are_marked(tokenizer):
    assert tokenizer.decode(tokenizer("Step")["input_ids"]) == "<bos>Step"
    chat = [
        {"role": "system", "content": "Step"},
        {"role": "user", "content": " 1"},
        {"role": "assistant", "content": " 12"},
    ]
    text = "<bos><|system|>Step<eos><|user|> 1<eos><|assistant|> 12<eos>"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == text
    asked = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert asked == "<bos><|system|>Step<eos><|user|> 1<eos><|assistant|>"
    ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[:2] == ["<bos>", "<|system|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Step 1"


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == ("<pad>", "<bos>", "<eos>")
    text = "Step 12: 12 + 3 = 1\nStep"
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text
