"""Recipes that choose their objectives: `loss_type`, `loss_weights`, the objectives' parameters and modifiers.

The keys are those of the objectives' signatures; nothing here knows any objective by name. A parameter that is set
but belongs to none of the chosen objectives is an error, since it would silently do nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field, field_validator, model_validator

from prefopt.config import RunConfig, unknown_name
from prefopt.objectives import (
    Needs,
    Objective,
    Pairs,
    Scores,
    find_objective,
    needs_of,
    objective_names,
    parameters_of,
    with_divergence,
    with_ld,
    with_wpo,
    without_reference,
)
from prefopt.records import JsonValue
from prefopt.train.terms import Term

_COMMON = {"beta", "label_smoothing"}
"""Parameters that mean the same in every objective that has a reference: its anchor, the share of wrong labels."""

_ELSEWHERE = {
    "sigmoid": "dpo",
    "sigmoid_norm": "dpo_norm",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "sppo_hard": "sppo",
    "kto_pair": "kto",
    "apo_zero_paired": "apo_zero",
    "tpo-l": "tpo_l",
    "nll": "sft",
    "rpo": "[dpo, sft] with loss_weights",
    "conservative_dpo": "cdpo",
    "tr_dpo": "dpo with reference: moving",
    "f_divergence": "any objective with f_divergence_type",
}
"""What other libraries call objectives. Used for hints in error messages only, never accepted."""

_UNSET_COEFFICIENT = 0.5
"""Order of the alpha divergence where none is set."""

_MODIFIERS = {"f_divergence_type", "f_alpha_divergence_coef", "ld_alpha"}
"""Keys that change any pairwise objective, beside those few functions that take them as parameters."""

Weight = Annotated[float, Field(gt=0)]


class ObjectiveKeys(RunConfig):
    """Keys of a recipe whose method trains on pairs with objectives of the user's choice."""

    essential: ClassVar[str | None] = None
    """The objective without which the method would not be itself."""

    loss_type: list[str] = Field(default=["dpo"])
    """Objectives, one or several (`prefopt methods` lists them); their losses are added up."""
    loss_weights: list[Weight] | None = None
    """Factor of each objective of loss_type; null: 1 each."""
    beta: float | None = Field(default=None, gt=0)
    """Strength of the implicit KL anchor, or the scale of the reward; null: the objective's own default."""
    label_smoothing: float | None = Field(default=None, ge=0, lt=1)
    """Assumed share of pairs that are labelled the wrong way round; null: the objective's own default."""
    alpha: float | None = None
    """Parameter of odpo, beta_dpo, tdpo and alphapo."""
    gamma: float | None = None
    """Margin of simpo, alphapo and tpo_l (the full one, not its ratio to beta); slope of mmpo."""
    delta_min: float | None = None
    """Floor of odpo's offset; null: none."""
    delta: float | None = None
    """Margin of slic."""
    lambda_: float | None = None
    """Weight of asft's alignment, of dpop's penalty, of slic's likelihood term."""
    tau: float | None = Field(default=None, gt=0)
    """Temperature of discopop's gate."""
    rho: float | None = Field(default=None, ge=0, lt=1)
    """Share of pairs that beta_dpo leaves out of each step."""
    scale: float | None = Field(default=None, gt=0)
    """Factor of mallows' dispersion."""
    advantage: float | None = None
    """Head start of the rejected response in home_advantage."""
    offset: Literal["log", "difference", "log_ratio"] | None = None
    """How odpo makes the offset of the scores."""
    ce_coef: float | None = Field(default=None, ge=0)
    """Weight of asft's likelihood term."""
    cpo_alpha: float | None = Field(default=None, ge=0)
    """Weight of cpo's likelihood term."""
    tpo_alpha: float | None = Field(default=None, ge=0)
    """Weight of the likelihood of the gold response in tpo and tpo_l."""
    desirable_weight: float | None = Field(default=None, ge=0)
    """Weight of desirable responses in kto."""
    undesirable_weight: float | None = Field(default=None, ge=0)
    """Weight of undesirable responses in kto."""
    f_divergence_type: (
        Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] | None
    ) = None
    """Divergence that ties the policy to the reference; null: the reverse KL of DPO."""
    f_alpha_divergence_coef: float | None = None
    """Order of alpha_divergence; null: 0.5."""
    use_weighting: bool = False
    """WPO: weigh each pair by how likely the policy itself makes it."""
    ld_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """LD-DPO: weight of the tokens beyond the shorter response of a pair; null: 1."""
    ld_scope: Literal["policy_and_reference", "policy"] = "policy_and_reference"
    """Where ld_alpha applies: to both (the paper, TRL), or to the policy only (LLaMA-Factory)."""
    reference_free: bool = False
    """Put 0 for the reference log-probabilities in objectives that have one."""

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, raw: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Parameters that are not set get the objectives' default, so that the stored recipe says what was used."""
        listed = raw.get("loss_type", cls.model_fields["loss_type"].default)
        names = [listed] if isinstance(listed, str) else listed
        if not isinstance(names, list) or not all(name in objective_names() for name in names):
            return raw
        filled = dict(raw)
        if raw.get("loss_weights") is None:
            filled["loss_weights"] = cast("JsonValue", [1.0] * len(names))
        defaults = [parameters_of(find_objective(str(name))) for name in names]
        keys = {key for each in defaults for key in each} & cls.model_fields.keys()
        for key in keys:
            users = [str(n) for n, each in zip(names, defaults, strict=True) if key in each]
            values = {each[key] for each in defaults if key in each}
            if key in _MODIFIERS and len(users) < len(names):
                continue  # set, it would change the other objectives too
            if len(users) > 1 and not (key in _COMMON and all(map(_anchored, users))):
                continue
            if raw.get(key) is None and cls.model_fields[key].default is None and len(values) == 1:
                filled[key] = cast("JsonValue", values.pop())
        return filled

    @field_validator("loss_type", mode="before")
    @classmethod
    def _listed(cls, value: JsonValue) -> JsonValue:
        return [value] if isinstance(value, str) else value

    @field_validator("loss_type")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one objective")
        for name in value:
            if name not in objective_names():
                known = _ELSEWHERE.get(name)
                if known is not None:
                    raise ValueError(f"unknown objective {name!r}: here it is {known}")
                raise ValueError(str(unknown_name("objective", name, objective_names())))
        return value

    def contradictions(self) -> list[str]:
        """The shared rules, and those among objectives and their parameters."""
        return [*super().contradictions(), *_broken(self)]


def objective_terms(config: ObjectiveKeys) -> list[Term]:
    """The objectives of a recipe with parameters bound, modifiers applied, and their factors."""
    weights = config.loss_weights or [1.0] * len(config.loss_type)
    return [
        Term(_objective(name, config), weight)
        for name, weight in zip(config.loss_type, weights, strict=True)
    ]


def _objective(name: str, config: ObjectiveKeys) -> Objective:
    function = find_objective(name)
    keys = parameters_of(function)
    given = {key: value for key in keys if (value := getattr(config, key, None)) is not None}
    objective = partial(function, **given) if given else function
    need = needs_of(function)
    if need.view != "pairs":
        return objective
    # The last one added is the first to change the pairs. An objective that has a modifier built in keeps its own.
    if config.f_divergence_type is not None and need.reference and "f_divergence_type" not in keys:
        objective = with_divergence(
            objective, divergence=config.f_divergence_type, coefficient=_coefficient(config)
        )
    if config.ld_alpha is not None and "ld_alpha" not in keys:
        scope = config.ld_scope if need.reference else "policy"
        objective = with_ld(objective, ld_alpha=config.ld_alpha, scope=scope)
    if config.reference_free and need.reference:
        objective = without_reference(objective)
    return with_wpo(objective) if config.use_weighting else objective


def _coefficient(config: ObjectiveKeys) -> float:
    coefficient = config.f_alpha_divergence_coef
    return _UNSET_COEFFICIENT if coefficient is None else coefficient


def _broken(config: ObjectiveKeys) -> Iterator[str]:
    names, weights, essential = config.loss_type, config.loss_weights, type(config).essential
    if essential is not None and essential not in names:
        yield f"loss_type {', '.join(names)} has no {essential}: name it, or use method: dpo"
        return
    if len(set(names)) < len(names):
        yield f"loss_type {names} names an objective twice: name it once and set loss_weights"
        return
    if weights is not None and len(weights) != len(names):
        yield f"loss_weights has {len(weights)} entries and loss_type {len(names)}: give one weight per objective"
        return
    yield from _idle(config)
    yield from _modifiers(config)
    for name in names:
        try:  # objectives check their parameters wherever they are called; here is the earliest place
            _objective(name, config)(_nothing(name))
        except ValueError as error:
            yield str(error)


def _clashes(config: ObjectiveKeys, needs: list[Needs]) -> Iterator[str]:
    """Modifiers that have no meaning for what an objective computes itself."""
    listed = ", ".join(config.loss_type)
    if config.use_weighting and any("alignment" in need.extras for need in needs):
        yield f"use_weighting would weigh twice with loss_type {listed}: remove one of them"
    if config.reference_free and any({"kl", "dispersion"} & {*need.extras} for need in needs):
        yield f"reference_free has no meaning with loss_type {listed}, which compares whole distributions: remove it"
    if config.f_divergence_type is not None and any(
        "kl" in n.extras or n.positional for n in needs
    ):
        yield f"f_divergence_type has no meaning with loss_type {listed}: remove it"


def _nothing(name: str) -> Pairs | Scores:
    """An empty batch, as the objective takes it."""
    empty, index = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    if needs_of(find_objective(name)).view == "pairs":
        return Pairs(*([empty] * len(Pairs._fields)))
    return Scores(empty, empty, empty, index, index, index, empty, empty, empty, empty)


def _idle(config: ObjectiveKeys) -> Iterator[str]:
    """Parameters that would do nothing, or mean two things at once."""
    takers = {name: parameters_of(find_objective(name)) for name in objective_names()}
    for key in sorted({key for keys in takers.values() for key in keys} - _MODIFIERS):
        value = getattr(config, key, None)
        if value is None:
            continue
        users = [name for name in config.loss_type if key in takers[name]]
        if not users:
            others = ", ".join(name for name, keys in takers.items() if key in keys)
            yield (
                f"{key} {value!r} has no effect with loss_type {', '.join(config.loss_type)}: remove it, or use one "
                f"that has it ({others})"
            )
        elif len(users) > 1 and not (key in _COMMON and all(map(_anchored, users))):
            yield (
                f"{key} means something else in each of {', '.join(users)}: leave it out, so that each has its own "
                "default, or train them apart"
            )


def _anchored(name: str) -> bool:
    return needs_of(find_objective(name)).reference


def _modifiers(config: ObjectiveKeys) -> Iterator[str]:
    needs = [needs_of(find_objective(name)) for name in config.loss_type]
    pairwise = [need for need in needs if need.view == "pairs"]
    listed = ", ".join(config.loss_type)
    chosen = {
        "f_divergence_type": config.f_divergence_type is not None,
        "reference_free": config.reference_free,
        "use_weighting": config.use_weighting,
        "ld_alpha": config.ld_alpha is not None,
    }
    for key, used in chosen.items():
        of_reference = key in {"f_divergence_type", "reference_free"}
        if used and not any(need.reference or not of_reference for need in pairwise):
            what = "pairs and a reference" if of_reference else "pairs"
            yield f"{key} has no effect: none of loss_type {listed} works on {what}; remove it"
    yield from _clashes(config, needs)
    if config.reference_free and config.f_divergence_type is not None:
        yield "reference_free and f_divergence_type exclude each other: there is nothing to diverge from"
    built_in = any(
        "f_divergence_type" in parameters_of(find_objective(n)) for n in config.loss_type
    )
    coefficient, alpha = config.f_alpha_divergence_coef, config.f_divergence_type
    idle = coefficient is not None and not (built_in and coefficient == _UNSET_COEFFICIENT)
    if idle and alpha != "alpha_divergence":
        yield "f_alpha_divergence_coef has no effect without f_divergence_type: alpha_divergence"
    if config.ld_scope != "policy_and_reference":
        built_in = [n for n in config.loss_type if "ld_alpha" in parameters_of(find_objective(n))]
        if config.ld_alpha is None:
            yield "ld_scope has no effect without ld_alpha"
        elif built_in:
            yield f"ld_scope has no effect on {', '.join(built_in)}: use ld_dpo_policy, or dpo with ld_alpha"
