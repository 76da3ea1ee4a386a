"""Short requests of the same form as others.

They tell a server that does not work from a request that it cannot answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from prefopt.values import JsonValue

_PROMPT = "One, two, three,"
_SAID = {"user": "Say yes.", "assistant": "Yes"}
_OTHERWISE = "Answer in one word."


def trial(body: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A request with all fields of another one and short texts in the place of its own.

    Stop strings, tools and the roles of the messages stay: a server that takes none of them answers no request of this
    form.
    """
    if "prompt" in body:
        return {**body, "prompt": _PROMPT}
    messages = cast("list[dict[str, JsonValue]]", body["messages"])
    short: list[JsonValue] = [
        {**message, "content": _SAID.get(str(message["role"]), _OTHERWISE)} for message in messages
    ]
    return {**body, "messages": short}
