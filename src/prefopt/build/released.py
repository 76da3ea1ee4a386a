"""Step pairs in the columns of the published data set `xinlai/Math-Step-DPO-10K`: one row per pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prefopt.records import Preference
from prefopt.text.problems import MathProblem
from prefopt.values import JsonValue


def released_rows(
    records: Iterable[Preference], problems: Mapping[str, MathProblem]
) -> Iterator[dict[str, JsonValue]]:
    """The rows of step records (`StepData.steps`), in their order.

    `prompt` is the problem without any wrapper; `initial_reason_steps` is the prefix without what the prompt style
    puts between its wrapper and the solution.
    """
    for record in records:
        problem = problems[str(record.meta["problem"])]
        joined = _join(problem.prefix)
        whole, lost = record.meta.get("full_chosen"), record.meta.get("full_rejected")
        for k, pair in enumerate(record.pairs):
            chosen, rejected = (record.responses[i].text for i in (pair.chosen, pair.rejected))
            # A pair of whole solutions has no parts to keep apart.
            full = str(whole[k]) if isinstance(whole, list) else chosen
            yield {
                "dataset": problem.kind,
                "prompt": problem.question,
                "initial_reason_steps": record.prefix.removeprefix(joined),
                "chosen": chosen,
                "rejected": rejected,
                "full_chosen": full.removeprefix(joined),
                "full_rejected": str(lost or rejected).removeprefix(joined),
                "answer": problem.answer,
            }


def _join(prefix: str) -> str:
    """White space that a prompt style puts before the solution."""
    return prefix[: len(prefix) - len(prefix.lstrip())]
