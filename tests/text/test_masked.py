"""Ranges of a response that are context: their JSON form, their checks, and that only their tokens are not scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.models.load import load_model
from prefopt.models.scorer import Scorer, sum_by_response
from prefopt.models.special_tokens import add_special_tokens
from prefopt.pack.batch import Layout, collate
from prefopt.pack.prepare import PrepareSettings, prepare
from prefopt.records import (
    Message,
    Pair,
    Preference,
    Response,
    check_preference,
    preference_from_json,
    preference_to_json,
    read_preferences,
    write_preferences,
)
from prefopt.text.blocks import (
    END_OF_MESSAGE,
    SPECIAL_TOKENS,
    Block,
    conversation,
    execution_spans,
    serialise,
)
from prefopt.text.render import RenderSettings, render
from prefopt.text.tokens import tokenize
from tests.tiny import EOS, make_model_folder, make_tokenizer

FRONT = (Block("text", "Step 1: add."),)
TAIL = (Block("code", "print(3 + 4)"), Block("execution", "7"), Block("text", "The answer is 7."))
WRONG = (Block("code", "print(3 + 4)"), Block("execution", "8"), Block("text", "The answer is 8."))


def response_of(blocks: tuple[Block, ...], *, masked: bool) -> Response:
    text = serialise(blocks) + END_OF_MESSAGE
    return Response(text, masked=tuple(execution_spans(text)) if masked else ())


def pair_of(*, masked: tuple[bool, bool], front: tuple[Block, ...] = FRONT) -> Preference:
    responses = (response_of(TAIL, masked=masked[0]), response_of(WRONG, masked=masked[1]))
    prompt = conversation("", "What is 3 + 4?")
    return Preference("r", prompt, responses, (Pair(0, 1),), prefix=serialise(front))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A base model's tokenizer that has learnt the markers."""
    made = make_tokenizer(chat_template=None)
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    return made


def scored_texts(record: Preference, tokenizer: PreTrainedTokenizerFast) -> list[list[str]]:
    """The scored tokens of each response, in stretches."""
    found: list[list[str]] = []
    for rendered in render(record, tokenizer, RenderSettings()):
        sequence = tokenize(rendered, tokenizer)
        stretches: list[str] = []
        before = False
        for token, scored in zip(sequence.tokens, sequence.scored, strict=True):
            if scored and not before:
                stretches.append("")
            if scored:
                stretches[-1] += str(tokenizer.decode([token]))
            before = scored
        found.append(stretches)
    return found


def test_both_ends_are_scored_and_the_front_never(tokenizer: PreTrainedTokenizerFast) -> None:
    chosen, rejected = scored_texts(pair_of(masked=(False, False)), tokenizer)
    assert chosen == [serialise(TAIL) + END_OF_MESSAGE + EOS]
    assert rejected == [serialise(WRONG) + END_OF_MESSAGE + EOS]


def test_interpreter_output_is_context(tokenizer: PreTrainedTokenizerFast) -> None:
    chosen, rejected = scored_texts(pair_of(masked=(True, False)), tokenizer)
    assert chosen == [
        "<|code|>print(3 + 4)<|endofblock|>",
        f"<|text|>The answer is 7.<|endofblock|><|endofmessage|>{EOS}",
    ]
    assert rejected == [serialise(WRONG) + END_OF_MESSAGE + EOS]


def test_each_marker_is_one_token_and_the_message_end_is_not_taken_for_the_eos(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    (rendered, _) = render(pair_of(masked=(False, False)), tokenizer, RenderSettings())
    tokens = tokenizer.convert_ids_to_tokens(list(tokenize(rendered, tokenizer).tokens))
    assert [t for t in tokens if t.startswith("<")] == [
        "<|system|>", "<|text|>", "<|endofblock|>", "<|endofmessage|>",
        "<|user|>", "<|text|>", "<|endofblock|>", "<|endofmessage|>",
        "<|assistant|>", "<|text|>", "<|endofblock|>",
        "<|code|>", "<|endofblock|>", "<|execution|>", "<|endofblock|>", "<|text|>", "<|endofblock|>",
        "<|endofmessage|>", EOS,
    ]  # fmt: skip
    ending = make_tokenizer(chat_template=None)
    ending.add_special_tokens({"eos_token": END_OF_MESSAGE})
    assert (
        render(pair_of(masked=(False, False)), ending, RenderSettings())[0].text.count(
            END_OF_MESSAGE
        )
        == 3
    )


@pytest.mark.parametrize(
    ("ranges", "stretches"),
    [
        (((0, 1),), ["bcdef"]),
        (((5, 6),), ["abcde"]),
        (((1, 2), (2, 4)), ["a", "ef"]),
        (((0, 6),), []),
        ((), ["abcdef"]),
    ],
)
def test_ranges_at_the_edges(ranges: tuple[tuple[int, int], ...], stretches: list[str]) -> None:
    letters = make_tokenizer([], chat_template=None)
    record = Preference("r", "Q: ", (Response("abcdef", ends=False, masked=ranges),))
    assert scored_texts(record, letters) == [stretches]


def test_a_response_without_a_scored_token_is_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    ledger = Ledger("test")
    record = Preference("r", "Q: ", (Response("abc", ends=False, masked=((0, 3),)), Response("d")))
    (example,) = prepare([record], tokenizer, PrepareSettings(), ledger)
    assert example.source == (1,)
    assert dict(ledger.notes) == {"some responses left out: nothing scored": 1}


@pytest.mark.parametrize("masked", [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize("layout", [Layout.TREE, Layout.ROWS])
def test_sums_are_those_of_the_plain_model_without_the_masked_tokens(
    masked: tuple[bool, bool], layout: Layout, tmp_path: Path
) -> None:
    folder = make_model_folder(
        tmp_path / "m", "llama", tokenizer=make_tokenizer(chat_template=None)
    )
    model, tokenizer, _ = load_model(folder)
    add_special_tokens(model, tokenizer, SPECIAL_TOKENS)
    record = pair_of(masked=masked)
    examples = prepare([record], tokenizer, PrepareSettings(), Ledger("test"))
    batch = collate([examples], layout=layout)
    with torch.no_grad():
        sums = sum_by_response(batch, Scorer(model)(batch).logp)
    assert isinstance(record.prompt, str)
    context = record.prompt + record.prefix
    for response, is_masked, got in zip(record.responses, masked, sums.tolist(), strict=True):
        pieces = [(context, False)]
        for block in response.text.removesuffix(END_OF_MESSAGE).split("<|endofblock|>")[:-1]:
            counts = not (is_masked and block.startswith("<|execution|>"))
            pieces.append((block + "<|endofblock|>", counts))
        pieces.append((END_OF_MESSAGE + EOS, True))
        tokens: list[int] = []
        scored: list[bool] = []
        for piece, counts in pieces:
            ids = tokenizer(piece, add_special_tokens=False).input_ids
            tokens += ids
            scored += [counts] * len(ids)
        expected = plain_sum(model, tokens, scored)
        assert got == pytest.approx(expected, abs=2e-4)  # float32 sums of some 30 terms


def plain_sum(model: Any, tokens: list[int], scored: list[bool]) -> float:
    """The model's own log-probabilities of the scored tokens, added up."""
    ids = torch.tensor(tokens)
    with torch.no_grad():
        logp = model(ids[None]).logits[0, :-1].float().log_softmax(-1)
    return logp.gather(1, ids[1:, None])[:, 0][torch.tensor(scored)[1:]].sum().item()


def test_cutting_at_max_length_keeps_the_mask(tokenizer: PreTrainedTokenizerFast) -> None:
    record = pair_of(masked=(True, True))
    whole = prepare([record], tokenizer, PrepareSettings(), Ledger("test"))[0].tree
    short = int(whole.position.max()) - 2
    cut = prepare([record], tokenizer, PrepareSettings(max_length=short), Ledger("test"))[0].tree
    for r in range(2):
        path = whole.path(r)[:short]
        assert cut.tokens[cut.path(r)].tolist() == whole.tokens[path].tolist()
        assert cut.scored[cut.path(r)].tolist() == whole.scored[path].tolist()


def test_json_form_and_round_trip(tmp_path: Path) -> None:
    record = pair_of(masked=(True, False))
    row = preference_to_json(record)
    responses = json.loads(json.dumps(row))["responses"]
    assert responses[0]["masked"] == [[34, 62]]
    assert "masked" not in responses[1]
    assert preference_from_json(row, origin="x:1").responses == record.responses
    write_preferences(tmp_path / "d.jsonl", [record])
    (read,) = read_preferences(tmp_path / "d.jsonl")
    assert replace(read, origin="") == record


@pytest.mark.parametrize(
    ("masked", "message"),
    [
        ([[0, 4]], r"masked\[0\] is \[0, 4\], which is no range of its text of 3 characters"),
        ([[2, 2]], r"masked\[0\] is \[2, 2\]"),
        ([[-1, 2]], r"masked\[0\] is \[-1, 2\]"),
        ([[1, 2], [0, 1]], r"masked\[1\] starts at 0, before the end 2"),
        ([[0, 2], [1, 3]], r"masked\[1\] starts at 1, before the end 2"),
        ([[0, 1, 2]], r"responses\[0\]\.masked\[0\].*\[start, end\]"),
        ([[0, True]], r"masked\[0\].*\[start, end\]"),
        (["0-1"], r"masked\[0\].*\[start, end\]"),
        (3, r"responses\[0\]\.masked"),
    ],
)  # fmt: skip
def test_unsound_ranges_are_refused(masked: object, message: str) -> None:
    row = {"id": "a", "prompt": "p", "responses": [{"text": "abc", "masked": masked}]}
    with pytest.raises(RecordError, match="x:1.*" + message):
        preference_from_json(row, origin="x:1")  # type: ignore[arg-type]


def test_ranges_and_turns_exclude_each_other() -> None:
    turns = (Message("assistant", "a"),)
    record = Preference("r", (Message("user", "q"),), (Response(turns=turns, masked=((0, 1),)),))
    with pytest.raises(RecordError, match=r"record 'r': responses\[0\] has both turns and masked"):
        check_preference(record)
