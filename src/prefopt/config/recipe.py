"""Reading recipes (YAML 1.2 with line numbers), `key=value` overrides, validation, and writing back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode

from prefopt.config.mistakes import config_error, mistakes_of, nearest
from prefopt.config.schema import RunConfig
from prefopt.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node, ScalarNode
    from ruamel.yaml.representer import SafeRepresenter

    from prefopt.records import JsonValue

C = TypeVar("C", bound=RunConfig)

COMMAND_LINE = "command line"
_READ_AS_BOOL_BY_YAML_1_1 = frozenset({"y", "n", "yes", "no", "on", "off"})


class Recipe(dict[str, "JsonValue"]):
    """The values of a recipe, with where each of them was written."""

    def __init__(
        self, values: Mapping[str, JsonValue], *, source: str, origins: Mapping[str, str]
    ) -> None:
        super().__init__(values)
        self.source = source
        """The file."""
        self.origins = dict(origins)
        """Dotted key -> `file:line` or `command line`."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The values of a recipe file after the overrides, not yet checked against a method's schema.

    Args:
        path: a YAML 1.2 file: `1e-5` is a number, `no` is text, a key that appears twice is an error.
        overrides: `key=value` or `key.sub=value`; values are read as YAML, later ones win.

    Raises:
        StorageError: the file cannot be read.
        ConfigError: it is no YAML mapping, or an override has no such form.
    """
    path = Path(path)
    values, lines = _read_yaml(_read_text(path), str(path))
    recipe = Recipe(values, source=str(path), origins=lines)
    for override in overrides:
        _override(recipe, override)
    return recipe


def parse(raw: Mapping[str, JsonValue], schema: type[C], *, origin: str = "") -> C:
    """The checked config of a recipe, or one error that lists every mistake in it.

    Args:
        raw: from `load_recipe`, or any mapping.
        schema: the config class of the method.
        origin: what to call `raw` in messages when it is no `Recipe`.

    Raises:
        ConfigError: unknown or missing keys, wrong values, contradictions; each with its `file:line`.
    """
    source = raw.source if isinstance(raw, Recipe) else origin
    origins = raw.origins if isinstance(raw, Recipe) else {}
    try:
        return schema.model_validate(dict(raw))
    except ValidationError as error:
        mistakes = mistakes_of(error, schema, raw, origins=origins, source=source)
    raise config_error(mistakes, source=source)


def write_recipe(config: RunConfig, path: str | Path) -> None:
    """Write every setting as a recipe that `load_recipe` and `parse` read back to an equal config.

    The file appears whole or not at all. Readers of YAML 1.1 find the same values in it.

    Raises:
        StorageError: the file cannot be written.
    """
    path = Path(path)
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue] - declared None
    yaml.representer.add_representer(_Float, _represent_float)
    yaml.representer.add_representer(_QuotedText, _represent_quoted)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yaml.dump(_portable(config.model_dump(mode="json")), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: cannot write the recipe: {error.strerror}; check the path and the free space"
        ) from error


class _Float(float):
    """A number that YAML 1.1 readers also take for one: `1.0e-06`, not `1e-06`."""


class _QuotedText(str):
    """Text that YAML 1.1 readers would take for a truth value."""

    __slots__ = ()


def _represent_float(representer: SafeRepresenter, value: _Float) -> ScalarNode:
    text = repr(float(value))
    portable = text.replace("e", ".0e") if "e" in text and "." not in text else text
    return representer.represent_scalar("tag:yaml.org,2002:float", portable)


def _represent_quoted(representer: SafeRepresenter, value: _QuotedText) -> ScalarNode:
    return representer.represent_scalar("tag:yaml.org,2002:str", str(value), style="'")


def _portable(value: JsonValue) -> JsonValue:
    """The same values, marked so that YAML 1.1 readers understand them too."""
    if isinstance(value, dict):
        return {key: _portable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_portable(entry) for entry in value]
    if isinstance(value, str) and value.lower() in _READ_AS_BOOL_BY_YAML_1_1:
        return _QuotedText(value)
    return _Float(value) if isinstance(value, float) else value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        hint = f"; did you mean '{path.with_name(near)}'?" if near else ""
        raise StorageError(f"{path}: no such recipe{hint}") from None
    except IsADirectoryError:
        inside = path / "run.yaml"
        hint = f"; did you mean '{inside}'?" if inside.is_file() else ""
        raise StorageError(f"{path}: a folder, not a recipe{hint}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not a UTF-8 text file (byte {error.start}): is it YAML?"
        ) from None
    except OSError as error:
        raise StorageError(f"{path}: cannot read the recipe: {error.strerror}") from error


def _read_yaml(text: str, source: str) -> tuple[dict[str, JsonValue], dict[str, str]]:
    """Values and the origin of each dotted key."""
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text)
        if node is None:
            raise ConfigError(
                f"{source}: empty; a recipe needs at least 'method' and 'model_name_or_path'"
            )
        if not isinstance(node, MappingNode):
            raise ConfigError(
                f"{source}:{node.start_mark.line + 1}: expected lines 'key: value' with a space after the colon"
            )
        origins = dict(_origins(node, source))
        values = yaml.constructor.construct_document(node)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    return values, origins


def _origins(node: Node, source: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of a mapping with `file:line`; keys that are no text or appear twice are refused."""
    if not isinstance(node, MappingNode):
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        name = key.value
        if key.tag != "tag:yaml.org,2002:str":
            raise ConfigError(
                f"{source}:{line}: a key must be text; got {name!r}: put it in quotes"
            )
        if name in first:
            raise ConfigError(
                f"{source}:{line}: key {prefix + name!r} appears twice, first in line {first[name]}: remove one"
            )
        first[name] = line
        yield prefix + name, f"{source}:{line}"
        yield from _origins(value, source, f"{prefix}{name}.")


def _override(recipe: Recipe, override: str) -> None:
    key, sign, text = override.partition("=")
    path = key.strip().split(".")
    if not sign or not all(path):
        raise ConfigError(
            f"{COMMAND_LINE}: {override!r} is no override: write key=value or key.sub=value"
        )
    target: dict[str, JsonValue] = recipe
    for depth, part in enumerate(path[:-1], start=1):
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{COMMAND_LINE}: {override!r}: {'.'.join(path[:depth])} is {inner!r}, which has no keys"
            )
        target = inner
    target[path[-1]] = _value(text)
    dotted = ".".join(path)
    for replaced in [name for name in recipe.origins if name.startswith(f"{dotted}.")]:
        del recipe.origins[replaced]
    recipe.origins[dotted] = COMMAND_LINE
    recipe.origins.setdefault(path[0], COMMAND_LINE)


def _value(text: str) -> JsonValue:
    """A value as YAML reads it; text that is no YAML, blank text, and `a: b` without braces stay text."""
    if text and not text.strip():
        return text
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text
    return text if isinstance(value, dict) and not text.lstrip().startswith("{") else value
