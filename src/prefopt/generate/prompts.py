"""Requests as token ids: the same texts and tokens that training sees before a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefopt.generate.base import Request
from prefopt.records import Preference
from prefopt.text.render import RenderedResponse, RenderSettings, encode, render_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def encode_prompts(
    requests: Sequence[Request], tokenizer: PreTrainedTokenizerFast, settings: RenderSettings
) -> list[list[int]]:
    """Token ids of each prompt with its prefix, as training sees them (`prefopt.text.render`).

    Raises:
        RecordError, ModelError: as `render_prompt`.
    """
    rendered: list[RenderedResponse] = []
    # Samples of one record share their prompt: templates are run once per text, not once per sample.
    texts: dict[tuple[str, str], str] = {}
    for request in requests:
        key = (request.id, request.digest())
        if key not in texts:
            record = Preference(
                request.id, request.prompt, (), prefix=request.prefix, meta=request.meta
            )
            texts[key] = render_prompt(record, tokenizer, settings)
        chat = settings.prompt_format == "chat" or not isinstance(request.prompt, str)
        text = texts[key]
        rendered.append(RenderedResponse(text, (), special=chat, context=len(text)))
    return [list(encoded.sequence.tokens) for encoded in encode(rendered, tokenizer)]
