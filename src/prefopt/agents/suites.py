"""Suites are found by module, not by registry: each lives in `prefopt.agents.environments` and exposes `SUITE`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

import prefopt.agents.environments
from prefopt.agents.environment import Suite
from prefopt.config import unknown_name
from prefopt.errors import ConfigError
from prefopt.values import JsonValue


def suite_names() -> list[str]:
    """Names of the environments that come with the library."""
    return sorted(m.name for m in pkgutil.iter_modules(prefopt.agents.environments.__path__))


def find_suite(name: str, options: Mapping[str, JsonValue] | None = None) -> Suite:
    """The suite of an environment.

    Args:
        name: one of `suite_names`, or `package.module:Class` for one of your own: a dataclass that has what
            `prefopt.agents.environment.Suite` asks for.
        options: values of its fields.

    Raises:
        ConfigError: no such environment, or an option that it does not have or refuses.
    """
    made = _class(name)
    known = [field.name for field in fields(cast("Any", made)) if field.init]
    given = dict(options or {})
    unknown = next((key for key in given if key not in known), None)
    if unknown is not None:
        raise ConfigError(
            f"environment {name}: no option {unknown!r}; it has {', '.join(known) or 'none'}"
        )
    try:
        return cast("Suite", made(**given))
    except TypeError as error:
        raise ConfigError(f"environment {name}: {error}; check environment_options") from error


def _class(name: str) -> type:
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in suite_names():
            raise unknown_name("environment", name, suite_names())
        module, attribute = f"prefopt.agents.environments.{name}", "SUITE"
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"environment {name}: {error}; write package.module:Class of an installed package"
        ) from error
    if not (isinstance(found, type) and is_dataclass(found)):
        raise ConfigError(f"environment {name}: {attribute} is no dataclass that describes a suite")
    return found
