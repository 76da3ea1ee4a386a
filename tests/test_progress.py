"""Lines of progress where there is no terminal."""

from __future__ import annotations

import pytest

from prefopt.progress import counted


def test_work_that_grows_on_the_way_is_never_more_than_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Roll-outs draw more where places are in doubt: the total is then another one."""
    with counted("roll-outs") as tick:
        for done, total in [(0, 4), (2, 4), (4, 4), (4, 12), (6, 12), (8, 12), (12, 12)]:
            tick(done, total)
    assert capsys.readouterr().err.splitlines() == [
        "roll-outs: 2/4", "roll-outs: 4/4", "roll-outs: 6/12", "roll-outs: 8/12", "roll-outs: 12/12",
    ]  # fmt: skip


def test_the_total_may_shrink(capsys: pytest.CaptureFixture[str]) -> None:
    with counted("tails") as tick:
        for done, total in [(0, 100), (10, 100), (10, 20), (20, 20)]:
            tick(done, total)
    assert capsys.readouterr().err.splitlines()[-1] == "tails: 20/20"
