"""The game of keys and locked doors (`prefopt.agents.environments.rooms`) as a world: corpus, tokenizer, base model.

The corpus holds an expert's trajectories on tasks of the train split, as conversations of which the agent's turns
are trained. It is kept small and seen few times, so that the base model still takes wrong turns, and then repeats
what cannot be done or goes to and fro until its turns are used up. Preference training has those mistakes to mend.
Playing, pairs and evaluation are the business of `prefopt.agents` and of the methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefopt.agents.environment import Move, Task
from prefopt.agents.environments.rooms import (
    FOUND,
    LOCKED,
    NO_SUCH,
    RoomsSuite,
    all_actions,
)
from prefopt.agents.formats import Format, find_format, opening
from prefopt.agents.layouts import COLOURS, DIRECTIONS, room_name
from prefopt.records import Message, Preference, Response
from prefopt.values import JsonValue
from prefopt.worlds.text_world import ModelSize, TextWorld
from prefopt.worlds.tokenizer import word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_POSITIONS = 1024
"""Room for the longest task and as many turns of junk."""
_MARK, _OTHER_MARK = "@1", "@2"
"""Stand for a thought, an action or an observation, to see what a format writes around it."""
_THOUGHTS = ("I go to the treasure in", *(f"I need the {colour} key in" for colour in COLOURS))
_ANSWERS = ("You are in", "The treasure is in", FOUND, LOCKED, NO_SUCH)
"""How observations begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomsSettings(ModelSize):
    """What the world is made of. Equal settings make equal worlds."""

    suite: RoomsSuite = field(default_factory=RoomsSuite)
    """The game; `environment_options` of recipes."""
    format: str = "action"
    """How a turn is written. With the same trajectories and steps, bare actions are learnt better than thoughts."""
    corpus_size: int = 3000
    """Trajectories in the corpus, of the first tasks of the train split."""
    epochs: float = 2.0
    """Times that the base model sees each."""

    def __post_init__(self) -> None:
        rules = [
            (not 1 <= self.corpus_size <= self.suite.train_tasks, "corpus_size", f"use 1 to {self.suite.train_tasks}"),
            (self.epochs <= 0, "epochs", "use more than 0"),
        ]  # fmt: skip
        self.refuse("rooms", rules)


class RoomsWorld(TextWorld[RoomsSettings]):
    """Corpus, tokenizer and untrained model of the game."""

    name = "rooms"
    positions = _POSITIONS

    def __init__(self, settings: RoomsSettings | None = None) -> None:
        super().__init__(settings or RoomsSettings())
        self.epochs = self.settings.epochs
        self.suite = self.settings.suite
        self.format: Format = find_format(self.settings.format)

    def facts(self) -> list[JsonValue]:
        """The game belongs to them."""
        *own, edition = super().facts()
        return [*own, self.suite.identity, edition]

    def corpus(self) -> Iterator[Preference]:
        """The training corpus: an expert's trajectory for each of the first `corpus_size` tasks of the train split."""
        for task in self.suite.tasks("train", self.settings.corpus_size):
            yield self.trajectory(task)

    def trajectory(self, task: Task) -> Preference:
        """An expert's trajectory as a record: the opening as its prompt, everything after it as its response."""
        game = self.suite.open()
        moves = game.expert(task)
        start = opening(self.suite, self.format, game.reset(task).observation)
        turns: list[Message] = []
        for move in moves:
            observation = game.step(move.action).observation
            turns += (self.format.write(move), self.format.observe(observation))
        return Preference(task.id, start, (Response(turns=tuple(turns[:-1])),))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per room, action, thought and thing seen, and one for the whole instruction.

        What a format writes before a thought, an action or an observation is one token with the word after it, so
        that a turn is two to four tokens.
        """
        written = self.format
        words = [message.content for message in opening(self.suite, written, "")]
        words += [written.complaint, *self._seen(), *_THOUGHTS, *all_actions()]
        said = written.observe(_MARK)
        before, after = _around(said.content)
        words += [before, after, *(before + word for word in _ANSWERS)]
        before, after = _around(written.write(Move(_MARK)).content)
        words += [before, after, *(before + action for action in all_actions()), *self._thinking()]
        words = [word for word in dict.fromkeys(words) if word]
        return word_tokenizer(words, special=[f"<|{said.role}|>"])

    def _thinking(self) -> list[str]:
        """The pieces of turns with a thought; none where the format leaves thoughts out."""
        written = self.format.write(Move(_OTHER_MARK, _MARK)).content
        if _MARK not in written:
            return []
        before, after = _around(written)
        between, end = _around(after, _OTHER_MARK)
        thoughts = [before, *(before + thought for thought in _THOUGHTS)]
        return [*thoughts, between, *(between + action for action in all_actions()), end]

    def _seen(self) -> list[str]:
        """The pieces of observations."""
        suite = self.suite
        rooms = [f" {room_name(x, y)}." for y in range(suite.height) for x in range(suite.width)]
        passages = ["open", *(f"{colour} door" for colour in COLOURS)]
        sides = [f" {d.capitalize()}: {passage}." for d in DIRECTIONS for passage in passages]
        keys = [f" {said} {c} key." for c in COLOURS for said in ("Here:", "You have the")]
        notes = [f" The {c} key is in" for c in COLOURS]
        notes += [f" It is behind a {c} door." for c in COLOURS]
        return [*_ANSWERS, " You are in", *rooms, *sides, *keys, *notes]


def _around(text: str, mark: str = _MARK) -> tuple[str, str]:
    """What stands before and after the mark."""
    before, _, after = text.partition(mark)
    return before, after
