"""Short film reviews with a known real-valued reward: how positive they are.

A prompt names a kind of film and two or three aspects, ``Review this comedy: plot, acting.``, and a review is a
sentence about the film and one about each aspect, ``This comedy is good. The plot is not very dull.`` The corpus
holds as much praise as blame, and strays from the prompt now and then, so a model trained on it spreads over the
rewards and can be more or less faithful. Texts, tokenizer and untrained model are made here; training it is the
business of the methods.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple

from prefopt.errors import ConfigError
from prefopt.records import Message, Preference, Response
from prefopt.worlds.base import Split, belongs_to
from prefopt.worlds.text_world import ModelSize, TextWorld
from prefopt.worlds.tokenizer import word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KINDS = ("comedy", "drama", "thriller", "western", "romance", "musical", "documentary", "fantasy")
ASPECTS = (
    *("plot", "acting", "music", "script", "pacing"),
    *("ending", "camera", "dialogue", "humour", "setting"),
)
ADJECTIVES: Mapping[str, float] = {
    "brilliant": 2.6, "superb": 2.4, "wonderful": 2.2, "great": 1.8, "lovely": 1.6, "good": 1.4,
    "nice": 1.1, "pleasant": 0.9, "solid": 0.8, "decent": 0.6, "watchable": 0.4, "fine": 0.3,
    "uneven": -0.3, "bland": -0.4, "flat": -0.6, "weak": -0.8, "clumsy": -0.9, "dull": -1.1,
    "bad": -1.4, "tedious": -1.6, "poor": -1.8, "terrible": -2.2, "dreadful": -2.4, "awful": -2.6,
}  # fmt: skip
"""Sentiment of an adjective on its own."""
INTENSIFIERS: Mapping[str, float] = {"slightly": 0.5, "rather": 0.75, "very": 1.25, "truly": 1.5}
"""What a preceding intensifier multiplies it with."""

_PRAISE = tuple(word for word, grade in ADJECTIVES.items() if grade > 0)
_BLAME = tuple(word for word, grade in ADJECTIVES.items() if grade < 0)
_PHRASE = (
    rf"(?P<negation>not )?(?:(?P<intensifier>{'|'.join(INTENSIFIERS)}) )?"
    rf"(?P<adjective>{'|'.join(ADJECTIVES)})"
)
_CLAUSE = re.compile(rf"\b{_PHRASE}\b")
_OPENING = re.compile(rf"This ({'|'.join(KINDS)}) is {_PHRASE}\.")
_ASPECT = "|".join(ASPECTS)
_REMARK = re.compile(rf"(?:The ({_ASPECT}) is|I find the ({_ASPECT})) {_PHRASE}\.")
_BETWEEN_SENTENCES = re.compile(r"(?<=\.) ")


class ReviewPrompt(NamedTuple):
    """A film to review."""

    id: str
    prompt: tuple[Message, ...]
    answer: str
    """A favourable review of exactly what is asked for: the reference of BLEU and ROUGE."""
    kind: str
    aspects: tuple[str, ...]
    """In the order asked for."""


class Content(NamedTuple):
    """What a grammatical review is about."""

    kind: str
    aspects: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewSettings(ModelSize):
    """What the world is made of. Equal settings make equal worlds."""

    sharpness: float = 0.5
    """Slope of the sentiment: the probability of a positive review is logistic(sharpness * sum of its clauses)."""
    negation_rate: float = 0.15
    """How often the corpus says `not` the opposite instead of what is meant."""
    intensifier_rate: float = 0.5
    """How often an adjective gets an intensifier."""
    stray_rate: float = 0.15
    """How often the corpus replaces an aspect by one that the prompt does not name."""
    corpus_size: int = 9600
    """Reviews in the corpus."""
    hidden_size: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        rules = [
            (not 0 < self.sharpness < math.inf, "sharpness", "use more than 0"),
            (not 0 <= self.negation_rate <= 1, "negation_rate", "use 0 to 1"),
            (not 0 <= self.intensifier_rate <= 1, "intensifier_rate", "use 0 to 1"),
            (not 0 <= self.stray_rate <= 1, "stray_rate", "use 0 to 1"),
            (self.corpus_size < 1, "corpus_size", "use 1 or more"),
        ]
        self.refuse("reviews", rules)


class ReviewWorld(TextWorld[ReviewSettings]):
    """Prompts, reward, references, corpus, tokenizer and untrained model of one world."""

    name = "reviews"
    positions = 128
    epochs = 2.0

    def __init__(self, settings: ReviewSettings | None = None) -> None:
        super().__init__(settings or ReviewSettings())

    def prompts(self, split: Split, count: int, *, seed: int = 0) -> list[ReviewPrompt]:
        """The first `count` prompts of a split in the order of `seed`; a larger count continues the same list.

        A prompt belongs to one split only, so splits share none whatever counts and seeds are.

        Raises:
            ConfigError: there are not that many.
        """
        films = [film for film in _films() if belongs_to(_question(*film), split)]
        if len(films) < count:
            raise ConfigError(
                f"reviews world: the {split} split has {len(films)} prompts, {count} are wanted; ask for fewer, "
                "or draw more samples of each"
            )
        self._random(f"{split}/{seed}").shuffle(films)
        return [
            self._prompt(f"{split}-{seed}-{k}", *film) for k, film in enumerate(films[:count], 1)
        ]

    def sentiment(self, text: str) -> float:
        """The probability that a text is positive: ``logistic(sharpness * sum of its clauses)``, in (0, 1).

        A clause is an adjective with the intensifier and the `not` before it, wherever it stands: its grade,
        times the intensifier's factor, with the sign reversed after `not`. A text without adjectives has 1/2.
        """
        total = math.fsum(_grade(clause) for clause in _CLAUSE.finditer(text))
        x = self.settings.sharpness * total
        # The exponent is never positive, so however long the text is, nothing overflows.
        return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

    def score(self, text: str) -> float:
        """The reward as in the sentiment task of ODPO: ``1 + p`` where p > 1/2, else p; p is `sentiment`.

        That is 1 + p(positive) for what a classifier takes to be positive and 1 - p(negative) for the rest, in
        (0, 1/2] or (1.5, 2): verdict and confidence in one number. Amini et al. 2024, arXiv 2402.10571.
        """
        p = self.sentiment(text)
        return 1 + p if p > 0.5 else p

    def content(self, text: str) -> Content | None:
        """The kind of film and the aspects that a review is about, in its order; None: it is ungrammatical."""
        first, *others = _BETWEEN_SENTENCES.split(text)
        opening = _OPENING.fullmatch(first)
        remarks = [match for match in map(_REMARK.fullmatch, others) if match]
        if opening is None or len(remarks) < len(others):
            return None
        return Content(opening[1], tuple(match[1] or match[2] for match in remarks))

    def is_faithful(self, prompt: ReviewPrompt, text: str) -> bool:
        """Whether a review is about the kind and the aspects asked for, in their order, and nothing else."""
        return self.content(text) == Content(prompt.kind, prompt.aspects)

    def review(self, kind: str, aspects: Sequence[str], rng: random.Random, *, mood: float) -> str:
        """A random review of these aspects; a clause is praise with probability `mood`, else blame."""
        sentences = [f"This {kind} is {self._phrase(rng, mood)}."]
        for aspect in aspects:
            phrase = self._phrase(rng, mood)
            plain = rng.random() < 0.7
            sentences.append(
                f"The {aspect} is {phrase}." if plain else f"I find the {aspect} {phrase}."
            )
        return " ".join(sentences)

    def corpus(self) -> Iterator[Preference]:
        """The training corpus: `corpus_size` reviews of the prompts of the train split, all used equally often."""
        rng = self._random("corpus")
        films = [film for film in _films() if belongs_to(_question(*film), "train")]
        rng.shuffle(films)
        for k in range(self.settings.corpus_size):
            kind, aspects = films[k % len(films)]
            # Each review has a mood of its own: drawn once for all, sums of clauses would pile up around zero.
            text = self.review(kind, self._stray(aspects, rng), rng, mood=rng.random())
            question = (Message("user", _question(kind, aspects)),)
            yield Preference(f"corpus-{k + 1}", question, (Response(text),))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per word, with the space before it, and per punctuation mark."""
        inner = [*KINDS, *ASPECTS, *ADJECTIVES, *INTENSIFIERS]
        inner += ["is", "not", "The", "I", "find", "the", "this"]
        return word_tokenizer(["This", "Review", ".", ":", ",", *(f" {word}" for word in inner)])

    def _prompt(self, id: str, kind: str, aspects: tuple[str, ...]) -> ReviewPrompt:
        question = _question(kind, aspects)
        rng = self._random(f"reference/{question}")
        answer = " ".join(
            f"{opening} is {rng.choice(['very ', 'truly ', ''])}{rng.choice(_PRAISE[:4])}."
            for opening in (f"This {kind}", *(f"The {aspect}" for aspect in aspects))
        )
        return ReviewPrompt(id, (Message("user", question),), answer, kind, aspects)

    def _phrase(self, rng: random.Random, mood: float) -> str:
        praises = rng.random() < mood
        negated = rng.random() < self.settings.negation_rate
        intensified = rng.random() < self.settings.intensifier_rate
        intensifier = rng.choice(tuple(INTENSIFIERS)) + " " if intensified else ""
        adjective = rng.choice(_PRAISE if praises != negated else _BLAME)
        return f"{'not ' if negated else ''}{intensifier}{adjective}"

    def _stray(self, aspects: tuple[str, ...], rng: random.Random) -> list[str]:
        """The aspects as the corpus covers them: each may be replaced by one that is not asked for."""
        covered = list(aspects)
        for i in range(len(covered)):
            if rng.random() < self.settings.stray_rate:
                covered[i] = rng.choice([a for a in ASPECTS if a not in (*aspects, *covered)])
        return covered

    def _random(self, purpose: str) -> random.Random:
        return random.Random(f"reviews/{self.settings.seed}/{purpose}")


def _films() -> list[tuple[str, tuple[str, ...]]]:
    """Every kind with every ordered choice of two or three aspects."""
    return [(kind, a) for kind in KINDS for n in (2, 3) for a in permutations(ASPECTS, n)]


def _question(kind: str, aspects: Sequence[str]) -> str:
    return f"Review this {kind}: {', '.join(aspects)}."


def _grade(clause: re.Match[str]) -> float:
    grade = ADJECTIVES[clause["adjective"]] * INTENSIFIERS.get(clause["intensifier"] or "", 1.0)
    return -grade if clause["negation"] else grade
