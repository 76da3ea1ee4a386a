"""What the files and models that a build reads hold, as digests.

Other content under the same name is noticed, and the same content under another name is known again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from prefopt.build.named_files import is_file
from prefopt.errors import ModelError
from prefopt.records import parse_line
from prefopt.values import JsonValue

_BESIDE_WEIGHTS = (
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
"""Files of a model folder that decide, with its weights, what the model writes and finds likely."""


class Contents(NamedTuple):
    """Digests of what an earlier build has read, and of what there is now, by name as recipes have it."""

    read: Mapping[str, str]
    now: Mapping[str, str]

    def replaced(self) -> list[str]:
        """The names whose content is another one than was read; one that is gone cannot be compared."""
        return [name for name, digest in self.now.items() if self.read.get(name, digest) != digest]

    def are_alike(self, before: JsonValue, after: JsonValue) -> bool:
        """Whether two values of recipes are equal, or name the same: a folder that was moved has the same content."""
        if before == after:
            return True
        if isinstance(before, str) and isinstance(after, str):
            same = before in self.read and self.read[before] == self.now.get(after)
            return same or _is_one_place(before, after)
        if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
            return all(self.are_alike(b, a) for b, a in zip(before, after, strict=True))
        return False


def _is_one_place(one: str, other: str) -> bool:
    """Whether two texts are names of one file or folder that is there."""
    with suppress(OSError, ValueError):  # not there, too long, or with a zero character
        return Path(one).expanduser().samefile(Path(other).expanduser())
    return False


def contents_since(file: Path, now: Mapping[str, str]) -> Contents:
    """The digests in a file of them, beside those of now; without a file those of now for both.

    Raises:
        RecordError: the file is damaged.
    """
    if not file.exists():
        return Contents(now, now)
    read = parse_line(file.read_text(encoding="utf-8"), str(file))
    return Contents({name: str(digest) for name, digest in read.items()}, now)


def file_digests(names: Iterable[str]) -> dict[str, str]:
    """Digest of each file, 32 hex digits; only of those that are there."""
    return {name: file_digest(Path(name).expanduser()) for name in names if is_file(name)}


def file_digest(file: Path) -> str:
    """Digest of a file, 32 hex digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:32]


def model_digests(names: Iterable[str]) -> dict[str, str]:
    """Digest of each model folder, 32 hex digits; not of hub ids, nor of folders without weights.

    Of weights, configuration and tokenizer, and for an adapter of the same of its base.
    """
    found = {name: _model_digest(Path(name).expanduser()) for name in names}
    return {name: digest for name, digest in found.items() if digest is not None}


def _model_digest(folder: Path) -> str | None:
    files = [file for file in sorted(folder.glob("*")) if file.is_file()]
    kinds = ([file for file in files if file.suffix == kind] for kind in (".safetensors", ".bin"))
    weights = next(filter(None, kinds), [])
    if not weights:
        return None
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashed = list(pool.map(_weights_digest, weights))
    facts = [[file.name, digest] for file, digest in zip(weights, hashed, strict=True)]
    beside = [folder / name for name in _BESIDE_WEIGHTS if (folder / name).is_file()]
    facts += [[file.name, file_digest(file)] for file in beside]
    base = _base(folder)
    below = None if base is None else _model_digest(base)
    return hashlib.sha256(json.dumps([facts, below]).encode()).hexdigest()[:32]


def _base(folder: Path) -> Path | None:
    """The folder of the model that an adapter is on; None for a model, or where the name is no other folder."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = Path(named["base_model_name_or_path"]).expanduser()
        return None if (base / "adapter_config.json").exists() else base
    return None


def _weights_digest(file: Path) -> str:
    there = file.stat()
    return _digest_once(file, there.st_size, there.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest_once(file: Path, size: int, changed: int) -> str:
    """The digest, computed once for each state of a file: weights are large, and asked for at every stage."""
    del size, changed
    try:
        return file_digest(file)
    except OSError as error:
        raise ModelError(
            f"{file}: cannot be read ({error.strerror}); check its permissions"
        ) from error
