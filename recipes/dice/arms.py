"""The arms of the study of DICE: recipes of their rounds, and what a round's build says of itself."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from prefopt.build.dice_round import COUNTS, GENERATED, build_dice
from prefopt.build.settings import require_section
from prefopt.config import RunConfig, parse
from prefopt.evals.cells import Row
from prefopt.methods.base import find_method
from prefopt.methods.dice import DiceConfig
from prefopt.records import JsonValue, read_preferences
from prefopt.runs.chain import written
from prefopt.runs.rounds import config_of_round
from prefopt.worlds.reviews import ReviewWorld


class Arm(NamedTuple):
    """What an arm does in its rounds."""

    factor: float
    """Of the alpha that is fitted."""
    gamma: float
    rounds: bool = True
    """Whether there are any."""


ARMS: Mapping[str, Arm] = {
    "SFT": Arm(0, 0, rounds=False),
    "DPO": Arm(0, 0, rounds=False),
    "alpha auto": Arm(1, 0.5),
    "alpha 0": Arm(0, 0.5),
    "twice alpha": Arm(2, 0.5),
    "gamma 0": Arm(1, 0),
    "gamma 1": Arm(1, 1),
}


def recipe_of_round(
    arm: Arm, number: int, models: Sequence[Path], common: Mapping[str, JsonValue]
) -> RunConfig:
    """The recipe of a round, which starts from the last of the models; the first is that of the recipe."""
    alpha: JsonValue = 0.0 if arm.factor == 0 else "auto"
    build = {**section(common), "alpha": alpha, "gamma": arm.gamma}
    method = find_method("dice")
    config = parse({**common, "build": build}, method.config)
    found = config_of_round(
        config,
        method,
        number,
        models[-1] if number > 1 else None,
        starts=[str(model) for model in models],
    )
    return found if arm.factor in {0, 1} else with_more_alpha(found, arm.factor)


def section(recipe: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The section `build`."""
    build = recipe["build"]
    assert isinstance(build, dict)  # noqa: S101 - written here
    return build


def with_more_alpha(config: RunConfig, factor: float) -> RunConfig:
    """The recipe with `factor` times the alpha that its build finds; that build is made for it."""
    assert isinstance(config, DiceConfig)  # noqa: S101 - the one method here with rounds
    folder = build_dice(require_section(config.build, config), config).parent
    alpha = json.loads((folder / COUNTS).read_text(encoding="utf-8"))["alpha"]["value"]
    raw = written(config)
    return parse({**raw, "build": {**section(raw), "alpha": factor * alpha}}, DiceConfig)


def built(folder: Path, world: ReviewWorld) -> Row:
    """What the build of a round says of itself, and how often the oracle agrees with its pairs."""
    facts = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
    if "alpha" not in facts:  # gamma 1: nothing is generated
        return {}
    right = [
        score > other
        for record in read_preferences(folder / GENERATED)
        for pair in record.pairs
        for score, other in [
            [world.score(record.responses[k].text) for k in (pair.chosen, pair.rejected)]
        ]
    ]
    return {
        "alpha": facts["alpha"]["value"],
        "gap_0": facts["length"]["gap_without_alpha"],
        "gap": facts["length"]["gap"],
        "margin": facts["margin"]["mean"],
        "duplicates": facts["samples"]["duplicate_rate"],
        "pairs_right": statistics.fmean(right),
    }
