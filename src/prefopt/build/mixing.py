"""What becomes of solutions and tails in Step-Controlled DPO: pairs, limits per question, one data set.

The same for text and for code-integrated solutions. Nothing is sampled or graded here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple, TypeVar

from prefopt.build.cuts import ControlSettings, Solution, Solutions, Tail
from prefopt.build.held_out import is_held_out, split_held_out
from prefopt.records import Message, Pair, Preference, Response
from prefopt.text.problems import Problem
from prefopt.values import JsonValue

P = TypeVar("P", bound=Problem)

Prompt = str | tuple[Message, ...]


class ControlledData(NamedTuple):
    """What the pipelines made; all but `held_out` is of the questions to train on."""

    naive: list[Preference]
    """Pairs of whole solutions."""
    controlled: list[Preference]
    """Pairs of tails after a shared correct front."""
    data_equal: list[Preference]
    """As many pairs as the training set, of sampled whole solutions only: the baseline of equal size. Fewer where the
    samples do not give so many; `counts` says how many are missing."""
    counts: Counter[str]
    """How many there were at each stage, and what became of the rest."""
    held_out: Sequence[Preference] = ()
    """What would be in the training set, of the questions that are held out."""
    add_naive: bool = True
    """Whether naive pairs are in the training set."""

    def mixed(self) -> list[Preference]:
        """The training set: all pairs count the same, so the two kinds weigh what their numbers are (eq. 5)."""
        return [*(self.naive if self.add_naive else ()), *self.controlled]


def limit_tails(
    tails: Sequence[Tail[P]], settings: ControlSettings, counts: Counter[str]
) -> list[Tail[P]]:
    """The tails within the limit, question by question, those of the fewest attempts first, then earlier cuts.

    With the published limit (`compat_limit`) the number left is one for the whole data set: it is counted down with
    every pair and stops a question only at the moment it reaches 0.
    """
    groups: dict[str, list[Tail[P]]] = {}
    for tail in sorted(tails, key=lambda tail: tail.attempt):
        groups.setdefault(tail.cut.problem.id, []).append(tail)
    kept: list[Tail[P]] = []
    left = settings.per_question
    for group in groups.values():
        if not settings.compat_limit:
            kept.extend(group[: settings.limit])
            continue
        for tail in group:
            kept.append(tail)
            left = None if left is None else left - 1
            if left == 0:
                break
    counts["tails beyond the limit per question"] = len(tails) - len(kept)
    return kept


def combine(
    problems: Sequence[P],
    solutions: Mapping[str, Solutions],
    tails: Sequence[Tail[P]],
    settings: ControlSettings,
    counts: Counter[str],
    *,
    prompt_of: Callable[[P], Prompt],
) -> ControlledData:
    """The data sets of a build: naive pairs, controlled pairs within the limit, and the baseline of equal size.

    Controlled pairs are in the order of the problems; which of them a limit keeps is decided before. The pairs of
    questions that are held out are kept apart before the size of the baseline is known.
    """
    naive = [
        _naive_record(p, prompt_of(p), "naive", right, wrong)
        for p in problems
        for right, wrong in product(
            solutions[p.id].right[: settings.naive_correct],
            solutions[p.id].wrong[: settings.naive_wrong],
        )
    ]
    counts["naive pairs"] = len(naive)
    hot = [tail for tail in tails if not settings.limits(tail.cut)]
    kept = limit_tails([t for t in tails if settings.limits(t.cut)], settings, counts)
    place = {p.id: i for i, p in enumerate(problems)}
    kept.sort(key=lambda tail: (place[tail.cut.problem.id], tail.cut.start))
    naive += [_tail_record(t, prompt_of(t.cut.problem), "naive") for t in hot]
    counts["naive pairs from new whole solutions"] = len(hot)
    controlled = [_tail_record(t, prompt_of(t.cut.problem), "controlled") for t in kept]
    counts["controlled pairs"] = len(controlled)
    naive, naive_out = split_held_out(naive, problems, settings.held_out)
    controlled, controlled_out = split_held_out(controlled, problems, settings.held_out)
    held_out = [*(naive_out if settings.add_naive else ()), *controlled_out]
    data = ControlledData(naive, controlled, [], counts, held_out, settings.add_naive)
    wanted = len(data.mixed())
    counts["pairs held out"] = len(held_out)
    counts["pairs to train on"] = wanted
    trained = [p for p in problems if not is_held_out(p, settings.held_out)]
    data.data_equal.extend(
        _naive_record(p, prompt_of(p), "data_equal", right, wrong)
        for p, right, wrong in _first_combinations(trained, solutions, wanted)
    )
    counts["data-equal pairs"] = len(data.data_equal)
    counts["data-equal pairs missing"] = wanted - len(data.data_equal)
    return data


def _first_combinations(
    problems: Sequence[P], solutions: Mapping[str, Solutions], wanted: int
) -> Iterator[tuple[P, Solution, Solution]]:
    """Correct and wrong solutions: every problem's first pair, then every problem's second, ... until there are enough.

    A problem's pairs come in the order of the sum of their places, so that later solutions are used before earlier
    ones are repeated often.
    """
    queues = [
        (p, sorted(product(range(len(right)), range(len(wrong))), key=lambda at: (sum(at), at)))
        for p in problems
        for right, wrong in [solutions[p.id]]
    ]
    given = 0
    for rank in range(max((len(queue) for _, queue in queues), default=0)):
        for problem, queue in queues:
            if given < wanted and rank < len(queue):
                i, j = queue[rank]
                given += 1
                yield problem, solutions[problem.id].right[i], solutions[problem.id].wrong[j]


def _naive_record(
    problem: Problem, prompt: Prompt, kind: str, right: Solution, wrong: Solution
) -> Preference:
    """A pair of whole solutions after their opening."""
    return Preference(
        id=f"{problem.id}/{kind}/{right.sample}-{wrong.sample}",
        prompt=prompt,
        responses=(Response(right.tail(0)), Response(wrong.tail(0), ends=wrong.ends)),
        pairs=(Pair(chosen=0, rejected=1),),
        prefix=right.opening,
        meta={"answer": problem.answer, "problem": problem.id, "kind": kind, "start_steps": 0},
    )


def _tail_record(tail: Tail[P], prompt: Prompt, kind: str) -> Preference:
    """A pair of tails; `start_steps` parts precede them, so the first step of both has number `start_steps` + 1."""
    cut = tail.cut
    meta: dict[str, JsonValue] = {
        "answer": cut.problem.answer,
        "problem": cut.problem.id,
        "kind": kind,
        "start_steps": cut.start,
        "parts": cut.source.kind,
        "attempt": tail.attempt,
    }
    return Preference(
        id=f"{cut.problem.id}/cut/{cut.start}",
        prompt=prompt,
        responses=(Response(cut.source.tail(cut.start)), Response(tail.text, ends=tail.ends)),
        pairs=(Pair(chosen=0, rejected=1),),
        prefix=cut.front,
        meta=meta,
    )
