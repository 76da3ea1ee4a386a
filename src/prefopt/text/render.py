"""Records as texts: prompt, prefix, response and what ends it, with the character ranges that are scored.

String prompts are used as they are, conversations go through the chat template. Every text is what the model
would have had to write itself after the prompt, so training and generation see the same characters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from prefopt.errors import RecordError
from prefopt.records import Message, Preference, Response
from prefopt.text.template import AnswerFrame, ChatTemplate, end_token
from prefopt.text.tokens import RenderedResponse, Span, TokenSequence, encode, tokenize
from prefopt.values import quote

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "RenderSettings",
    "RenderedResponse",
    "Span",
    "TokenSequence",
    "encode",
    "is_glued",
    "render",
    "render_prompt",
    "tokenize",
]

HEADER_KEPT = (
    "the chat template writes a block before answers that generation does not; it is context"
)
GLUED = (
    "prompt ends in a letter or digit and a response starts with one, without a space; "
    "set response_separator"
)

_SHOWN = 30
"""Characters of a text that error messages show."""


class RenderSettings(NamedTuple):
    """How records become text."""

    prompt_format: Literal["auto", "chat", "text"] = "auto"
    """`auto`: strings stay text, conversations go through the template; `chat`: a string is one user message;
    `text`: conversations are refused."""
    separator: str = ""
    """Between a string prompt and what follows it."""
    chat_template: str | None = None
    """A template in place of the tokenizer's own: its text, not its path."""


def render(
    preference: Preference, tokenizer: PreTrainedTokenizerFast, settings: RenderSettings
) -> list[RenderedResponse]:
    """The text of each response with its prompt.

    Text: `prompt + separator + prefix + response + eos_token`. Conversation: the chat template with its
    generation prompt, then `prefix + response +` what the template ends a turn with. What ends a response is
    left out where `ends` is false, and never written twice. Turns are rendered by the template as a whole;
    the assistant messages with `train` are scored, each with its end-of-turn token, other messages never.

    Raises:
        RecordError: the record does not fit the format, or the template is not append-only.
        ModelError: no chat template, or no EOS token, where one is needed.
    """
    where = preference.origin or f"record '{preference.id}'"
    prompt = _conversation(preference, settings, where)
    if isinstance(prompt, str):
        return _render_text(preference, prompt, tokenizer, settings, where)
    template = ChatTemplate(tokenizer, settings.chat_template, preference.meta, where)
    frame = template.frame(prompt)
    if any(response.turns for response in preference.responses):
        passing = _passing_header(prompt, template, frame)
        frame = frame._replace(header="") if passing else frame
    else:
        passing = ""
    opening = _opening(frame, preference)
    notes = (
        (HEADER_KEPT,) if frame.header.strip() and opening == frame.prompt + frame.header else ()
    )
    found: list[RenderedResponse] = []
    for response in preference.responses:
        if response.turns:
            rendered = _render_turns(prompt, response, preference, template, frame, passing)
        else:
            context = opening + preference.prefix
            rendered = _finish(context, response, frame.end, special=True)
        found.append(rendered._replace(notes=notes))
    return found


def render_prompt(
    preference: Preference, tokenizer: PreTrainedTokenizerFast, settings: RenderSettings
) -> str:
    """The text that a model continues when it is asked for a response: prompt and prefix.

    Raises:
        RecordError, ModelError: as `render`.
    """
    where = preference.origin or f"record '{preference.id}'"
    prompt = _conversation(preference, settings, where)
    if isinstance(prompt, str):
        return _text_prompt(prompt, settings) + preference.prefix
    template = ChatTemplate(tokenizer, settings.chat_template, preference.meta, where)
    return template.render(prompt, ask=True) + preference.prefix


def is_glued(preference: Preference, settings: RenderSettings) -> bool:
    """Whether a text prompt and a response meet without white space between two letters or digits."""
    if not isinstance(preference.prompt, str) or settings.prompt_format == "chat":
        return False
    prompt, prefix = _text_prompt(preference.prompt, settings), preference.prefix
    if prompt[-1:].isalnum() and prefix[:1].isalnum():
        return True
    before = (prompt + prefix)[-1:]
    return before.isalnum() and any(r.text[:1].isalnum() for r in preference.responses)


def _conversation(
    preference: Preference, settings: RenderSettings, where: str
) -> str | tuple[Message, ...]:
    """The prompt as it is rendered: text, or messages for the template."""
    prompt = preference.prompt
    if isinstance(prompt, str):
        if settings.prompt_format == "chat":
            return (Message("user", prompt),)
        if any(response.turns for response in preference.responses):
            raise RecordError(
                f"{where}: responses have turns but the prompt is plain text; set prompt_format: chat"
            )
    elif settings.prompt_format == "text":
        raise RecordError(
            f"{where}: the prompt is a conversation, which prompt_format: text cannot write; "
            "use auto or chat, or give prompts as plain text"
        )
    return prompt


def _text_prompt(prompt: str, settings: RenderSettings) -> str:
    return prompt + settings.separator if prompt else ""


def _render_text(
    preference: Preference,
    prompt: str,
    tokenizer: PreTrainedTokenizerFast,
    settings: RenderSettings,
    where: str,
) -> list[RenderedResponse]:
    ends = any(response.ends for response in preference.responses)
    eos = end_token(tokenizer, where) if ends else ""
    context = _text_prompt(prompt, settings) + preference.prefix
    return [_finish(context, response, eos, special=False) for response in preference.responses]


def _finish(context: str, response: Response, end: str, *, special: bool) -> RenderedResponse:
    """Context, response and its end, which is not written again where the data has it already."""
    ended = not response.ends or response.text.rstrip().endswith(end.strip())
    text = context + response.text + ("" if ended else end)
    spans = _around(response.masked, len(context), len(text))
    return RenderedResponse(text, spans, special, len(context))


def _around(masked: tuple[tuple[int, int], ...], start: int, end: int) -> tuple[Span, ...]:
    """What is scored from `start` to `end`: everything but the masked ranges, which count from `start`."""
    edges = [start, *(start + at for borders in masked for at in borders), end]
    pieces = zip(edges[::2], edges[1::2], strict=True)
    return tuple(Span(first, last, 0) for first, last in pieces if last > first)


def _opening(frame: AnswerFrame, preference: Preference) -> str:
    """Prompt text and header, unless a response (or the prefix) writes that header itself."""
    header = frame.header.split()
    written = [preference.prefix, *(response.text for response in preference.responses)]
    if any(word in text for word in header for text in written):
        return frame.prompt
    return frame.prompt + frame.header


def _passing_header(prompt: tuple[Message, ...], template: ChatTemplate, frame: AnswerFrame) -> str:
    """The block that a template writes before the last answer only; empty where it stays, or where there is none.

    Generation does not write it, and earlier turns do not have it, so no turn of a trajectory gets it (Qwen 3).
    """
    if not frame.header.strip():
        return ""
    asked = (*prompt, Message("assistant", "A"), Message("user", "B"))
    stays = template.render(asked, ask=False).startswith(f"{frame.prompt}{frame.header}A")
    return "" if stays else frame.header


def _render_turns(
    prompt: tuple[Message, ...],
    response: Response,
    preference: Preference,
    template: ChatTemplate,
    frame: AnswerFrame,
    passing: str,
) -> RenderedResponse:
    """A response of several messages, rendered as far as each of them to find where it lies."""
    if preference.prefix:
        raise RecordError(
            f"{template.where}: a prefix cannot be continued by turns; remove one of them"
        )
    messages = list(prompt)
    text = written = frame.prompt
    turns: list[_Turn] = []
    for message in response.turns:
        asks = message.role == "assistant"
        start = template.render(messages, ask=True) if asks else text
        messages.append(message)
        longer = template.render(messages, ask=False)
        # Between two turns a template may still change its end: Qwen puts several tool messages into one block.
        template.require_prefix(text, start, f"message {len(messages)} rewrites what precedes it")
        template.require_prefix(start, longer, f"message {len(messages)} rewrites what precedes it")
        if asks:
            longer = start + longer[len(start) :].removeprefix(passing)
            turns.append(_locate(longer, len(start), messages, template, frame))
            text = longer
        elif longer == written and message.content.strip():
            raise RecordError(
                f"{template.where}: the chat template leaves out message {len(messages)} (role {message.role}); give "
                "it a role that the template writes, or set chat_template"
            )
        written = longer
    return _close_turns(text, turns, response, template, frame)


class _Turn(NamedTuple):
    """Where one assistant message lies in the text: characters."""

    start: int
    stop: int
    """Where what was said is over: its first end-of-turn token, if there is one."""
    end: int
    """After its end-of-turn token."""
    marked: bool
    """Whether the template wrote a special token at its end."""
    train: bool


def _locate(
    text: str, start: int, messages: list[Message], template: ChatTemplate, frame: AnswerFrame
) -> _Turn:
    """The place of the last message in `text`, which ends with it: header out, end-of-turn token in.

    Special tokens that the message itself spells are no end of it.
    """
    message = messages[-1]
    if frame.header and text.startswith(frame.header, start):
        start += len(frame.header)
    said = message.content.strip()
    at = text.find(said, start)
    if at < 0 and message.train:
        raise RecordError(
            f"{template.where}: the chat template does not write message {len(messages)} as it is: "
            f"{quote(said[:_SHOWN])} became {quote(text[start : start + _SHOWN])}; set chat_template, or "
            "chat_template_kwargs in the data"
        )
    over = at + len(said) if said and at >= 0 else start
    mark = template.last_special(text[over:])
    if mark is None:
        end = max(over, len(text.rstrip()))
        return _Turn(start, end, end, marked=False, train=message.train)
    between = text[over : over + mark.start()]
    while inner := template.last_special(between):
        between = between[: inner.start()]
    return _Turn(start, over + len(between), over + mark.end(), marked=True, train=message.train)


def _close_turns(
    text: str,
    turns: list[_Turn],
    response: Response,
    template: ChatTemplate,
    frame: AnswerFrame,
) -> RenderedResponse:
    """Cut the text after its last turn, with or without the token that ends it."""
    last = turns[-1]
    text = text[: last.end if response.ends else last.stop]
    if response.ends and not last.marked:
        text += frame.end
    turns = [*turns[:-1], last._replace(end=len(text))]
    spans = [Span(t.start, t.end, i) for i, t in enumerate(turns) if t.train]
    for i, turn in enumerate(turns[:-1]):
        if turn.train and turn.end <= turn.start:
            raise RecordError(
                f"{template.where}: turn {i + 1} of the assistant is empty, and this chat template ends turns "
                "with no special token, so that nothing of it can be scored: give it text, or mark it 'train': false"
            )
    first = len(frame.prompt)
    context = spans[0].start if spans and spans[0].turn == 0 else first
    return RenderedResponse(text, tuple(s for s in spans if s.end > s.start), True, context)
