"""Which files make up a package and everything it needs, so that a sandbox can show just these."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    packages_distributions,
)
from pathlib import Path

from packaging.requirements import Requirement

from prefopt.errors import SandboxError


def package_paths(names: Sequence[str]) -> list[Path]:
    """The top-level folders and files of importable packages and of the distributions that they require, sorted.

    `sympy` brings `mpmath`; `numpy` brings the folder of its libraries. Requirements that are not installed are left
    out, as they are for any other import. Raises SandboxError for a name that cannot be imported here.
    """
    owners = packages_distributions() if names else {}
    found: set[Path] = set()
    seen: set[str] = set()
    for name in names:
        found |= set(own_paths(name))
        for owner in owners.get(name, []):
            for member in required(owner, seen):
                found |= set(installed_paths(member))
    return sorted(found)


def own_paths(name: str) -> list[Path]:
    """Where an importable top-level package or module lies."""
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations:
        return [Path(folder) for folder in spec.submodule_search_locations]
    if spec is not None and spec.origin and Path(spec.origin).is_file():
        return [Path(spec.origin)]
    raise SandboxError(
        f"sandbox packages: {name!r} is no importable package here; install it or take it off the list"
    )


def required(name: str, seen: set[str]) -> Iterator[Distribution]:
    """A distribution and, one by one, those it requires on this machine; each only once."""
    if name.lower() in seen:
        return
    seen.add(name.lower())
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return
    yield found
    for line in found.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield from required(requirement.name, seen)


def installed_paths(owner: Distribution) -> list[Path]:
    """The top-level entries beside its metadata that a distribution has installed."""
    tops = {
        file.parts[0] for file in owner.files or [] if file.parts[0] not in {"..", "__pycache__"}
    }
    paths = (Path(str(owner.locate_file(top))) for top in tops)
    return [path for path in paths if path.exists() and path.suffix != ".pth"]
