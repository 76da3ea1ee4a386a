"""What a policy thinks of held-out solutions whose error is known exactly: credit, margins, the correct prefix."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tasks import Task, Writing

from prefopt.analysis.credit import credit_numbers, token_credit
from prefopt.evals.cells import Row
from prefopt.generate.schedule import constant
from prefopt.models.likelihood import response_logps
from prefopt.models.load import LoadedModel
from prefopt.records import Pair, Preference, Response
from prefopt.text.blocks import END_OF_BLOCK

SAMPLES = 2
"""Of the base model for each problem, at temperature 1."""
PROBLEMS = 2
"""Problems for each probe that is wanted: about a third of the samples are wrong."""


def measure_probes(
    task: Task[Any],
    policy: LoadedModel,
    reference: LoadedModel,
    problems: Sequence[Any],
    key: Row,
) -> Row:
    """AUROC and step rank of the known errors, margin of right over wrong solutions, change of the correct prefix.

    The margin is ``beta`` times the difference of log-ratios of the oracle's solution and the wrong one; the prefix
    number is the change of the mean log-probability per token of what precedes the first error. Both in nats. The base
    model itself has no credit (all rewards are 0) and no changes.
    """
    records = probe_records(task, reference, problems, key)
    tokenizer = reference.tokenizer
    found: Row = {"probes_found": len(records)}
    if policy is reference:
        return found
    credit = token_credit(
        policy.model, reference.model, tokenizer, records, beta=key["beta"], which="rejected"
    )
    numbers = credit_numbers(credit, resamples=100)
    after, before = (response_logps(m.model, tokenizer, records) for m in (policy, reference))
    change = [
        [a.total - b.total for a, b in zip(new, old, strict=True)]
        for new, old in zip(after, before, strict=True)
    ]
    prefixes = [record for record in map(correct_prefix, records) if record is not None]
    new, old = (response_logps(m.model, tokenizer, prefixes) for m in (policy, reference))
    return {
        **found,
        "auroc": numbers.auroc.value if numbers.auroc else None,
        "auroc_pooled": numbers.auroc_pooled,
        "lowest": numbers.mean_lowest.value if numbers.mean_lowest else None,
        "random_lowest": numbers.random_lowest,
        "rank": numbers.mean_rank.value if numbers.mean_rank else None,
        "random_rank": numbers.random_rank,
        "margin": statistics.fmean(key["beta"] * (c[0] - c[1]) for c in change),
        "ranked_rightly": statistics.fmean(c[0] > c[1] for c in change),
        "prefix": statistics.fmean(a[0].mean - b[0].mean for a, b in zip(new, old, strict=True)),
    }


def probe_records(
    task: Task[Any], reference: LoadedModel, problems: Sequence[Any], key: Row
) -> list[Preference]:
    """The oracle's solution against a wrong one by the base model, with the error's characters in `meta`."""
    writings = [
        Writing(problem, sample=sample)
        for sample in range(SAMPLES)
        for problem in problems[: PROBLEMS * key["probes"]]
    ]
    done = task.write(
        writings,
        task.generator(reference),
        constant(1.0),
        purpose="probes",
        seed=key["seed"],
    )
    found: list[Preference] = []
    for writing, written in zip(writings, done, strict=True):
        if written.correct or not written.readable or written.span is None:
            continue
        prompt = task.prompt(writing.problem)
        found.append(
            Preference(
                id=f"{prompt.id}/{writing.sample}",
                prompt=prompt.prompt,
                responses=(Response(task.solution(writing.problem)), Response(written.text)),
                pairs=(Pair(0, 1),),
                meta={"error_span": list(written.span)},
            )
        )
        if len(found) == key["probes"]:
            break
    return found


def correct_prefix(record: Preference) -> Preference | None:
    """What precedes the first wrong line or block of a probe as a response; None where nothing does."""
    text, span = record.responses[1].text, record.meta["error_span"]
    if not (isinstance(span, list) and isinstance(span[0], int)):
        raise TypeError(f"{record.id}: error_span is {span!r}; give [start, end)")
    before = text[: span[0]]
    ends = [before.rfind(mark) + len(mark) for mark in ("\n", END_OF_BLOCK) if mark in before]
    if not ends:
        return None
    return Preference(record.id, record.prompt, (Response(text[: max(ends)], ends=False),))
