"""Solving problems with code: a model writes blocks, an interpreter answers its code, until the message ends.

As many attempts as there are interpreters go in step: every unfinished one gets its next block in one batch, then all
new code runs; the next group starts when all of them have ended. So each keeps its interpreter, and none has to be
started again for a solution's next block, which takes a hundred times as long as a block. Blocks and executions are
journaled, so a killed run goes on where it was: nothing is sampled or run twice, results stay as they were. The format
is in `prefopt.text.blocks`, running code in `prefopt.agents.executions`; nothing is graded here.

Departures from the published code of MathCoder and Step-Controlled DPO: an attempt that fails (server, sandbox, a
block that is no block, no room left) has a status of its own and is never a wrong solution; interpreter output that
the model writes itself ends the attempt; a block cut at its token limit is not run and not continued; code runs
isolated (`prefopt.sandbox`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from prefopt.agents.executions import Execution, Executions, Job
from prefopt.errors import ConfigError, RecordError
from prefopt.generate.base import Bounded, Completion, Generator, Request, Sampling
from prefopt.generate.journal import Journal, Progress, complete
from prefopt.generate.schedule import Rising, constant
from prefopt.sandbox.sandbox import Sandbox
from prefopt.text.blocks import (
    END_OF_BLOCK,
    END_OF_MESSAGE,
    OPENINGS,
    SPECIAL_TOKENS,
    Block,
    conversation,
    serialise,
)

ALIVE = 32
"""Interpreters that a pipeline keeps alive by default: idle ones cost memory and no time, replays cost time."""

Status = Literal["finished", "calls", "length", "error"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One solution to be written: sample number `sample` for problem `id`."""

    id: str
    sample: int
    question: str
    system: str = ""
    front: tuple[Block, ...] = ()
    """Blocks that are kept; the model goes on after them, with the state that their code leaves."""


class Solved(NamedTuple):
    """What became of an attempt."""

    id: str
    sample: int
    blocks: tuple[Block, ...]
    """The whole solution, front included."""
    front: int
    """How many of the blocks were given."""
    status: Status
    """`finished`: the model ended its message. `calls`: it had not when `max_calls` were used up. `length`: a block
    was cut at its token limit, or the model's context is full. `error`: `reason` says what went wrong."""
    calls: int
    """Blocks the model was asked for."""
    reason: str = ""
    """Why it is not finished; empty when it is."""
    drift: int = 0
    """Code blocks that gave another output when their state had to be restored: they depend on time or chance."""

    @property
    def tail(self) -> tuple[Block, ...]:
        """The blocks after the front."""
        return self.blocks[self.front :]


_ONE = constant(1.0)


@dataclass(frozen=True, slots=True)
class Solving:
    """How attempts are sampled; the defaults are those of the published sampling of solutions."""

    max_calls: int = 64
    """Blocks a model may write for one attempt; execution blocks do not count."""
    max_new_tokens: int = 512
    """Tokens of one block."""
    schedule: Rising = _ONE
    """Temperature of the i-th newly written block; `constant(0.0)` is greedy."""
    top_p: float = 1.0
    seed: int = 0
    purpose: str = "solve"
    """What the attempts are for; part of every sample's seed and of the journal's keys."""

    def __post_init__(self) -> None:
        if self.max_calls < 1:
            raise ConfigError(f"solving: max_calls is {self.max_calls}; use 1 or more")

    def sampling(self, call: int) -> Sampling:
        """How the block number `call` of every attempt is sampled, from 0."""
        return Sampling(
            temperature=self.schedule.at(call),
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            stop=(END_OF_BLOCK, END_OF_MESSAGE),
            seed=self.seed,
            purpose=f"{self.purpose}, block {call}",
            keep_special=True,
            needs_stops=True,
        )


def request_of(attempt: Attempt, blocks: tuple[Block, ...]) -> Request:
    """The request for the block after `blocks`: the conversation, continued by what is written."""
    prompt = conversation(attempt.system, attempt.question)
    return Request(attempt.id, attempt.sample, prompt, serialise(blocks))


@dataclass(slots=True)
class _State:
    """An attempt on its way."""

    attempt: Attempt
    blocks: list[Block]
    calls: int = 0
    status: Status | None = None
    reason: str = ""
    drift: int = 0

    @property
    def owner(self) -> tuple[str, int]:
        return self.attempt.id, self.attempt.sample

    def end(self, status: Status, reason: str = "") -> None:
        self.status, self.reason = status, reason


def solve(
    attempts: Sequence[Attempt],
    generator: Generator,
    sandbox: Sandbox,
    settings: Solving,
    *,
    journal: Journal | None = None,
    progress: Progress | None = None,
    prompt_of: Callable[[Attempt, tuple[Block, ...]], Request] = request_of,
) -> list[Solved]:
    """What became of each attempt, in order.

    A sample depends on (seed, purpose, id, sample) and the blocks before it, never on the other attempts. Solutions
    whose code is the same share its results.

    Args:
        attempts: each with its own (id, sample).
        generator: the model; it has to report which stop string ended a text (`Completion.stopped_by`).
        sandbox: where code runs; not used by anything else meanwhile.
        settings: sampling and limits.
        journal: keeps every block and every execution.
        progress: called with (ended attempts, all attempts) after each round.
        prompt_of: the request for an attempt's next block; keeps the attempt's id and sample.

    Raises:
        RecordError: two attempts have the same id and sample, or a text holds a marker of the format.
        SandboxError: an interpreter cannot be started.
    """
    _require_distinct(attempts)
    states = [_State(attempt, list(attempt.front)) for attempt in attempts]
    tell = progress or _nobody
    with Executions(sandbox, journal) as executions:
        for start in range(0, len(states), sandbox.workers):
            group = states[start : start + sandbox.workers]
            _answer_code(group, executions)
            for call in range(settings.max_calls):
                going = [state for state in group if state.status is None]
                tell(start + len(group) - len(going), len(states))
                if not going:
                    break
                _write_blocks(going, generator, settings.sampling(call), journal, prompt_of)
                _answer_code(going, executions)
            for state in group:
                if state.status is None:
                    state.end("calls", f"no end within {settings.max_calls} blocks")
    tell(len(states), len(states))
    return [_solved(state) for state in states]


def _nobody(done: int, total: int) -> None:
    """Hear of progress and do nothing."""


def _require_distinct(attempts: Sequence[Attempt]) -> None:
    counts = Counter((attempt.id, attempt.sample) for attempt in attempts)
    twice = next((key for key, count in counts.items() if count > 1), None)
    if twice is not None:
        raise RecordError(
            f"record {twice[0]!r}: sample {twice[1]} is attempted twice; ids must be unique"
        )


def _solved(state: _State) -> Solved:
    attempt = state.attempt
    return Solved(
        id=attempt.id,
        sample=attempt.sample,
        blocks=tuple(state.blocks),
        front=len(attempt.front),
        status=state.status or "error",
        calls=state.calls,
        reason=state.reason,
        drift=state.drift,
    )


def _write_blocks(
    going: Sequence[_State],
    generator: Generator,
    sampling: Sampling,
    journal: Journal | None,
    prompt_of: Callable[[Attempt, tuple[Block, ...]], Request],
) -> None:
    """One more piece of text for every attempt."""
    requests = [prompt_of(state.attempt, tuple(state.blocks)) for state in going]
    asked = list(zip(going, requests, strict=True))
    if isinstance(generator, Bounded):
        full = [room < 1 for room in generator.room(requests)]
        for (state, _), is_full in zip(asked, full, strict=True):
            if is_full:
                state.end("length", "the model's context is full")
        asked = [pair for pair, is_full in zip(asked, full, strict=True) if not is_full]
    written = complete(generator, [request for _, request in asked], sampling, journal)
    for (state, _), completion in zip(asked, written, strict=True):
        state.calls += 1
        _take(state, completion, sampling.max_new_tokens)


def _take(state: _State, completion: Completion, max_new_tokens: int) -> None:
    """Add a completion to the solution as a block, and settle whether the attempt goes on."""
    text, stopped = completion.text, completion.stopped_by
    if completion.finish_reason == "error":
        state.end("error", f"the server refused: {text}")
        return
    if not text and stopped != END_OF_BLOCK and completion.finish_reason == "stop":
        if state.blocks:
            state.end("finished")
        else:
            state.end("error", "nothing was written")
        return
    mark = next((mark for mark in OPENINGS if text.startswith(mark)), "")
    fault = _fault(text, mark)
    if fault:
        # Kept as it was written, in a text block, for whoever looks at what went wrong.
        state.blocks.append(Block("text", text))
        state.end("error", fault)
        return
    state.blocks.append(Block(OPENINGS[mark], text[len(mark) :]))
    if completion.finish_reason == "length":
        is_full = 0 < completion.tokens < max_new_tokens
        where = "end of the model's context" if is_full else "token limit"
        state.end("length", f"a block was cut at the {where}")
    elif stopped == END_OF_MESSAGE and mark == "<|text|>":
        state.end("finished")
    elif stopped != END_OF_BLOCK:
        state.end(
            "error",
            f"the text ended inside a {OPENINGS[mark]} block (or the server does not report stop strings)",
        )


def _fault(text: str, mark: str) -> str:
    """What is wrong with a piece of text that should be a block; empty when it is one."""
    if mark == "<|execution|>":
        return "the model wrote interpreter output itself"
    if not mark:
        return f"no block: the text starts with {text[:20]!r}"
    inside = next((marker for marker in SPECIAL_TOKENS if marker in text[len(mark) :]), None)
    return "" if inside is None else f"{inside} inside a {OPENINGS[mark]} block"


def _answer_code(states: Sequence[_State], executions: Executions) -> None:
    """Add an execution block to every solution that waits for one."""
    executions.keep_only({state.owner for state in states if state.status is None})
    waiting = [
        state for state in states
        if state.status is None and state.blocks and state.blocks[-1].kind == "code"
    ]  # fmt: skip
    results = executions.run([Job(state.owner, tuple(state.blocks)) for state in waiting])
    for state, result in zip(waiting, results, strict=True):
        _answer(state, result)


def _answer(state: _State, result: Execution) -> None:
    state.drift = max(state.drift, result.drift)
    if result.reason:
        state.end("error", result.reason)
    else:
        state.blocks.append(Block("execution", result.output))
