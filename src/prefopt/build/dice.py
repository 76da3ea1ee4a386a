"""The section `build` of DICE: how a round's pairs are made from the policy's own answers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from prefopt.build.answers import AnswerRules
from prefopt.build.bootstrap import Pairing, PairRule
from prefopt.build.self_rewarded import BootstrapSettings, LengthUnit
from prefopt.build.settings import BuildSection, Count, Positive, Text
from prefopt.config import RunConfig
from prefopt.generate.base import Sampling
from prefopt.objectives import find_objective
from prefopt.values import JsonValue


class DiceBuild(BuildSection):
    """How a round's pairs are made; the defaults are those of the published scripts, but for `scan`."""

    previous: Text
    """Folder or hub id of the model that the recipe's model was trained from: the reference of the reward."""
    previous_revision: Text | None = None
    """Hub revision of `previous`."""
    previous_tokenizer: Text | None = None
    """Folder or hub id of the tokenizer of `previous`, where it has none of its own."""
    reward_reference: Literal["previous", "initial", "fixed"] = "previous"
    """`previous` in later rounds: the start of the round before; the start of the first round; or as it is here."""
    offline: Text | list[Text] | None = None
    """Preference data that the recipe's model was trained on before; null: none, with gamma 0."""
    offline_columns: dict[str, Text] = Field(default={})
    """Which column plays which role there, `role: column`, where the names are not recognised."""
    prompts: Text | list[Text] | None = None
    """Files of prompts to answer; null: the prompts of `offline`."""
    max_prompts: Count | None = None
    """Use only the first so many prompts."""
    samples: Count = 16
    """Answers per prompt."""
    temperature: Annotated[float, Field(ge=0)] = 0.9
    """Of the answers; the published one for Llama 3."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of the answers."""
    max_new_tokens: Count = 2048
    """Length of an answer in tokens."""
    drop_cut: bool = True
    """Leave out answers that were cut at max_new_tokens."""
    strip: bool = True
    """Take white space off both ends of an answer."""
    min_characters: Annotated[int, Field(ge=0)] = 4
    """Leave out shorter answers."""
    max_characters: Count | None = 6699
    """Leave out longer answers; null: none."""
    max_length: Count | None = None
    """Leave out answers longer than this with their prompt, in tokens; null: than the recipe's max_length, at which
    training cuts. Either way than the two models can read."""
    min_valid: Annotated[int, Field(ge=2)] = 8
    """Answers with a reward that a prompt needs, repeated ones included; prompts with fewer are left out."""
    beta: Positive = 0.1
    """Factor of the implicit reward: the beta of the training that led from `previous` to the recipe's model. In later
    rounds it is that of the round before."""
    alpha: Literal["auto"] | float = "auto"
    """Penalty on length; auto: the one at which chosen and rejected answers are equally long on average."""
    alpha_unit: Literal["reward", "logp"] = "reward"
    """Unit of a given alpha per unit of length: of the reward, or of log-ratios before beta (published: beta times it
    is meant)."""
    length_unit: LengthUnit = "chars"
    """What alpha is per: characters of the stripped text, or tokens."""
    scan: Literal["full", "official"] = "full"
    """Search for alpha over its whole range, or up the published grid until the gap first grows."""
    allow_negative: bool = False
    """Let a full scan find an alpha below 0 too, where the reward favours short answers."""
    pairing: Pairing = "best_worst"
    """Best against worst answer; the i-th best against the i-th worst for i up to `top`; or two drawn at random."""
    top: Count = 2
    """Pairs per prompt with pairing topk."""
    min_margin: Annotated[float, Field(ge=0)] = 0.0
    """Leave out pairs whose regularised rewards differ by this or less."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the pairs of the mix that are earlier data; 0: only own answers, 1: only earlier data."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Source of the randomness of answers and draws."""

    @property
    def runs_models(self) -> bool:
        """Always: rewards are computed in this process."""
        return True

    def inputs(self) -> list[str]:
        """Earlier data and prompts."""
        return [*self.offline_files, *self.prompt_files]

    def models(self, config: RunConfig) -> list[str]:
        """Those of the reward, and a writer of its own; with gamma 1 no model has a part in the data."""
        if self.gamma == 1:
            return []
        return list(
            dict.fromkeys([config.model_name_or_path, self.previous, *super().models(config)])
        )

    def keys_outside(self) -> list[str]:
        """With the length at which training cuts, where that is what leaves answers out."""
        own = ["max_length"] if self.max_length is None else []
        return [*super().keys_outside(), *own]

    @property
    def offline_files(self) -> list[str]:
        """Files of earlier data."""
        return _several(self.offline)

    @property
    def prompt_files(self) -> list[str]:
        """Files of prompts; none where those of the earlier data are used."""
        return _several(self.prompts)

    def later(self, before: Sequence[RunConfig]) -> dict[str, JsonValue]:
        """The reward of a later round: its beta is that of the training before, its reference an earlier model.

        A model is named with revision and tokenizer, as the round that started from it did.
        """
        trained = _trained_beta(before[-1])
        beta: dict[str, JsonValue] = {} if trained is None else {"beta": trained}
        if self.reward_reference == "fixed":
            return beta
        start = before[-1 if self.reward_reference == "previous" else 0]
        return {
            **beta,
            "previous": start.model_name_or_path,
            "previous_revision": start.model_revision,
            "previous_tokenizer": start.tokenizer_name_or_path,
        }

    def contradictions(self, config: RunConfig) -> list[str]:
        """Broken rules about several keys."""
        model = config.model_name_or_path
        rules = [
            (
                self.previous == model,
                f"previous is model_name_or_path, {model!r}: every reward would be 0; name what it was trained from",
            ),
            (
                self.offline is None and self.prompts is None,
                "there is nothing to answer: set offline (preference data) or prompts",
            ),
            (
                self.offline is None and self.gamma > 0,
                f"gamma {self.gamma:g} mixes in earlier data: set offline, or gamma to 0",
            ),
            (
                self.min_valid > self.samples,
                f"min_valid {self.min_valid} is more than samples {self.samples}: no prompt would be left",
            ),
            (
                self.temperature == 0 and self.gamma < 1,
                "temperature 0 makes all answers the same: raise it",
            ),
            (
                (self.max_length or 0) > config.max_length,
                f"max_length {self.max_length} is more than the recipe's, {config.max_length}, at which training cuts",
            ),
            (
                self.rounds > 1 and self.writer is not None,
                "a writer of its own would write the answers of every round: remove it, or set rounds to 1",
            ),
            (
                self.allow_negative and self.scan == "official",
                "allow_negative has no effect with scan official, whose grid starts at 0: remove one",
            ),
        ]
        return [f"build: {text}" for broken, text in rules if broken]

    def longest(self, config: RunConfig) -> int:
        """Tokens of prompt and answer beyond which an answer has no reward, whatever the models can read."""
        return self.max_length or config.max_length

    def bootstrap(self) -> BootstrapSettings:
        """How scored answers become pairs."""
        alpha = None if self.alpha == "auto" else self.alpha
        factor = self.beta if self.alpha_unit == "logp" else 1.0
        return BootstrapSettings(
            beta=self.beta,
            alpha=None if alpha is None else factor * alpha,
            length_unit=self.length_unit,
            scan=self.scan,
            allow_negative=self.allow_negative,
            min_valid=self.min_valid,
            rule=PairRule(self.pairing, self.top, self.min_margin, self.seed),
        )

    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            purpose="answers",
        )

    def rules(self) -> AnswerRules:
        """Which answers count."""
        return AnswerRules(self.strip, self.drop_cut, self.min_characters, self.max_characters)


def _trained_beta(config: RunConfig) -> float | None:
    """The beta that a recipe trains with, its first objective's default where it names none; None: it has none."""
    given: float | None = getattr(config, "beta", None)
    names: list[str] = getattr(config, "loss_type", [])
    if given is not None or not names:
        return given
    parameter = inspect.signature(find_objective(names[0])).parameters.get("beta")
    default = None if parameter is None else parameter.default
    return default if isinstance(default, float) else None


def _several(names: str | list[str] | None) -> list[str]:
    if names is None:
        return []
    return [names] if isinstance(names, str) else names
