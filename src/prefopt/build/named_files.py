"""Whether the files that a recipe names are there."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from prefopt.config import RunConfig
from prefopt.errors import ConfigError

_SHOWN, _LONGEST_NAME = 40, 255
"""Characters of a name that is none, and of one that may be, in a message."""


def template_file(config: RunConfig) -> str | None:
    """The file of `chat_template`, as the recipe names it; None where it names none.

    Raises:
        ConfigError: there is no such file, or the key holds the text of a template.
    """
    name = config.chat_template
    if name is None or is_file(name):
        return name
    if re.search(r"\{[{%]|\n", name):
        start = f"{' '.join(name.split())[:_SHOWN]}..."
        raise ConfigError(
            f"chat_template {start!r} is the text of a template: write it to a file and name that"
        )
    shown = name if len(name) <= _LONGEST_NAME else f"{name[:_SHOWN]}..."
    raise ConfigError(f"chat_template {shown} cannot be read: no such file")


def is_file(name: str) -> bool:
    """Whether there is such a file; also for texts that can be no name."""
    with suppress(OSError, ValueError):  # too long, or with a zero character
        return Path(name).expanduser().is_file()
    return False
