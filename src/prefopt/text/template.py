"""Conversations through a chat template: where an answer starts, and what ends it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from jinja2 import TemplateError

from prefopt.errors import ModelError, RecordError
from prefopt.records import Message
from prefopt.values import JsonValue, quote

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SENTINEL = "\u27e6answer\u27e7"
_SHOWN = 30


class AnswerFrame(NamedTuple):
    """What a template puts around the answer to a prompt."""

    prompt: str
    """The text before the answer when the model is asked to generate."""
    header: str
    """What the template writes between that text and an answer that is given: mostly nothing, white space,
    or an empty reasoning block."""
    end: str
    """What ends the answer: up to and including the last special token, or the EOS token."""


class ChatTemplate:
    """A tokenizer's template (or `source` in its place) with the tools and arguments of one record."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        source: str | None,
        meta: Mapping[str, JsonValue],
        where: str,
    ) -> None:
        if source is None and not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"{where}: the prompt is a conversation, but the tokenizer has no chat template; "
                "set chat_template to a template file, or give prompts and responses as plain text"
            )
        self.tokenizer = tokenizer
        self.source = source
        self.where = where
        arguments = meta.get("chat_template_kwargs")
        own = arguments if isinstance(arguments, dict) else {}
        self.arguments = {"tools": meta.get("tools"), **own}

    def render(self, messages: Sequence[Message], *, ask: bool) -> str:
        """The conversation as text; with `ask`, up to where the model starts to generate.

        Raises:
            RecordError: the template refuses the conversation.
        """
        rows = [{"role": m.role, "content": m.content, **m.extra} for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                cast("list[dict[str, str]]", rows),
                chat_template=self.source,
                add_generation_prompt=ask,
                tokenize=False,
                **self.arguments,  # pyright: ignore[reportArgumentType] - whatever the template reads
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise RecordError(
                f"{self.where}: the chat template refuses the conversation "
                f"({', '.join(m.role for m in messages)}): {error}; change the row or set chat_template"
            ) from error
        return str(text)

    def frame(self, messages: Sequence[Message]) -> AnswerFrame:
        """What surrounds an answer to these messages.

        Raises:
            RecordError: an answer is not written where the generation prompt ends.
        """
        prompt = self.render(messages, ask=True)
        answered = self.render([*messages, Message("assistant", _SENTINEL)], ask=False)
        before, found, after = answered.rpartition(_SENTINEL)
        if not found:
            raise RecordError(
                f"{self.where}: the chat template leaves out the assistant's text; set chat_template"
            )
        self.require_prefix(prompt, before, "an answer is not written where generation starts")
        return AnswerFrame(prompt, before[len(prompt) :], self.ending(after))

    def ending(self, after: str) -> str:
        """The part of `after` that ends a turn: through its last special token, else the EOS token.

        Raises:
            ModelError: there is neither.
        """
        marks = list(_special_pattern(self.tokenizer).finditer(after))
        if marks:
            return after[: marks[-1].end()]
        return end_token(self.tokenizer, self.where)

    def last_special(self, text: str) -> re.Match[str] | None:
        """The last special token in `text`."""
        return next(reversed(list(_special_pattern(self.tokenizer).finditer(text))), None)

    def require_prefix(self, shorter: str, longer: str, what: str) -> None:
        """Nothing when `longer` starts with `shorter`, else `RecordError` shows where they part."""
        if longer.startswith(shorter):
            return
        at = next(
            (i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b),
            len(longer),
        )
        raise RecordError(
            f"{self.where}: with this chat template {what}: after "
            f"{quote(shorter[max(0, at - _SHOWN) : at])} one has {quote(shorter[at : at + _SHOWN])}, the other "
            f"{quote(longer[at : at + _SHOWN])}; set chat_template to one that only appends, or "
            "chat_template_kwargs in the data"
        )


def end_token(tokenizer: PreTrainedTokenizerFast, where: str) -> str:
    """The EOS token's text.

    Raises:
        ModelError: the tokenizer has none.
    """
    eos = tokenizer.eos_token
    if isinstance(eos, str) and eos:
        return eos
    raise ModelError(
        f"{where}: the tokenizer has no eos_token, so nothing can end a response; set one in "
        "tokenizer_config.json, or mark the responses with ends: false"
    )


def _special_pattern(tokenizer: PreTrainedTokenizerFast) -> re.Pattern[str]:
    """Matches any special token of the tokenizer."""
    known = {str(token) for token in getattr(tokenizer, "all_special_tokens", [])}
    for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
        if token.special:
            known.add(token.content)
    longest_first = sorted(filter(None, known), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
