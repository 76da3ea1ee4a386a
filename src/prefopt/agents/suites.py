"""Suites are found by module, not by registry: each lives in `prefopt.agents.environments` and exposes `SUITE`."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

import prefopt.agents.environments
from prefopt.agents.environment import Suite
from prefopt.agents.own_suite import checked_suite
from prefopt.config import unknown_name
from prefopt.errors import ConfigError, PrefoptError
from prefopt.values import JsonValue, describe

_ASKED_FOR = (
    "name", "identity", "instruction", "splits", "per_worker", "start_seconds", "tasks", "open",
)  # fmt: skip
"""What a suite has."""
_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def suite_names() -> list[str]:
    """Names of the environments that come with the library."""
    return sorted(m.name for m in pkgutil.iter_modules(prefopt.agents.environments.__path__))


def find_suite(name: str, options: Mapping[str, JsonValue] | None = None) -> Suite:
    """The suite of an environment.

    Args:
        name: one of `suite_names`, or `package.module:Class` for one of your own: a dataclass that has what
            `prefopt.agents.environment.Suite` asks for. It is returned with checks around it (`OwnSuite`).
        options: values of its fields; each has to be of the type that the field is annotated with.

    Raises:
        ConfigError: no such environment, or one that cannot be imported, lacks something, or breaks a promise of
            `Suite`; an option that it does not have, that has another type, or that it refuses.
    """
    made = _class(name)
    known = [field.name for field in fields(cast("Any", made)) if field.init]
    given = dict(options or {})
    unknown = next((key for key in given if key not in known), None)
    if unknown is not None:
        raise ConfigError(
            f"environment {name}: no option {unknown!r}; it has {', '.join(known) or 'none'}"
        )
    values = _checked(name, made, given)
    try:
        suite = made(**values)
    except PrefoptError:
        raise
    except Exception as error:
        raise ConfigError(
            f"environment {name}: {_first_line(error)}; check environment_options"
        ) from error
    missing = [part for part in _ASKED_FOR if inspect.getattr_static(suite, part, None) is None]
    if missing:
        raise ConfigError(
            f"environment {name}: {made.__name__} has no {', '.join(missing)}; a suite needs {', '.join(_ASKED_FOR)}"
        )
    return checked_suite(suite, name) if ":" in name else cast("Suite", suite)


def _checked(name: str, made: type, given: Mapping[str, JsonValue]) -> dict[str, object]:
    """The options as the annotations of the fields have them: lists become tuples where tuples are asked for."""
    try:
        hints = get_type_hints(made)
    except (NameError, TypeError):  # names that only a type checker imports: nothing is known
        return dict(given)
    found: dict[str, object] = {}
    for key, value in given.items():
        try:
            adapter = TypeAdapter[object](hints[key], config=_STRICT)
        except PydanticUserError:  # a class with settings of its own
            adapter = TypeAdapter[object](hints[key])
        except RecursionError:  # a type that is described by itself
            found[key] = value
            continue
        try:
            found[key] = adapter.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            if error.errors()[0]["type"] == "literal_error":  # the class knows better what to say
                found[key] = value
                continue
            wanted = error.errors()[0]["msg"]
            raise ConfigError(
                f"environment {name}: option {key} is {describe(value)}: {wanted[0].lower()}{wanted[1:]}"
            ) from error
    return found


def _class(name: str) -> type:
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in suite_names():
            raise unknown_name("environment", name, suite_names())
        module, attribute = f"prefopt.agents.environments.{name}", "SUITE"
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ConfigError(
            f"environment {name}: {_first_line(error)}; write package.module:Class of an installed package"
        ) from error
    if not (isinstance(found, type) and is_dataclass(found)):
        raise ConfigError(f"environment {name}: {attribute} is no dataclass that describes a suite")
    return found


def _first_line(error: Exception) -> str:
    """What an exception of other people's code says, in one line; with its class where that tells more."""
    said = str(error).strip().partition("\n")[0]
    if isinstance(error, ImportError | AttributeError | TypeError) and said:
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
