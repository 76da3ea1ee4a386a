"""The table of agents' evaluations: one line for each run and split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prefopt.report.folder import JsonObject, Run, number
from prefopt.report.numerals import MISSING, count, decimal, interval, percent

HEADER = (
    "run", "environment", "split", "average reward", "95% interval", "solved", "95% interval", "turns", "no reward",
)  # fmt: skip


def agent_rows(runs: Sequence[Run]) -> list[list[str]]:
    """The cells under `HEADER`; none where no run was evaluated as an agent. What is missing is a dash."""
    return [[run.name, *cells] for run in runs for cells in _cells(run.agents)]


def _cells(facts: JsonObject) -> Iterator[list[str]]:
    splits = facts.get("splits")
    for split, found in splits.items() if isinstance(splits, dict) else ():
        if isinstance(found, dict):
            reward, solved = _object(found, "reward"), _object(found, "success")
            yield [
                str(facts.get("environment") or MISSING),
                split,
                decimal(number(reward, "value")),
                interval(number(reward, "low"), number(reward, "high"), proportion=False),
                f"{percent(number(solved, 'value'))} of {count(number(found, 'tasks'))}",
                interval(number(solved, "low"), number(solved, "high"), proportion=True),
                decimal(number(found, "steps")),
                count(number(found, "failures")),
            ]


def _object(facts: JsonObject, key: str) -> JsonObject:
    value = facts.get(key)
    return value if isinstance(value, dict) else {}
