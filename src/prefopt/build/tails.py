"""New tails of correct solutions, written segment by segment at rising temperatures, and which of them are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

from prefopt.build.cuts import Cut, Tail, Unusable
from prefopt.build.grading import Grade
from prefopt.build.naive import ControlledSettings
from prefopt.errors import JudgeError
from prefopt.generate.base import Bounded, Completion, Generator, Request, Sampling
from prefopt.generate.journal import Journal, complete
from prefopt.progress import counted
from prefopt.text.problems import Problem
from prefopt.text.segments import STOPS, Kind, split_segments

P = TypeVar("P", bound=Problem)

CUT_TAIL = "tails cut at the token limit"
REFUSED_TAIL = "tails refused by the server"
TOO_MANY = "tails of too many steps"
TOO_LONG = "tails with an overlong step"
IDENTICAL = "tails that repeat the correct one"
RIGHT = "tails right"
EMPTY = "tails empty"

_ROUNDS = 4
"""Rounds per allowed segment: blank lines take rounds too, and a server may not count their tokens."""
_SILENT = 8
"""So many tails that all end within their first step, though their models go on for more, cannot be chance."""


@dataclass(slots=True)
class _Draft(Generic[P]):
    """A tail that is being written."""

    cut: Cut[P]
    text: str = ""
    steps: int = 0
    """New segments that are finished."""
    tokens: int = 0
    ended: bool = False
    """The model ended it itself."""
    fault: str = ""
    """Why it goes no further."""

    @property
    def open(self) -> bool:
        return not self.ended and not self.fault

    def take(self, completion: Completion, settings: ControlledSettings) -> None:
        """Go on with what was written; a blank line is no step."""
        self.tokens += completion.tokens
        if completion.finish_reason == "error":
            self.fault = REFUSED_TAIL
            return
        self.text += completion.text
        if completion.finish_reason == "stop" and completion.stopped_by is None:
            self.ended = True
            return
        self.steps += bool(completion.text.strip())
        if completion.finish_reason == "length" or self.tokens >= settings.max_new_tokens:
            self.fault = CUT_TAIL
        elif self.steps >= settings.max_segments:
            self.fault = TOO_MANY
        else:
            self.text += completion.stopped_by or ""


class TailWriter(Generic[P]):
    """Writes and judges one tail per cut: what `find_tails` calls.

    The i-th new segment is drawn at `schedule.at(i)`; with a constant schedule a tail is one completion. The
    randomness of a tail belongs to (seed, problem, cut, attempt, round).
    """

    def __init__(
        self,
        generator: Generator,
        *,
        grade: Grade[P],
        settings: ControlledSettings,
        journal: Journal | None,
    ) -> None:
        self.generator = generator
        self.grade = grade
        self.settings = settings
        self.journal = journal

    def __call__(self, cuts: Sequence[Cut[P]], attempt: int) -> list[Tail[P] | Unusable]:
        """One wrong tail per cut, or why there is none."""
        drafts = [_Draft(cut) for cut in cuts]
        self._write(drafts, attempt)
        readable = [draft for draft in drafts if not self._fault(draft)]
        texts = [(draft.cut.problem, draft.cut.front + draft.text) for draft in readable]
        right = dict(zip(map(id, readable), self.grade(texts), strict=True))
        return [
            Unusable(RIGHT) if right.get(id(draft)) else self._judged(draft, attempt)
            for draft in drafts
        ]

    def _judged(self, draft: _Draft[P], attempt: int) -> Tail[P] | Unusable:
        fault = self._fault(draft)
        return Unusable(fault) if fault else Tail(draft.cut, attempt, draft.text, draft.ended)

    def _fault(self, draft: _Draft[P]) -> str:
        """Why a tail is no negative even if its answer is wrong; empty for one that may be."""
        whole, settings = draft.cut.front + draft.text, self.settings
        if draft.fault and not (draft.fault == CUT_TAIL and settings.count_truncated_as_wrong):
            return draft.fault
        if not draft.text.strip():
            return EMPTY
        if draft.text == draft.cut.source.tail(draft.cut.start):
            return IDENTICAL
        parts = split_segments(whole, _kind(draft.cut)).parts[draft.cut.start :]
        too_long = any(len(part) > settings.max_segment_characters for part in parts)
        return TOO_LONG if too_long else ""

    def _write(self, drafts: Sequence[_Draft[P]], attempt: int) -> None:
        constant = _is_constant(self.settings)
        expected = sum(len(d.cut.source.parts) - d.cut.start for d in drafts)
        with counted(f"writing new tails, attempt {attempt + 1}") as tick:
            meter = _Meter(tick, len(drafts) if constant else expected)
            for number in range(_ROUNDS * self.settings.max_segments):
                for sampling, group in self._groups(drafts, number):
                    self._go_on(group, attempt, sampling, meter)
                if not any(draft.open for draft in drafts):
                    break
            meter.finish()
        for draft in drafts:
            draft.fault = draft.fault or (TOO_MANY if draft.open else "")

    def _go_on(
        self, group: Sequence[_Draft[P]], attempt: int, sampling: Sampling, meter: _Meter
    ) -> None:
        """One more segment for every draft that its model can still read."""
        requests = [
            Request(d.cut.id, attempt, d.cut.problem.prompt, d.cut.front + d.text) for d in group
        ]
        if isinstance(self.generator, Bounded):
            for draft, room in zip(group, self.generator.room(requests), strict=True):
                draft.fault = "" if room > 0 else CUT_TAIL
        asked = [request for d, request in zip(group, requests, strict=True) if d.open]
        drafts = [draft for draft in group if draft.open]
        done = complete(self.generator, asked, sampling, self.journal, progress=meter.during)
        if sampling.stop and any(not draft.text for draft in drafts):
            _require_stops(drafts, done)
        for draft, completion in zip(drafts, done, strict=True):
            draft.take(completion, self.settings)
        meter.after(len(drafts))

    def _groups(
        self, drafts: Sequence[_Draft[P]], number: int
    ) -> Iterator[tuple[Sampling, list[_Draft[P]]]]:
        """The unfinished drafts by how their next segment is drawn, in the order of temperature and kind."""
        settings = self.settings

        def key(draft: _Draft[P]) -> tuple[float, Kind]:
            return settings.schedule.at(draft.steps), _kind(draft.cut)

        ready = sorted((draft for draft in drafts if draft.open), key=key)
        for (temperature, kind), group in groupby(ready, key=key):
            yield (
                Sampling(
                    temperature=temperature,
                    top_p=settings.top_p,
                    max_new_tokens=settings.max_new_tokens,
                    stop=() if _is_constant(settings) else STOPS[kind],
                    needs_stops=not _is_constant(settings),
                    seed=settings.seed,
                    purpose=f"tails/{number}",
                ),
                list(group),
            )


class _Meter:
    """Turns rounds into one bar: steps written of those that the correct tails have, never backwards."""

    def __init__(self, tick: Callable[[int, int], None], total: int) -> None:
        self.tick, self.total = tick, total
        self.before = self.shown = 0

    def during(self, done: int, total: int) -> None:
        del total
        self._show(self.before + done)

    def after(self, written: int) -> None:
        self.before += written

    def finish(self) -> None:
        self._show(self.total)

    def _show(self, done: int) -> None:
        self.shown = max(self.shown, min(done, self.total))
        self.tick(self.shown, self.total)


def _kind(cut: Cut[P]) -> Kind:
    return "markers" if cut.source.kind == "markers" else "lines"


def _is_constant(settings: ControlledSettings) -> bool:
    return settings.schedule.at(0) == settings.schedule.at(settings.max_segments)


def _require_stops(drafts: Sequence[_Draft[P]], done: Sequence[Completion]) -> None:
    """Nothing, unless the generator seems wrong about which stop string ended a text.

    A server that says nothing about it is refused at its first text (`Sampling.needs_stops`); this finds those that
    always say that none did.

    Raises:
        JudgeError: as it seems every tail ended by itself within its first step, and all would be cut short.
    """
    several = [
        completion.stopped_by
        for draft, completion in zip(drafts, done, strict=True)
        if len(draft.cut.source.parts) - draft.cut.start > 1 and completion.finish_reason == "stop"
    ]
    if len(several) >= _SILENT and all(stop is None for stop in several):
        raise JudgeError(
            f"rising temperatures: {len(several)} of {len(several)} tails seem to end in their first step; the "
            "server probably does not say rightly which stop string ended a text (stop_reason or matched_stop); "
            "use a constant temperature schedule, or a local model"
        )
