"""Messages for what is wrong in a recipe: key, value, what is expected, where it stands, the nearest valid name."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel

from prefopt.config.aliases import ALIASES
from prefopt.config.schema import section_of
from prefopt.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from prefopt.records import JsonValue

_TYPES = {
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}

Spec = Mapping[str, "JsonValue"]
"""Part of a JSON schema."""


class Mistake(NamedTuple):
    """One line for the user."""

    origin: str
    """`file:line`, `command line`, or the file alone for what is not there."""
    text: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}" if self.origin else self.text


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like `name`, or None when none is similar."""
    lowered = {candidate.lower(): candidate for candidate in valid}
    found = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def unknown_name(kind: str, name: str, valid: Sequence[str]) -> ConfigError:
    """The error for a name that is not among `valid`, with the nearest one and the whole list."""
    near = nearest(name, valid)
    hint = f": did you mean {near!r}?" if near else "."
    return ConfigError(f"unknown {kind} {name!r}{hint} Known: {', '.join(valid)}")


def config_error(mistakes: Sequence[Mistake], *, source: str) -> ConfigError:
    """One error for all mistakes: a single line for one, a heading and a line each for several."""
    if len(mistakes) == 1:
        return ConfigError(str(mistakes[0]))
    lines = "".join(f"\n  {mistake}" for mistake in mistakes)
    return ConfigError(f"{source or 'settings'}: {len(mistakes)} mistakes{lines}")


def mistakes_of(
    error: ValidationError,
    schema: type[BaseModel],
    raw: Mapping[str, JsonValue],
    *,
    origins: Mapping[str, str],
    source: str,
) -> list[Mistake]:
    """What pydantic found, in the words of a recipe and in the order of the file.

    Args:
        error: from `schema.model_validate(raw)`.
        schema: the config class of the method.
        raw: the values as read.
        origins: where each (dotted) key stands.
        source: what to name for keys that stand nowhere.
    """
    found: dict[str, list[Mistake]] = {}
    for detail in error.errors(include_url=False):
        place = _Place(schema, raw, tuple(map(str, detail["loc"])))
        place = place.innermost()
        if place.dotted and place.dotted in found:
            continue  # one message per key: pydantic reports each branch of a union
        if not place.rest:
            lines = str(detail["ctx"]["error"] if "ctx" in detail else detail["msg"]).splitlines()
            found[place.dotted] = [
                Mistake(_origin_of_text(line, origins, place.path, source), place.named(line))
                for line in lines
            ]
            continue
        where = (".".join(place.path + place.rest), place.dotted, ".".join(place.path), source)
        origin = next((origins[name] for name in where if name in origins), source)
        found[place.dotted] = [Mistake(origin, place.named(_text(detail, place)))]
    mistakes = [mistake for group in found.values() for mistake in group]
    return sorted(mistakes, key=lambda mistake: _line(mistake.origin))


class _Place(NamedTuple):
    """A location in a recipe, seen from the section it lies in."""

    schema: type[BaseModel]
    raw: object
    rest: tuple[str, ...]
    path: tuple[str, ...] = ()
    """Of the section."""

    @property
    def dotted(self) -> str:
        """The key with its sections."""
        return ".".join(self.path + self.rest[:1])

    def innermost(self) -> _Place:
        """The same location, seen from the innermost section."""
        if not self.rest:
            return self
        key, *inner = self.rest
        section = section_of(self.schema, key)
        value = self.raw.get(key) if isinstance(self.raw, dict) else None
        if section is None or not isinstance(value, dict):
            return self
        if inner[:1] == [section.__name__]:  # pydantic names the branch of a union
            inner = inner[1:]
        return _Place(section, value, tuple(inner), (*self.path, key)).innermost()

    def named(self, text: str) -> str:
        """A message that says which section it is about."""
        return f"{'.'.join(self.path)}: {text}" if self.path else text


def _text(detail: ErrorDetails, place: _Place) -> str:
    key, raw = place.rest[0], place.raw if isinstance(place.raw, dict) else {}
    if detail["type"] == "extra_forbidden":
        return _unknown_key(key, place.schema, raw)
    if detail["type"] == "missing" and key not in raw:
        description = " ".join((place.schema.model_fields[key].description or "").split())
        return (
            f"key {key!r} is missing: {description}" if description else f"key {key!r} is missing"
        )
    if detail["type"] == "value_error" and "ctx" in detail:
        return f"{key}: {detail['ctx']['error']}"
    value = raw.get(key)
    spec: Spec = place.schema.model_json_schema()["properties"].get(key, {})
    return f"{key} is {_show(value)}; expected {expectation(spec)}{_hint(value, spec)}"


def _unknown_key(key: str, schema: type[BaseModel], raw: Mapping[str, JsonValue]) -> str:
    known = schema.model_fields
    same = [name for name in ALIASES.get(key.lower().replace("-", "_"), ()) if name in known]
    if same:
        return f"unknown key {key!r}: here it is {' or '.join(same)}"
    near = nearest(key.replace("-", "_"), known)
    if near:
        return f"unknown key {key!r}: did you mean {near!r}?"
    if "method" in known:
        return f"unknown key {key!r}: `prefopt methods {raw.get('method', '')}` lists the keys"
    return f"unknown key {key!r}: known are {', '.join(known)}"


def expectation(spec: Spec) -> str:
    """What a key takes, in words: `a whole number >= 1 or null`."""
    if "$ref" in spec:
        return "a section of keys"
    options = _options(spec)
    if len(options) > 1:
        parts = [expectation(option) for option in options]
        return f"{', '.join(parts[:-1])} or {parts[-1]}"
    choices = _choices(spec)
    if choices:
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    items = spec.get("items")
    if isinstance(items, dict):
        return f"a list of {expectation(items)}"
    values = spec.get("additionalProperties")
    if isinstance(values, dict):
        return f"a mapping of names to {'values' if '$ref' in values else 'text'}"
    return _TYPES.get(str(spec.get("type")), "a mapping") + _bounds(spec)


def _bounds(spec: Spec) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f" {sign} {_show(spec[name])}" for name, sign in signs.items() if name in spec]
    return " and".join(limits)


def _options(spec: Spec) -> list[Spec]:
    options = spec.get("anyOf")
    return [o for o in options if isinstance(o, dict)] if isinstance(options, list) else [spec]


def _choices(spec: Spec) -> list[str]:
    if "const" in spec:
        return [str(spec["const"])]
    values = spec.get("enum")
    return [str(value) for value in values] if isinstance(values, list) else []


def _hint(value: JsonValue, spec: Spec) -> str:
    """How to repair a value that is nearly right."""
    options = _options(spec)
    types = {str(option.get("type")) for option in options}
    items = [o["items"] for o in options if isinstance(o.get("items"), dict)]
    choices = [c for o in [*options, *items] if isinstance(o, dict) for c in _choices(o)]
    if choices:
        wrong = [v for v in (value if isinstance(value, list) else [value]) if v not in choices]
        near = nearest(str(wrong[0]), choices) if wrong else None
        return f": did you mean {near!r}?" if near else ""
    if (
        isinstance(value, str)
        and "boolean" in types
        and value.lower() in {"yes", "no", "on", "off"}
    ):
        return " (YAML 1.2 takes yes and no for text)"
    if isinstance(value, str) and types & {"integer", "number"} and _is_number(value):
        return ": remove the quotes"
    if isinstance(value, bool | int | float) and types & {"string"}:
        return ": put it in quotes"
    if value == "" and "string" in types:
        return ": it must not be empty"
    if value is None and "string" in types and not options[0].get("minLength"):
        return " (write '' for empty text)"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _origin_of_text(
    text: str, origins: Mapping[str, str], path: tuple[str, ...], source: str
) -> str:
    """Where the first key that a message names stands, or else its section."""
    words = [".".join((*path, word)) for word in re.findall(r"\w+", text)]
    named = [origins[word] for word in words if word in origins]
    return named[0] if named else origins.get(".".join(path), source)


def _line(origin: str) -> int:
    """Sort key: line of the file, then what is not there, then the command line."""
    if origin == "command line":
        return 2**31
    tail = origin.rpartition(":")[2]
    return int(tail) if tail.isdigit() else 2**30
