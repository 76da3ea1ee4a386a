"""Which tokens are scored, for offsets as different tokenizers report them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from prefopt.errors import ModelError
from prefopt.text.tokens import RenderedResponse, Span, encode, tokenize
from tests.tiny import make_tokenizer


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, offsets exact."""
    words = ["[UNK]", "the", "sky", "is", "blue"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def byte_level(merges: list[tuple[str, str]], *, trim: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE with given merges; with `trim`, offsets leave out white space (Llama 3, RoBERTa)."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim, add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def split_at(text: str, response: str, *, special: bool = True) -> RenderedResponse:
    return RenderedResponse(
        text + response, (Span(len(text), len(text + response), 0),), special, len(text)
    )


def scored_pieces(tokenizer: PreTrainedTokenizerFast, rendered: RenderedResponse) -> list[str]:
    sequence = tokenize(rendered, tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(list(sequence.tokens))
    return [piece for piece, scored in zip(pieces, sequence.scored, strict=True) if scored]


def test_words_literally() -> None:
    sequence = tokenize(split_at("the sky ", "is blue"), word_tokenizer())
    assert sequence.tokens == [1, 2, 3, 4]
    assert sequence.scored == [False, False, True, True]
    assert sequence.turn == [-1, -1, 0, 0]


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize(
    ("merges", "text", "response", "expected"),
    [
        ([("Ġ", "b")], "a", " b", ["Ġb"]),  # space with the response
        ([("Ġ", "b")], "a ", "b", ["Ġb"]),  # merged over the boundary: the response's
        ([("a", "b")], "a", "bc", ["ab", "c"]),  # merged letters over the boundary
        ([], "a", "  b", ["Ġ", "Ġ", "b"]),  # white space tokens have no width when trimmed
        ([], "a", "b  ", ["b", "Ġ", "Ġ"]),  # white space at the end
        ([("Ġ", "Ġ")], "a ", " b", ["ĠĠ", "b"]),  # white space merged over the boundary
        ([(".", "Ċ")], "a.", "\nb", [".Ċ", "b"]),  # trimmed end of a token lies in the response
        ([], "a\n", "b", ["b"]),
    ],
)
def test_byte_level_white_space(merges, text, response, expected, trim: bool) -> None:
    assert scored_pieces(byte_level(merges, trim=trim), split_at("xx" + text, response)) == expected


def test_characters_of_several_bytes() -> None:
    tokenizer = byte_level([], trim=True)
    assert len(scored_pieces(tokenizer, split_at("é", "😀!"))) == 5


def test_bos_is_added_to_text_and_not_to_templates() -> None:
    tokenizer = make_tokenizer(bos=True)
    bos = tokenizer.bos_token_id
    assert isinstance(bos, int)
    assert tokenize(split_at("a", "b", special=False), tokenizer).tokens[0] == bos
    assert tokenize(split_at("a", "b", special=True), tokenizer).tokens[0] != bos
    assert list(tokenize(split_at("<bos>a", "b", special=False), tokenizer).tokens).count(bos) == 1


def test_the_first_token_is_never_scored() -> None:
    tokenizer = byte_level([], trim=False)
    (encoded,) = encode([split_at("", "abc")], tokenizer)
    assert encoded.sequence.scored == [False, True, True]
    assert encoded.sequence.turn == [-1, 0, 0]
    assert (encoded.headless, encoded.context) == (True, 0)
    with_bos = make_tokenizer(bos=True)
    (encoded,) = encode([split_at("", "abc", special=False)], with_bos)
    assert encoded.sequence.scored[:2] == [False, True]
    assert not encoded.headless


def test_several_spans_keep_their_turns() -> None:
    text = "the sky is blue the sky"
    spans = (Span(8, 15, 0), Span(20, 23, 1))
    sequence = tokenize(RenderedResponse(text, spans, True, 8), word_tokenizer())
    assert sequence.turn == [-1, -1, 0, 0, -1, 1]
    assert sequence.scored == [False, False, True, True, False, True]


def test_long_texts_are_not_truncated_and_order_is_kept() -> None:
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 4
    encoded = encode([split_at("the ", "sky " * 9), split_at("the ", "is")], tokenizer)
    assert [len(e.sequence.tokens) for e in encoded] == [10, 2]


def test_slow_tokenizers_are_refused() -> None:
    class Slow(PreTrainedTokenizerFast):
        @property
        def is_fast(self) -> bool:
            return False

    slow = Slow(tokenizer_object=word_tokenizer().backend_tokenizer)
    with pytest.raises(ModelError, match="Slow is a slow tokenizer, .* use a fast one"):
        encode([split_at("the ", "sky")], slow)


TRIMMING, EXACT = (
    byte_level([("Ġ", "a"), ("Ċ", "Ċ"), ("a", "Ġ"), (".", "Ċ")], trim=trim)
    for trim in (True, False)
)


@settings(max_examples=300)
@given(st.text(alphabet="a. \nb", max_size=8), st.text(alphabet="a. \nb", min_size=1, max_size=8))
def test_trimmed_offsets_score_what_exact_ones_do(prompt: str, response: str) -> None:
    rendered = split_at("x" + prompt, response)
    assert tokenize(rendered, TRIMMING) == tokenize(rendered, EXACT)


@settings(max_examples=200)
@given(
    st.text(alphabet="ab 😀.\n", max_size=8), st.text(alphabet="ab 😀.\n", min_size=1, max_size=8)
)
def test_scored_tokens_are_those_that_overlap_the_response(prompt: str, response: str) -> None:
    rendered = split_at("x" + prompt, response)
    offsets = EXACT(rendered.text, return_offsets_mapping=True)["offset_mapping"]
    expected = [end > rendered.context and start < len(rendered.text) for start, end in offsets]
    assert tokenize(rendered, EXACT).scored == expected
