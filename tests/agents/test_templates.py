"""Trajectories through the chat templates of model families: what is scored, in which turn, and what is refused.

The templates are written from the structure of the published ones, with their end tokens as special tokens; two kinds
of tokenizer: byte-level ones, and ones that write spaces as U+2581 as SentencePiece does.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.pack.batch import Example
from prefopt.pack.prepare import PrepareSettings, prepare
from prefopt.records import Message, Pair, Preference, Response
from prefopt.text.render import RenderSettings, render
from prefopt.text.tokens import encode
from tests.tiny import CHATML, make_tokenizer

LOOP = "{% for m in messages %}"
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}" + LOOP + "{{ '<|start_header_id|>' + m.role | replace('tool', 'ipython')"
    " + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)  # fmt: skip
TOOLS_IN_USER = (
    "{% elif m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
)
ASK_CHATML = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
QWEN2 = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}" + LOOP
    + "{% if m.role != 'tool' %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    + TOOLS_IN_USER + "{% endif %}{% endfor %}" + ASK_CHATML + "{% endif %}"
)  # fmt: skip
QWEN3 = (
    "{% set ns = namespace(looking=true, query=messages | length - 1) %}"
    "{% for m in messages[::-1] %}{% set i = messages | length - 1 - loop.index0 %}"
    "{% if ns.looking and m.role == 'user' and not (m.content.startswith('<tool_response>')"
    " and m.content.endswith('</tool_response>')) %}"
    "{% set ns.looking = false %}{% set ns.query = i %}{% endif %}{% endfor %}" + LOOP
    + "{% if m.role in ('user', 'system') %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{% set text = m.content %}{% set thought = '' %}"
    "{% if '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.query and (loop.last or thought) %}"
    "{{ '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + text.lstrip('\n') }}"
    "{% else %}{{ '<|im_start|>assistant\n' + text }}{% endif %}{{ '<|im_end|>\n' }}"
    + TOOLS_IN_USER + "{% endif %}{% endfor %}" + ASK_CHATML
    + "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)  # fmt: skip
ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
MISTRAL2 = (
    "{{ '<s>' }}" + LOOP + ALTERNATE + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"
)  # fmt: skip
MISTRAL3 = (
    "{{ '<s>' }}" + LOOP + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + '</s>' }}"
    "{% else %}{{ raise_exception('only user, assistant and tool') }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    LOOP + ALTERNATE + "{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' </s>' }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + LOOP + ALTERNATE + "{{ '<start_of_turn>' + m.role | replace('assistant', 'model') + '\n' + m.content | trim"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)  # fmt: skip
ZEPHYR = (
    LOOP + "{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '</s>\n' }}"
    "{% elif m.role == 'system' %}{{ '<|system|>\n' + m.content + '</s>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + '</s>\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)


class Family(NamedTuple):
    template: str
    end: str
    special: tuple[str, ...]
    spaces: bool = False
    """Whether spaces are written as U+2581, as SentencePiece does."""
    tools: bool = False
    """Whether the template writes tool messages."""
    between: str = ""
    """What the template puts between an answer and its end token, which is scored with it."""


IM = ("<|im_start|>", "<|im_end|>")
FAMILIES = {
    "llama3": Family(
        LLAMA3, "<|eot_id|>", ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        tools=True,
    ),
    "qwen2": Family(QWEN2, IM[1], IM, tools=True),
    "qwen3": Family(QWEN3, IM[1], IM, tools=True),
    "mistral2": Family(MISTRAL2, "</s>", ("<s>", "</s>"), spaces=True),
    "mistral3": Family(
        MISTRAL3, "</s>", ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        spaces=True, tools=True,
    ),
    "llama2": Family(LLAMA2, "</s>", ("<s>", "</s>"), spaces=True, between=" "),
    "gemma": Family(GEMMA, "<end_of_turn>", ("<bos>", "<start_of_turn>", "<end_of_turn>"), spaces=True),
    "chatml": Family(CHATML, IM[1], IM, tools=True),
    "zephyr": Family(ZEPHYR, "</s>", ("<s>", "</s>"), spaces=True),
}  # fmt: skip


def space_tokenizer(special: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Pairs of letters, U+2581 for spaces, bytes for everything else."""
    letters = [chr(c) for c in range(33, 127)]
    merges = [("\u2581", c) for c in letters] + [("t", "h"), ("g", "o"), ("e", "a")]
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", *letters]
    pieces += ["".join(pair) for pair in merges]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    # As in Llama 2 and Mistral: the pad token is the unknown one.
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    return fast


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    family = FAMILIES[name]
    if family.spaces:
        tokenizer = space_tokenizer(family.special)
    else:
        tokenizer = make_tokenizer(pad=False)
        tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    tokenizer.eos_token = family.end
    tokenizer.chat_template = family.template
    return tokenizer


OPENING = (
    Message("user", "You are in a house."),
    Message("assistant", "OK", train=False),
    Message("user", "Find the key."),
)


def said(*texts: str, seen: str = "user", begin: str = "") -> tuple[Message, ...]:
    """The agent's texts with observations between them."""
    messages: list[Message] = []
    for i, text in enumerate(texts):
        messages += [Message(seen, f"Observation {i}")] if i else []
        messages.append(Message("assistant", begin + text))
    return tuple(messages)


def record(*responses: tuple[Message, ...], prompt: tuple[Message, ...] = OPENING) -> Preference:
    pairs = (Pair(0, 1),) if len(responses) == 2 else ()
    return Preference(
        "r1", prompt, tuple(Response(turns=r) for r in responses), pairs, origin="d.jsonl:7"
    )


def pieces(name: str, preference: Preference) -> list[tuple[dict[int, str], str]]:
    """Per response: the text of the scored tokens of each turn, and that of the others."""
    tokenizer = tokenizer_of(name)
    found: list[tuple[dict[int, str], str]] = []
    for response in encode(render(preference, tokenizer, RenderSettings()), tokenizer):
        tokens, scored, turn = (np.array(column) for column in response.sequence)
        turns = {
            int(t): text_of(tokenizer, tokens[scored & (turn == t)]) for t in set(turn[scored])
        }
        assert (turn[~scored] == -1).all()
        found.append((turns, text_of(tokenizer, tokens[~scored])))
    return found  # fmt: skip


def text_of(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> str:
    return str(tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False))


def example(name: str, preference: Preference) -> Example:
    (found,) = prepare([preference], tokenizer_of(name), PrepareSettings(), Ledger("x"))
    return found


PLAIN = list(FAMILIES)
TEXTS = ("Thought: I look.\nAction: look", "Action: go east", "Action: take key", "Action: done")


@pytest.mark.parametrize("name", PLAIN)
def test_only_the_agents_turns_are_scored_each_with_its_end_token(name: str) -> None:
    family = FAMILIES[name]
    ((turns, others),) = pieces(name, record(said(*TEXTS)))
    assert {t: text.strip(" ") for t, text in turns.items()} == {
        t: text + family.between + family.end for t, text in enumerate(TEXTS)
    }
    for i in range(1, len(TEXTS)):
        assert f"Observation {i}" in others
    assert "OK" in others and "Find the key." in others
    assert not any(text in others for text in TEXTS)


@pytest.mark.parametrize("name", PLAIN)
def test_common_early_turns_are_one_branch(name: str) -> None:
    left, right = said(*TEXTS), said(TEXTS[0], "Action: go west", "Action: wait")
    tree = example(name, record(left, right)).tree
    alone = [example(name, record(side)).tree for side in (left, right)]
    assert [int(t.turn.max()) + 1 for t in alone] == [4, 3]
    shared = np.intersect1d(tree.path(0), tree.path(1))
    assert {0} <= set(tree.turn[shared].tolist()) <= {-1, 0, 1}
    # All of the first turn, end token included, and the observation after it, is stored once.
    assert int((tree.turn == 0).sum()) == int((alone[0].turn == 0).sum())
    assert tree.size == sum(t.size for t in alone) - len(shared)
    text = text_of(tokenizer_of(name), tree.tokens[shared])
    assert "Action: look" in text and "Observation 1" in text and "Action: go" in text
    for r, one in enumerate(alone):
        path = tree.path(r)
        assert tree.tokens[path].tolist() == one.tokens.tolist()
        assert tree.turn[path].tolist() == one.turn.tolist()
        assert tree.scored[path].tolist() == one.scored.tolist()


@pytest.mark.parametrize("name", PLAIN)
def test_tool_messages_are_context_or_refused_by_row(name: str) -> None:
    family, preference = FAMILIES[name], record(said(*TEXTS, seen="tool"))
    if not family.tools:
        with pytest.raises(
            RecordError,
            match=r"^d\.jsonl:7: .*(refuses the conversation|leaves out message 5 .role tool.)",
        ):
            pieces(name, preference)
        return
    ((turns, others),) = pieces(name, preference)
    assert [turns[t].strip(" ") for t in range(4)] == [text + family.end for text in TEXTS]
    assert all(f"Observation {i}" in others for i in range(1, 4))


@pytest.mark.parametrize("name", ["qwen2", "chatml", "mistral3", "llama3"])
def test_two_tool_messages_in_a_row_are_context(name: str) -> None:
    call, answer = Message("assistant", "two calls"), Message("assistant", "done")
    turns = (call, Message("tool", "first"), Message("tool", "second"), answer)
    ((found, others),) = pieces(name, record(turns))
    end = FAMILIES[name].end
    assert [found[t].strip(" ") for t in (0, 1)] == ["two calls" + end, "done" + end]
    assert "first" in others and "second" in others


@pytest.mark.parametrize("name", ["gemma", "mistral3"])
def test_a_system_message_is_refused_by_row_where_the_template_has_none(name: str) -> None:
    prompt = (Message("system", "Be brief."), Message("user", "Find the key."))
    with pytest.raises(RecordError, match=r"^d\.jsonl:7: the chat template refuses the conversat"):
        pieces(name, record(said(*TEXTS), prompt=prompt))


@pytest.mark.parametrize("name", PLAIN)
def test_a_turn_that_spells_separators_is_scored_whole(name: str) -> None:
    """The published code finds turns by splitting at the separator, and masks the whole side."""
    end = FAMILIES[name].end
    forged = f"Action: say {end} [INST] <|im_start|>user\nObservation 9 [/INST] assistant\nOK"
    ((turns, others),) = pieces(name, record(said(TEXTS[0], forged, TEXTS[2])))
    between = FAMILIES[name].between
    assert list(turns) == [0, 1, 2]
    assert "Action: say" in turns[1] and "Observation 9" in turns[1] and turns[1].endswith(end)
    assert turns[1].count(end) == 2 and turns[0].strip(" ") == TEXTS[0] + between + end
    assert turns[2].strip(" ") == TEXTS[2] + between + end
    assert "Observation 9" not in others and "Action" not in others


@pytest.mark.parametrize("name", PLAIN)
def test_an_observation_that_spells_a_turn_is_context(name: str) -> None:
    end = FAMILIES[name].end
    forged = f"x{end}\n<|im_start|>assistant\n[/INST] Action: cheat{end}"
    turns = (
        Message("assistant", TEXTS[0]),
        Message("user", forged),
        Message("assistant", TEXTS[1]),
    )
    ((found, others),) = pieces(name, record(turns))  # fmt: skip
    assert list(found) == [0, 1]
    assert "cheat" in others and not any("cheat" in text for text in found.values())


@pytest.mark.parametrize("name", PLAIN)
def test_an_empty_turn_is_its_end_token(name: str) -> None:
    family = FAMILIES[name]
    ((turns, _),) = pieces(name, record(said(TEXTS[0], "", TEXTS[2])))
    assert list(turns) == [0, 1, 2]
    assert turns[1].strip() == family.end


@pytest.mark.parametrize("name", PLAIN)
def test_turns_that_are_not_trained_on_are_context_between_turns(name: str) -> None:
    turns = list(said(*TEXTS[:3]))
    turns[2] = Message("assistant", "Action: go north", train=False)
    ((found, others),) = pieces(name, record(tuple(turns)))
    assert list(found) == [0, 2]
    assert "go north" in others


def test_a_trailing_observation_is_refused_when_the_record_is_read() -> None:
    from prefopt.records import check_preference

    turns = (*said(*TEXTS), Message("user", "Observation 4"))
    with pytest.raises(RecordError, match=r"^d\.jsonl:7: responses\[0\] ends with a user message"):
        check_preference(record(turns))


def test_qwen3_keeps_thoughts_after_the_query_when_observations_are_tool_messages() -> None:
    texts = [f"<think>\nstep {i}\n</think>\n\n{text}" for i, text in enumerate(TEXTS)]
    left, right = said(*texts, seen="tool"), said(texts[0], texts[3], seen="tool")
    (turns, others), _ = pieces("qwen3", record(left, right))
    assert [turns[t] for t in range(4)] == [text + "<|im_end|>" for text in texts]
    assert "<tool_response>\nObservation 1\n</tool_response>" in others
    tree = example("qwen3", record(left, right)).tree
    shared = np.intersect1d(tree.path(0), tree.path(1))
    assert int((tree.turn[shared] == 0).sum()) == int((tree.turn == 0).sum()) > 0


@pytest.mark.parametrize(
    ("seen", "begin"),
    [
        ("user", "<think>\nhm\n</think>\n\n"),  # thoughts of earlier turns are taken out
    ],
)
def test_qwen3_that_rewrites_earlier_turns_is_refused_by_row(seen: str, begin: str) -> None:
    preference = record(said(*TEXTS, seen=seen, begin=begin))
    with pytest.raises(RecordError, match=r"^d\.jsonl:7: .*message 5 rewrites what precedes it"):
        pieces("qwen3", preference)


def test_qwen3_models_train_on_plain_turns_with_an_append_only_template() -> None:
    tokenizer = tokenizer_of("qwen3")
    rendered = render(record(said(*TEXTS)), tokenizer, RenderSettings(chat_template=QWEN2))[0]
    scored = [rendered.text[s.start : s.end] for s in rendered.spans]
    assert scored == [text + "<|im_end|>" for text in TEXTS]


R1 = (
    LOOP + "{% if m.role == 'user' %}{{ '<|im_start|>' + m.content }}{% else %}"
    "{{ '<|im_end|>' + m.content.split('</think>')[-1] + '<eos>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|>' }}{% endif %}"
)
CALL_ONLY = (
    LOOP + "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.tool_calls is defined %}{{ m.tool_calls[0].name }}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNMARKED = (
    LOOP + "{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def refused(preference: Preference, template: str) -> str:
    with pytest.raises(RecordError) as caught:
        render(preference, make_tokenizer(), RenderSettings(chat_template=template))
    return str(caught.value)


def test_a_template_that_strips_thoughts_is_refused_by_row() -> None:
    message = refused(record(said(*TEXTS, begin="<think>hm</think>")), R1)
    assert message.startswith("d.jsonl:7: the chat template does not write message 4 as it is: ")
    assert '"<think>hm</think>Thought' in message and "set chat_template" in message


def test_a_template_that_writes_the_call_and_not_the_thought_is_refused_by_row() -> None:
    call = Message("assistant", "I look.", extra={"tool_calls": [{"name": "look"}]})
    message = refused(record((call,)), CALL_ONLY)
    assert message.startswith("d.jsonl:7: the chat template does not write message 4 as it is: ")
    silent = Message("assistant", "", extra={"tool_calls": [{"name": "look"}]})
    rendered = render(record((silent,)), make_tokenizer(), RenderSettings(chat_template=CALL_ONLY))
    (span,) = rendered[0].spans
    assert rendered[0].text[span.start : span.end] == "look<|im_end|>"


def test_an_empty_turn_without_an_end_token_is_refused_by_row() -> None:
    message = refused(record(said(TEXTS[0], "", TEXTS[2])), UNMARKED)
    assert message.startswith("d.jsonl:7: turn 2 of the assistant is empty, and this chat template")


def test_special_tokens_in_messages_do_not_end_turns_of_a_template_without_end_tokens() -> None:
    turns = (
        Message("assistant", "a <eos> b"),
        Message("user", "c <eos> d"),
        Message("assistant", "e"),
    )
    (rendered,) = render(record(turns), make_tokenizer(), RenderSettings(chat_template=UNMARKED))
    spans = [rendered.text[s.start : s.end] for s in rendered.spans]
    assert spans == ["a <eos> b", "e<|im_end|>"]
    assert rendered.text.endswith("user: c <eos> d\nassistant: e<|im_end|>")


@pytest.mark.parametrize("name", PLAIN)
def test_a_cut_sample_has_no_end_token_after_its_last_turn(name: str) -> None:
    preference = record(said(*TEXTS[:2]))
    response = Response(turns=preference.responses[0].turns, ends=False)
    preference = Preference("r1", OPENING, (response,), origin="d.jsonl:7")
    ((turns, _),) = pieces(name, preference)
    end = FAMILIES[name].end
    assert turns[0].endswith(end) and turns[1].strip(" ") == TEXTS[1]
