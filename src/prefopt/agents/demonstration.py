"""An expert's episode: its moves are asked for, then really taken in the environment. See `prefopt.agents.rollouts`."""

from __future__ import annotations

from collections.abc import Sequence

from prefopt.agents.environment import Move, Outcome
from prefopt.agents.episode import Episode, differ
from prefopt.agents.farm import Farm
from prefopt.agents.outcomes import Outcomes
from prefopt.agents.plays import Play, Played
from prefopt.errors import AgentError

NO_EXPERT = "the environment has no expert for this task"
"""Why an episode has no turns where nothing has failed."""


class Show:
    """An episode of an expert."""

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        self.moves: Sequence[Move] | None = None

    def wants_moves(self, outcomes: Outcomes) -> bool:
        """Whether the environment has to be asked what the expert does."""
        if self.episode.status is None and self.moves is None:
            self._set_moves(outcomes.find_moves(self.episode.task))
        return self.episode.status is None and self.moves is None

    def question(self) -> Play:
        """Asks what the expert does."""
        return Play(self.episode.owner, self.episode.task, expert=True, last=True)

    def take_moves(self, played: Played, outcomes: Outcomes, attempts: int) -> None:
        """What the expert does."""
        if played.failure:
            self.episode.fail(played.failure, attempts)
            return
        outcomes.keep_moves(self.episode.task, played.moves)
        self._set_moves(played.moves)

    def _set_moves(self, moves: Sequence[Move] | None) -> None:
        if moves is None:
            return
        task, form = self.episode.task, self.episode.format
        if not moves:
            self.episode.end("error", NO_EXPERT)
        wrong = next((m for m in moves if form.read(form.write(m).content) != m.action), None)
        if wrong is not None:
            raise AgentError(
                f"task {task.id!r}: the expert's action {wrong.action!r} is not read again from a turn in the format "
                f"{form.name}; choose another format"
            )
        self.moves = moves[: self.episode.max_turns]

    @property
    def actions(self) -> tuple[str, ...]:
        """What the expert does, as far as there are turns."""
        return tuple(move.action for move in self.moves or ())

    def play(self) -> Play:
        """Takes the moves."""
        return Play(self.episode.owner, self.episode.task, self.actions, last=True)

    def wants_outcomes(self, outcomes: Outcomes) -> bool:
        """Whether the moves still have to be taken; what the journal knows is only shown."""
        if self.episode.status is not None:
            return False
        known = outcomes.course(self.episode.task, self.episode.sample, self.actions)
        if len(known) <= len(self.actions) and not (known and known[-1].done):
            return True
        self._enact(known)
        return False

    def take_outcomes(self, played: Played, farm: Farm, outcomes: Outcomes, attempts: int) -> None:
        """What the moves have led to."""
        episode = self.episode
        if played.failure:
            episode.fail(played.failure, attempts)
            return
        known = outcomes.course(episode.task, episode.sample, self.actions)
        if differ(known, played.outcomes):
            # The moves do not depend on what is seen: this course of events is as good as the one before.
            farm.counts["drift"] += 1
            outcomes.start_anew(episode.task, episode.sample)
        for number, outcome in enumerate(played.outcomes):
            outcomes.keep(episode.task, episode.sample, self.actions[:number], outcome)
        self._enact(played.outcomes)

    def _enact(self, course: Sequence[Outcome]) -> None:
        """Write down what has happened."""
        episode = self.episode
        for number, outcome in enumerate(course):
            if number:
                move = (self.moves or ())[number - 1]
                episode.take_turn(episode.format.write(move), move.action)
            episode.take_outcome(outcome)
        if episode.status is None:
            episode.end("turns", "the expert's moves end before the episode does")
