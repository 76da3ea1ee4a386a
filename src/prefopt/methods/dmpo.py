"""Direct Multi-Turn Preference Optimization (Shi et al. 2024, arXiv 2406.14868): DPO on trajectories, by turns.

A trajectory has T turns of an agent. The loss is DPO's, on log-ratios in which turn t counts phi(t, T) times (`phi`),
so that later turns, which say less about the policy, count less. The weights go onto the tokens of the tree
(`weigh`); the objective itself is that of DPO.

Departures: the paper prints phi without its factor gamma^t below eq. 16; its derivation and the published code have
it, and so has this. The published code gives the end of each turn weight 1 (`separator_weight: one`), counts turns
that truncation removed (`turns: all`), and knows no gamma of 1, which is the limit here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from prefopt.build.agents import AgentBuild, build_trajectories
from prefopt.build.settings import changes_since, require_section
from prefopt.evals.agents import AgentSettings
from prefopt.evals.measure import AgentMeasure, measure_agent
from prefopt.objectives import find_objective, objective_names, parameters_of
from prefopt.objectives.margins import sees_margins_only
from prefopt.pack.prepare import Weighable
from prefopt.records import JsonValue
from prefopt.runs.method import Method
from prefopt.runs.mix import ObjectiveKeys, objective_terms
from prefopt.train.terms import Term

_OF_WEIGHTS: dict[str, JsonValue] = {
    "gamma": 0.7,
    "turns": "surviving",
    "separator_weight": "turn",
}
"""Parameters of the weights and their defaults; without weights they would do nothing."""

_MODIFIERS = ("f_divergence_type", "use_weighting", "ld_alpha")
"""Modifiers of log-ratios of whole responses, or of lengths: of weighted sums they make something else."""


class DmpoConfig(ObjectiveKeys):
    """Recipe of a DMPO run: pairs of trajectories, whose responses have `turns`."""

    beta: float | None = Field(default=0.1, gt=0)
    """Strength of the implicit KL anchor to the reference."""
    weighting: Literal["dmpo", "dpo", "token"] = "dmpo"
    """What a turn counts; dmpo: phi(t, T); dpo: 1, which is DPO on whole trajectories; token: phi over the agent's
    tokens in place of its turns."""
    gamma: float | None = Field(default=None, ge=0, le=1)
    """Discount of later turns; 0: the first turn alone counts; 1: the weights fall in a straight line. null: 0.7."""
    turns: Literal["surviving", "all"] | None = None
    """Which turns T counts where max_length cuts a trajectory: those that are left, or all, as published. null:
    surviving."""
    separator_weight: Literal["turn", "one"] | None = None
    """Weight of the token that ends a turn; turn: that of the turn; one: 1, as published. null: turn."""
    build: AgentBuild | None = None
    """How the training data are made (`prefopt build`)."""
    evaluate: AgentMeasure | None = None
    """What `prefopt run` measures about the trained model, in the environment of the section `build`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_weights(cls, raw: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """What is not set gets its default, so that the stored recipe says what was used."""
        if raw.get("weighting", "dmpo") == "dpo":
            return raw
        return {**raw, **{k: v for k, v in _OF_WEIGHTS.items() if raw.get(k) is None}}

    @property
    def built_file(self) -> str | None:
        """The pairs of the section `build`."""
        return None if self.build is None else str(self.build.pairs_file(self.method))

    def changed_since_built(self) -> list[str]:
        """What the section `build` would make differently now."""
        build = self.build
        return [] if build is None else changes_since(build.folder(self.method), self, build)

    def contradictions(self) -> list[str]:
        """Those of every recipe and of the section `build`, and what has no meaning with these weights."""
        own = [] if self.build is None else self.build.contradictions()
        if self.evaluate is not None and self.build is None:
            own.append(
                "evaluate plays in the environment of the section build, and there is none: add it"
            )
        shared = super(DmpoConfig, _without_gamma(self)).contradictions()
        return [*shared, *_broken(self), *own]


def _without_gamma(config: DmpoConfig) -> DmpoConfig:
    """The recipe as objectives see it: gamma is none of their parameters."""
    return config.model_copy(update={"gamma": None})


def _broken(config: DmpoConfig) -> Iterator[str]:
    for name in config.loss_type:
        if "gamma" in parameters_of(find_objective(name)):
            yield (
                f"loss_type {name} has a parameter gamma, which is the discount of turns here: use method: dpo"
            )
            return
    if config.weighting == "dpo":
        for key in _OF_WEIGHTS:
            value = getattr(config, key)
            if value is not None:
                yield f"{key} {value!r} has no effect with weighting dpo: remove it, or use weighting: dmpo"
        return
    for name in config.loss_type:
        if not sees_margins_only(name):
            able = ", ".join(n for n in objective_names() if sees_margins_only(n))
            yield (
                f"loss_type {name} has no meaning with weighting {config.weighting}: it looks at more than the "
                f"difference of two sums over tokens; use weighting: dpo, or one of {able}"
            )
    for key in _MODIFIERS:
        if getattr(config, key):
            yield f"{key} has no meaning with weighting {config.weighting}: remove it, or use weighting: dpo"


def phi(turns: int, gamma: float) -> NDArray[np.float64]:
    """Weight [T] of each of T = `turns` turns.

    ``phi(t, T) = gamma^t (1 - gamma^(T - t)) / (1 - gamma^T)``; ``(T - t) / T`` for gamma = 1, its limit

    1 for the first turn, falling strictly from there (gamma > 0), gamma^t for T to infinity. It is what is left of
    a discounted sum over states, ``(1 - gamma) / (1 - gamma^T) sum_t gamma^t sum_(k <= t) x_k = sum_k phi(k, T) x_k``:
    its factor has the partition functions of two trajectories cancel, however long they are.

    Args:
        turns: T, at least 1.
        gamma: the discount, from 0 to 1.

    Raises:
        ValueError: either is out of range.

    Source: Shi et al. 2024, arXiv 2406.14868, eq. 16.
    """
    if turns < 1 or not 0 <= gamma <= 1:
        raise ValueError(
            f"phi: turns {turns} and gamma {gamma}; give turns >= 1 and 0 <= gamma <= 1"
        )
    t = np.arange(turns, dtype=np.float64)
    if gamma == 0:
        return (t == 0).astype(np.float64)
    if gamma == 1:
        return (turns - t) / turns
    log = math.log(gamma)
    return np.exp(t * log) * np.expm1((turns - t) * log) / np.expm1(turns * log)


def weigh(given: Weighable, config: DmpoConfig) -> tuple[float, ...]:
    """Weight of each (token, response) incidence: phi of its turn; none, for 1 everywhere, with weighting dpo.

    Turns are the assistant messages of a response that have scored tokens, numbered from 0: an example or an
    acknowledgement that is not trained on (`Message.train` false) is no turn. A turn of which `max_length` leaves a
    part is a turn. A token that two trajectories share has a weight in each, phi(t, T_w) and phi(t, T_l).
    """
    if config.weighting == "dpo" or config.gamma is None:
        return ()
    token, response = given.tree.incidences()
    turn, ids = given.tree.turn[token], given.tree.tokens[token]
    weight = np.ones(len(token))
    for r, whole in enumerate(given.whole):
        own = np.nonzero(response == r)[0]
        unit = _units(turn[own], config)
        scored = np.asarray(whole.turn)[np.asarray(whole.scored, dtype=np.bool_)]
        counted = _units(scored, config) if config.turns == "all" else unit
        weight[own] = phi(int(counted[-1]) + 1, config.gamma)[unit]
        if config.separator_weight == "one":
            weight[own[_separators(turn[own], ids[own], given.special)]] = 1.0
    return tuple(weight.tolist())


def _units(turn: NDArray[np.int64], config: DmpoConfig) -> NDArray[np.int64]:
    """Number of the turn, or of the token, that each scored token of a response belongs to, from 0."""
    if config.weighting == "token":
        return np.arange(len(turn))
    return np.unique(turn, return_inverse=True)[1]


def _separators(
    turn: NDArray[np.int64], ids: NDArray[np.int64], special: frozenset[int]
) -> NDArray[np.int64]:
    """Positions of those tokens that end a turn: the last of each turn, where it is a special token."""
    last = np.nonzero(np.diff(turn, append=-1))[0]
    return last[[int(i) in special for i in ids[last]]]


def terms(config: DmpoConfig) -> Sequence[Term]:
    """The objectives of a recipe, whose gamma is not theirs."""
    return objective_terms(_without_gamma(config))


def build(config: DmpoConfig) -> Path:
    """The file of pairs that the recipe's section `build` describes."""
    return build_trajectories(require_section(config.build, config), config)


def measure(config: DmpoConfig, folder: Path) -> None:
    """Let the trained model act as it was trained to, greedily; nothing without a section `evaluate`."""
    wanted, built = config.evaluate, config.build
    if wanted is None or built is None:
        return
    settings = AgentSettings(
        environment=built.environment,
        options=built.environment_options,
        splits=tuple(wanted.splits or ()),
        limit=wanted.limit,
        format=built.format,
        example=built.example,
        max_turns=built.max_turns,
        max_new_tokens=built.max_new_tokens,
        workers=built.workers,
        step_seconds=built.step_seconds,
        batch_size=built.batch_size,
    )
    measure_agent(settings, folder)


METHOD = Method(
    name="dmpo",
    summary="pairs of agents' trajectories; DPO in which later turns count less, whatever the lengths",
    paper="Shi et al. 2024, Direct Multi-Turn Preference Optimization for Language Agents, arXiv 2406.14868",
    config=DmpoConfig,
    objectives=terms,
    weigh=weigh,
    build=build,
    measure=measure,
)
