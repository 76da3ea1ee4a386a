"""Where the prompt ends and the responses begin: explicit prompts, whole conversations, whole texts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from prefopt.errors import RecordError
from prefopt.records import Message
from prefopt.values import quote

Content: TypeAlias = str | tuple[Message, ...]
"""A prompt or a response as it stands in the data: text, or messages."""


_ANSWER = "\n\nAssistant:"


class Division(NamedTuple):
    """A prompt and what each response adds to it."""

    prompt: Content
    contents: list[Content]


def join_prompt(prompt: Content, contents: Mapping[str, Content], origin: str) -> Division:
    """The prompt and what each content adds to it; contents may repeat the prompt's messages.

    A text prompt becomes one user message where the contents are messages.

    Raises:
        RecordError: text and messages are mixed, or a conversation does not start with the prompt.
    """
    kinds = {name: isinstance(content, str) for name, content in contents.items()}
    if isinstance(prompt, str) and len(set(kinds.values())) > 1:
        text = next(name for name, is_text in kinds.items() if is_text)
        messages = next(name for name, is_text in kinds.items() if not is_text)
        raise RecordError(
            f"{origin}: '{messages}' is a list of messages but '{text}' is text; make them alike"
        )
    if isinstance(prompt, str) and not all(kinds.values()):
        prompt = _as_conversation(prompt, next(iter(contents.values())))
    return Division(
        prompt,
        [
            c if isinstance(c, str) or isinstance(prompt, str) else _after(prompt, c, name, origin)
            for name, c in contents.items()
        ],
    )


def _after(
    prompt: tuple[Message, ...], content: tuple[Message, ...], name: str, origin: str
) -> Content:
    if content[0].role == "assistant":
        return content
    n = len(prompt)
    if len(content) > n and _same(content[:n], prompt):
        return content[n:]
    at = next(
        (i for i, (a, b) in enumerate(zip(content, prompt, strict=False)) if not _same((a,), (b,))),
        n,
    )
    theirs = quote(content[at].content) if at < len(content) else "the end"
    ours = quote(prompt[at].content) if at < n else "the end"
    raise RecordError(
        f"{origin}: '{name}' does not start with the prompt: message {at} is {theirs}, "
        f"the prompt has {ours}; give only the answer, or the same messages"
    )


def as_messages(content: Content) -> tuple[Message, ...]:
    """The content as messages: a text is one assistant message."""
    return (Message("assistant", content),) if isinstance(content, str) else content


def _as_conversation(prompt: str, content: Content) -> tuple[Message, ...]:
    """The text prompt as messages: those that `content` opens with when they say the same."""
    messages = as_messages(content)
    opening = messages[: first_turn(messages)]
    if opening and opening[-1].role == "user" and opening[-1].content.strip() == prompt.strip():
        return opening
    return (Message("user", prompt),)


def first_turn(messages: Sequence[Message]) -> int:
    """Position of the first assistant message; the length when there is none."""
    return next((i for i, m in enumerate(messages) if m.role == "assistant"), len(messages))


def last_turn(messages: Sequence[Message]) -> int:
    """Position of the last message, which has to be the assistant's; -1 when it is not."""
    return len(messages) - 1 if messages[-1].role == "assistant" else -1


def _same(a: Sequence[Message], b: Sequence[Message]) -> bool:
    return [(m.role, m.content, m.extra) for m in a] == [(m.role, m.content, m.extra) for m in b]


def role_names(messages: Sequence[Message]) -> str:
    """The roles in order, for error messages."""
    return ", ".join(m.role for m in messages)


def split_prompt(chosen: Content, rejected: Content, origin: str) -> Division:
    """Prompt and responses where both are whole texts or whole conversations.

    Raises:
        RecordError: one is text and the other is not, or two conversations share no prompt.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt = common_text(chosen, rejected)
        return Division(prompt, [chosen[len(prompt) :], rejected[len(prompt) :]])
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RecordError(
            f"{origin}: one of chosen and rejected is text, the other a list of messages; make them alike"
        )
    n = common_messages(chosen, rejected)
    if n == 0:
        raise RecordError(
            f"{origin}: chosen ({role_names(chosen)}) and rejected ({role_names(rejected)}) differ before the first "
            "assistant message, so there is no common prompt; add a prompt column"
        )
    return Division(chosen[:n], [chosen[n:], rejected[n:]])


def split_triple(
    chosen: Content, rejected: Content, gold: Content, name: str, origin: str
) -> Division:
    """Prompt and responses of a pair (see `split_prompt`) and a third content, which has the column `name`.

    A conversation may repeat the prompt or be the answer alone; a text has to begin as the other two do. The prompt
    of texts is then what all three share.

    Raises:
        RecordError: as `split_prompt`; the third is of the other kind, or has another prompt.
    """
    pair = split_prompt(chosen, rejected, origin)
    prompt = pair.prompt
    if isinstance(prompt, str) != isinstance(gold, str):
        theirs, others = ("text", "messages") if isinstance(gold, str) else ("messages", "text")
        raise RecordError(
            f"{origin}: '{name}' is {theirs}, but chosen and rejected are {others}; make them alike"
        )
    if not isinstance(prompt, str) and not isinstance(gold, str):
        return Division(prompt, [*pair.contents, _after(prompt, gold, name, origin)])
    texts = [str(content) for content in (chosen, rejected, gold)]
    shared = common_text(*texts)
    if (str(prompt).endswith(_ANSWER) and shared != prompt) or (prompt and not shared):
        raise RecordError(
            f"{origin}: '{name}' is {quote(texts[2])}, which does not begin with what chosen and rejected share, "
            f"{quote(str(prompt))}; give it the same beginning, or add a prompt column"
        )
    return Division(shared, [text[len(shared) :] for text in texts])


def common_messages(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages two conversations share as their prompt.

    The longest common beginning, shortened until an assistant message follows in both; 0 when there is none.
    """
    n = 0
    while n < min(len(chosen), len(rejected)) - 1 and _same((chosen[n],), (rejected[n],)):
        n += 1
    while n > 0 and not (chosen[n].role == rejected[n].role == "assistant"):
        n -= 1
    return n


def common_text(*texts: str) -> str:
    r"""The prompt that whole texts share: their common beginning, ended before a word.

    It ends after the last `\n\nAssistant:` where there is one (Anthropic's HH sets), otherwise before
    white space, so that no word is split and no side is empty: "The sky", "The sky is blue" share "The".
    """
    shared = os.path.commonprefix(texts)  # noqa: RUF071 - texts, not paths
    at = shared.rfind(_ANSWER)
    if at >= 0:
        return shared[: at + len(_ANSWER)]
    for i in range(min(len(shared), *(len(text) - 1 for text in texts)), 0, -1):
        if all(text[i].isspace() for text in texts) and not shared[i - 1].isspace():
            return shared[:i]
    return ""
