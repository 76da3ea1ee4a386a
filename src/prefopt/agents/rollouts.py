"""Roll-outs: a model acts in environments, many episodes at a time; and experts show what they do.

At most as many episodes as the farm has room for go on at once, and the next one starts when one ends. In each round
all actions are taken, workers in parallel; then all episodes that need a reply get it in one batch. Replies and
outcomes are journaled: a finished episode costs no model call and no environment in a later run, and one that was in
the middle is played again in a fresh environment only when a new action has to be taken. Where an environment then
answers differently from before (`drift`), the episode starts anew: two courses of events are never mixed.

Failures of environments (exceptions, ended processes, steps that hang) cost the episode one of its attempts and nothing
else; they are never journaled. A reward of None says that nothing is known about what the agent would have got.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from prefopt.agents.demonstration import Show
from prefopt.agents.environment import Outcome, Task
from prefopt.agents.episode import Episode, differ
from prefopt.agents.farm import Farm
from prefopt.agents.formats import REACT, Format, opening
from prefopt.agents.outcomes import Outcomes
from prefopt.agents.plays import Play
from prefopt.agents.trajectory import Trajectory
from prefopt.errors import ConfigError, RecordError
from prefopt.generate.base import Bounded, Completion, Generator, Sampling
from prefopt.generate.journal import Journal, Progress, Series, complete
from prefopt.records import Message


@dataclass(frozen=True, slots=True)
class Rollouts:
    """How agents act; the defaults are those of the published exploration and evaluation."""

    format: Format = REACT
    samples: int = 1
    """Roll-outs of each task."""
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    """Tokens of one reply; one that is longer ends its episode with status `length`."""
    seed: int = 0
    purpose: str = "rollout"
    """What the roll-outs are for; part of every reply's seed and of the journal's keys."""
    example: tuple[Message, ...] = ()
    """A worked task that is shown first, from its first observation to the agent's last turn."""
    acknowledgement: str | None = "OK"
    """The assistant's answer to the instruction; None: instruction and first observation are one message."""
    max_turns: int | None = None
    """Turns of the agent after which an episode ends; None: the task's."""
    attempts: int = 2
    """Times that an episode is tried when its environment fails."""

    def __post_init__(self) -> None:
        for key in ("samples", "max_turns", "attempts"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"rollouts: {key} is {value}; use 1 or more")
        self.sampling()

    def sampling(self) -> Sampling:
        """How replies are drawn."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            purpose=self.purpose,
        )


def roll_out(
    tasks: Sequence[Task],
    generator: Generator,
    farm: Farm,
    settings: Rollouts,
    *,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[Trajectory]:
    """What a model does in each task: tasks x samples, in order, all samples of a task together.

    A reply depends on (seed, purpose, task, turn, sample) and the conversation before it, never on other episodes.

    Args:
        tasks: each with its own id.
        generator: the model.
        farm: where the environments are.
        settings: the format of turns, sampling, limits.
        journal: keeps every reply and every outcome.
        progress: called with (ended episodes, all episodes).

    Raises:
        RecordError: two tasks have the same id.
        MissingExtraError, AgentError: environments cannot be opened.
        StorageError: the journal cannot be written, or no process can be started.
    """
    _require_distinct(tasks)
    episodes = [
        _episode(task, n, farm, settings) for task in tasks for n in range(settings.samples)
    ]
    outcomes = Outcomes(farm.suite, journal)
    replies = _Replies(generator, settings.sampling(), journal)
    waiting, active = deque(episodes), list[Episode]()
    try:
        while waiting or active:
            while waiting and len(active) < farm.capacity:
                episode = waiting.popleft()
                _recall(episode, outcomes, replies)
                if episode.status is None:
                    active.append(episode)
            acting = [episode for episode in active if episode.waits_for_outcome]
            if acting:
                _act(acting, farm, outcomes, settings.attempts)
            elif active:
                replies.ask(active)
            for episode in active:
                _recall(episode, outcomes, replies)
            farm.release({episode.owner for episode in active if episode.status is not None})
            active = [episode for episode in active if episode.status is None]
            _tell(progress, len(episodes) - len(waiting) - len(active), len(episodes))
    finally:
        farm.release({episode.owner for episode in active})
    return [episode.trajectory() for episode in episodes]


def demonstrate(
    tasks: Sequence[Task],
    farm: Farm,
    settings: Rollouts,
    *,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[Trajectory]:
    """What the environment's expert does in each task, in order, really played in the environment.

    A task without expert has status `error` and no turns. Moves after the end of the episode are left out; where they
    end before it does, or the turns are used up, the status is `turns`.

    Args:
        tasks: each with its own id.
        farm: where the environments are.
        settings: the format of turns and limits; what is about models is not used.
        journal: keeps the moves and every outcome.
        progress: called with (ended episodes, all episodes).

    Raises:
        RecordError: two tasks have the same id.
        MissingExtraError: as `roll_out`.
        AgentError: as `roll_out`, or the format cannot express an expert's move.
        StorageError: as `roll_out`.
    """
    _require_distinct(tasks)
    shows = [Show(_episode(task, 0, farm, settings)) for task in tasks]
    outcomes = Outcomes(farm.suite, journal)
    while wanting := [show for show in shows if show.wants_moves(outcomes)]:
        for index, played in farm.play(show.question() for show in wanting):
            wanting[index].take_moves(played, outcomes, settings.attempts)
    while wanting := [show for show in shows if show.wants_outcomes(outcomes)]:
        for index, played in farm.play(show.play() for show in wanting):
            show = wanting[index]
            show.take_outcomes(played, farm, outcomes, settings.attempts)
            _tell(progress, sum(s.episode.status is not None for s in shows), len(shows))
    _tell(progress, len(shows), len(shows))
    return [show.episode.trajectory() for show in shows]


def begin(
    tasks: Sequence[Task], farm: Farm, *, attempts: int = 2, journal: Journal | None = None
) -> list[Outcome | None]:
    """How each task starts, in order; None where the environment has failed every time.

    Args:
        tasks: each with its own id.
        farm: where the environments are.
        attempts: times that a start is tried.
        journal: keeps the outcomes; roll-outs find them there.

    Raises:
        RecordError, MissingExtraError, AgentError, StorageError: as `roll_out`.
    """
    _require_distinct(tasks)
    outcomes = Outcomes(farm.suite, journal)
    found = [outcomes.find(task, 0, ()) for task in tasks]
    for _ in range(attempts):
        missing = [number for number, outcome in enumerate(found) if outcome is None]
        plays = [Play((tasks[n].id, 0), tasks[n], last=True) for n in missing]
        for index, played in farm.play(plays):
            if not played.failure:
                number = missing[index]
                found[number] = played.outcomes[0]
                outcomes.keep(tasks[number], 0, (), played.outcomes[0])
    return found


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _require_distinct(tasks: Sequence[Task]) -> None:
    counts = Counter(task.id for task in tasks)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise RecordError(f"task {twice!r} is given twice; ids must be unique")


def _episode(task: Task, sample: int, farm: Farm, settings: Rollouts) -> Episode:
    opening_of = partial(
        opening,
        farm.suite,
        settings.format,
        example=settings.example,
        acknowledgement=settings.acknowledgement,
    )
    return Episode(task, sample, settings.format, opening_of, settings.max_turns or task.max_turns)


class _Replies:
    """What the model says."""

    def __init__(self, generator: Generator, sampling: Sampling, journal: Journal | None) -> None:
        self._generator, self._sampling, self._journal = generator, sampling, journal
        series = Series(generator.identity, sampling.purpose, sampling.digest())
        self._held = {} if journal is None else journal.series(series)

    def find(self, episode: Episode) -> Completion | None:
        """The next reply, if the journal held it when this began."""
        if not self._held:
            return None
        request = episode.request()
        return self._held.get((request.id, request.sample, request.digest()))

    def ask(self, episodes: Sequence[Episode]) -> None:
        """One more reply for every episode, in one batch; those whose context is full end."""
        requests = [episode.request() for episode in episodes]
        asked = list(zip(episodes, requests, strict=True))
        if isinstance(self._generator, Bounded) and requests:
            rooms = self._generator.room(requests)
            for episode, room in zip(episodes, rooms, strict=True):
                if room < 1:
                    episode.end("context", "the model's context is full")
            asked = [pair for pair in asked if pair[0].status is None]
        written = complete(
            self._generator, [request for _, request in asked], self._sampling, self._journal
        )
        for (episode, _), reply in zip(asked, written, strict=True):
            episode.take_reply(reply)


def _recall(episode: Episode, outcomes: Outcomes, replies: _Replies) -> None:
    """Go on as far as the journal knows."""
    while episode.status is None:
        if episode.waits_for_outcome:
            outcome = outcomes.find(episode.task, episode.sample, episode.actions)
            if outcome is None:
                return
            episode.take_outcome(outcome)
        else:
            reply = replies.find(episode)
            if reply is None:
                return
            episode.take_reply(reply)


def _act(episodes: Sequence[Episode], farm: Farm, outcomes: Outcomes, attempts: int) -> None:
    """One action in every episode, workers in parallel; in a fresh environment, all of them are taken again."""
    plays = [Play(episode.owner, episode.task, tuple(episode.actions)) for episode in episodes]
    drifted: list[Episode] = []
    for index, played in farm.play(plays):
        episode = episodes[index]
        if played.failure:
            episode.fail(played.failure, attempts)
            continue
        known = episode.outcomes[played.first :]
        if differ(known, played.outcomes):
            farm.counts["drift"] += 1
            drifted.append(episode)
            continue
        for outcome in played.outcomes[len(known) :]:
            outcomes.keep(episode.task, episode.sample, episode.actions, outcome)
            episode.take_outcome(outcome)
    farm.release({episode.owner for episode in drifted})
    # No end of the episode: environments are played again only after a failure or a stop, which are few.
    for episode in drifted:
        outcomes.start_anew(episode.task, episode.sample)
        episode.start_anew()
