"""Rendered texts and their scored spans, literally, for templates of several kinds."""

from __future__ import annotations

import pytest

from prefopt.errors import ModelError, RecordError
from prefopt.records import JsonValue, Message, Preference, Response
from prefopt.text.render import RenderedResponse, RenderSettings, is_glued, render, render_prompt
from tests.tiny import CHATML, END, EOS, make_tokenizer

PLAIN = make_tokenizer(chat_template=None)
CHAT = make_tokenizer()

LOOP = "{% for m in messages %}"
LLAMA2 = (
    "{{ '<bos>' }}" + LOOP + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + '<eos>' }}{% endif %}{% endfor %}"
)
BARE = (
    LOOP
    + "{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_GENERATION_PROMPT = (
    LOOP + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
)
TWO_ENDS = CHATML + "{% if not add_generation_prompt %}{{ '<eos>' }}{% endif %}"
FORGETTING = (
    LOOP + "{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    LOOP + "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REWRITING = "{{ messages | length }}" + CHATML
DROPPING = "{{ 'nothing' }}"
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML
)

ASK = (Message("user", "Hi"),)


def scored(rendered: RenderedResponse) -> list[tuple[str, int]]:
    return [(rendered.text[s.start : s.end], s.turn) for s in rendered.spans]


def only(preference: Preference, tokenizer=CHAT, **settings) -> RenderedResponse:
    (rendered,) = render(preference, tokenizer, RenderSettings(**settings))
    return rendered


def test_text_is_prompt_separator_prefix_response_eos() -> None:
    rendered = only(Preference("a", "Q?", (Response("yes"),), prefix="So "), PLAIN, separator="\n")
    assert rendered.text == f"Q?\nSo yes{EOS}"
    assert scored(rendered) == [(f"yes{EOS}", 0)]
    assert (rendered.special, rendered.context) == (False, 6)


def test_an_empty_prompt_takes_no_separator() -> None:
    assert only(Preference("a", "", (Response("yes"),)), PLAIN, separator="\n").text == f"yes{EOS}"


@pytest.mark.parametrize(
    ("response", "tail"),
    [
        (Response("yes"), f"yes{EOS}"),
        (Response("yes", ends=False), "yes"),
        (Response(f"yes{EOS}"), f"yes{EOS}"),
        (Response(f"yes{EOS}\n"), f"yes{EOS}\n"),
    ],
)
def test_the_end_is_written_once_or_not_at_all(response: Response, tail: str) -> None:
    assert only(Preference("a", "Q: ", (response,)), PLAIN).text == "Q: " + tail


def test_conversations_go_through_the_template() -> None:
    rendered = only(Preference("a", ASK, (Response("yes"),), prefix="Well, "))
    assert (
        rendered.text
        == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWell, yes<|im_end|>"
    )
    assert scored(rendered) == [("yes<|im_end|>", 0)]
    assert rendered.special
    assert not rendered.notes


def test_chat_format_makes_a_string_one_user_message() -> None:
    as_chat = only(Preference("a", "Hi", (Response("yes"),)), prompt_format="chat")
    assert as_chat == only(Preference("a", ASK, (Response("yes"),)))


@pytest.mark.parametrize(
    ("template", "text", "answer"),
    [
        (LLAMA2, "<bos>[INST] Hi [/INST] yes<eos>", "yes<eos>"),
        (BARE, f"user: Hi\nassistant: yes{END}", f"yes{END}"),
        (
            NO_GENERATION_PROMPT,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>",
            "yes<|im_end|>",
        ),
        (
            TWO_ENDS,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<eos>",
            "yes<|im_end|>\n<eos>",
        ),
    ],
)
def test_templates(template: str, text: str, answer: str) -> None:
    rendered = only(Preference("a", ASK, (Response("yes"),)), chat_template=template)
    assert rendered.text == text
    assert scored(rendered) == [(answer, 0)]


def test_a_block_before_answers_is_context_unless_the_response_writes_it() -> None:
    start = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    plain = only(Preference("a", ASK, (Response("yes"),)), chat_template=THINKING)
    assert plain.text == start + "<think>\n\n</think>\n\nyes<|im_end|>"
    assert scored(plain) == [("yes<|im_end|>", 0)]
    assert "writes a block before answers" in plain.notes[0]
    own = only(Preference("a", ASK, (Response("<think>hm</think>yes"),)), chat_template=THINKING)
    assert own.text == start + "<think>hm</think>yes<|im_end|>"
    assert not own.notes


def test_turns_score_assistant_messages_with_their_end_and_nothing_else() -> None:
    turns = (
        Message("assistant", "call", extra={"name": "x"}),
        Message("tool", "<result>"),
        Message("assistant", "no", train=False),
        Message("user", "And?"),
        Message("assistant", "done"),
    )
    rendered = only(Preference("a", ASK, (Response(turns=turns),)))
    assert rendered.text == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\ncall<|im_end|>\n<|im_start|>tool\n<result><|im_end|>\n"
        "<|im_start|>assistant\nno<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\ndone<|im_end|>"
    )
    assert scored(rendered) == [("call<|im_end|>", 0), ("done<|im_end|>", 2)]


def test_turns_of_one_message_are_that_message() -> None:
    as_turn = only(Preference("a", ASK, (Response(turns=(Message("assistant", "yes"),)),)))
    assert as_turn == only(Preference("a", ASK, (Response("yes"),)))
    open_turn = only(
        Preference("a", ASK, (Response(turns=(Message("assistant", "yes"),), ends=False),))
    )
    assert open_turn == only(Preference("a", ASK, (Response("yes", ends=False),)))


def test_turns_with_a_template_without_end_marks() -> None:
    turns = (Message("assistant", "a"), Message("user", "b"), Message("assistant", "c"))
    rendered = only(Preference("a", ASK, (Response(turns=turns),)), chat_template=BARE)
    assert rendered.text == f"user: Hi\nassistant: a\nuser: b\nassistant: c{END}"
    assert scored(rendered) == [("a", 0), (f"c{END}", 1)]


def test_a_block_before_the_last_answer_is_in_no_turn() -> None:
    turns = (Message("assistant", "a"), Message("user", "b"), Message("assistant", "c"))
    several, one = Response(turns=turns), Response(turns=(Message("assistant", "d"),))
    preference = Preference("a", ASK, (several, one))
    long, short = render(preference, CHAT, RenderSettings(chat_template=THINKING))
    start = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    rest = "a<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\nc<|im_end|>"
    assert long.text == start + rest and short.text == start + "d<|im_end|>"
    assert scored(long) == [("a<|im_end|>", 0), ("c<|im_end|>", 1)]
    assert not long.notes and long.context == short.context == len(start)


def test_tools_and_template_arguments_reach_the_template() -> None:
    template = "{{ tools[0].name }} {{ style }} " + CHATML
    meta: dict[str, JsonValue] = {
        "tools": [{"name": "add"}],
        "chat_template_kwargs": {"style": "short"},
    }
    assert only(
        Preference("a", ASK, (Response("x"),), meta=meta), chat_template=template
    ).text.startswith("add short <|im_start|>user")


@pytest.mark.parametrize(
    ("preference", "tokenizer", "settings", "error", "message"),
    [
        (
            Preference("a", ASK, (Response("x"),)),
            PLAIN,
            {},
            ModelError,
            "the tokenizer has no chat template; set chat_template",
        ),
        (
            Preference("a", ASK, (Response("x"),)),
            CHAT,
            {"prompt_format": "text"},
            RecordError,
            "which prompt_format: text cannot write; use auto or chat",
        ),
        (
            Preference("a", "Q", (Response(turns=(Message("assistant", "x"),)),)),
            CHAT,
            {},
            RecordError,
            "responses have turns but the prompt is plain text; set prompt_format: chat",
        ),
        (
            Preference("a", ASK, (Response(turns=(Message("assistant", "x"),)),), prefix="p"),
            CHAT,
            {},
            RecordError,
            "a prefix cannot be continued by turns",
        ),
        (
            Preference("a", ASK, (Response("x"),)),
            CHAT,
            {"chat_template": REWRITING},
            RecordError,
            'an answer is not written where generation starts: after "" one has "1<|im_start|>user',
        ),
        (
            Preference("a", ASK, (Response("x"),)),
            CHAT,
            {"chat_template": DROPPING},
            RecordError,
            "the chat template leaves out the assistant's text",
        ),
        (
            Preference("a", (Message("system", "s"), *ASK), (Response("x"),)),
            CHAT,
            {"chat_template": STRICT},
            RecordError,
            "the chat template refuses the conversation (system, user): System role not supported",
        ),
        (
            Preference(
                "a",
                ASK,
                (
                    Response(
                        turns=(
                            Message("assistant", "<think>hm</think>x"),
                            Message("user", "y"),
                            Message("assistant", "z"),
                        )
                    ),
                ),
            ),
            CHAT,
            {"chat_template": FORGETTING},
            RecordError,
            "message 3 rewrites what precedes it",
        ),
    ],
)
def test_refused(preference, tokenizer, settings, error, message) -> None:
    with pytest.raises(error) as caught:
        render(preference, tokenizer, RenderSettings(**settings))
    assert message in str(caught.value)
    assert str(caught.value).startswith("record 'a': ")
    assert "\n" not in str(caught.value)


def test_no_eos_token_is_an_error_only_where_one_is_needed() -> None:
    tokenizer = make_tokenizer(chat_template=None)
    tokenizer.eos_token = None
    assert only(Preference("a", "Q ", (Response("x", ends=False),)), tokenizer).text == "Q x"
    with pytest.raises(ModelError, match="has no eos_token, so nothing can end a response"):
        only(Preference("a", "Q ", (Response("x"),)), tokenizer)


def test_the_prompt_alone_is_what_training_scores_after() -> None:
    for preference, tokenizer in [
        (Preference("a", ASK, (Response("yes"),), prefix="So"), CHAT),
        (Preference("a", "Q: ", (Response("yes"),), prefix="So"), PLAIN),
    ]:
        rendered = only(preference, tokenizer)
        assert (
            render_prompt(preference, tokenizer, RenderSettings())
            == rendered.text[: rendered.context]
        )


@pytest.mark.parametrize(
    ("prompt", "response", "settings", "glued"),
    [
        ("great movie for", "everyone", {}, True),
        ("great movie for ", "everyone", {}, False),
        ("great movie for", " everyone", {}, False),
        ("great movie for", "everyone", {"separator": "\n"}, False),
        ("great movie for", "everyone", {"prompt_format": "chat"}, False),
        ("Why?", "Because", {}, False),
        (ASK, "everyone", {}, False),
    ],
)
def test_glued_words_are_noticed(prompt, response, settings, glued) -> None:
    assert (
        is_glued(Preference("a", prompt, (Response(response),)), RenderSettings(**settings))
        is glued
    )
