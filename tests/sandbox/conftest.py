"""A pool of isolated interpreters with small limits, shared by the tests of a file; it has to survive all of them."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from prefopt.sandbox import Limits, Sandbox, command, isolation

SMALL = Limits(
    seconds=1.0, memory_bytes=256 * 2**20, processes=8, output_chars=2000, disk_bytes=8 * 2**20
)


@pytest.fixture(scope="module")
def pool() -> Iterator[Sandbox]:
    found = isolation()
    if not found.works:
        pytest.skip(f"no isolation on this machine: {found.reason}")
    with Sandbox(SMALL, workers=2) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def hasty(pool: Sandbox) -> Iterator[Sandbox]:
    """The same with half the time, for what uses all of it."""
    with Sandbox(replace(pool.limits, seconds=0.5), workers=2) as sandbox:
        yield sandbox


@pytest.fixture(params=["filter and namespaces", "namespaces alone"])
def walls(request, monkeypatch):
    if request.param == "namespaces alone":
        monkeypatch.setattr(command, "filter_program", lambda: None)
    return request.param
