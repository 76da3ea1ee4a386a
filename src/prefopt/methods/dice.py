"""DICE: bootstrapping with DPO's implicit reward (Chen et al. 2024, arXiv 2406.09760).

A model trained by DPO is a reward model relative to what it was trained from. A round samples its own answers, ranks
them by that reward with a penalty on length, mixes the pairs with earlier data, and trains by ordinary DPO from, and
against, the model that wrote them. `prefopt build` makes a round's pairs, `prefopt run` with `build.rounds` all rounds.
"""

from __future__ import annotations

from pathlib import Path

from prefopt.build.dice import DiceBuild
from prefopt.build.dice_round import build_dice
from prefopt.build.settings import changes_since, require_section
from prefopt.runs.method import Method
from prefopt.runs.mix import ObjectiveKeys, objective_terms


class DiceConfig(ObjectiveKeys):
    """Recipe of a round of DICE; the training reference is the model that the round starts from."""

    build: DiceBuild | None = None
    """How the round's pairs are made (`prefopt build`)."""

    @property
    def built_file(self) -> str | None:
        """The pairs of the section `build`."""
        return None if self.build is None else str(self.build.pairs_file(self.method))

    def changed_since_built(self) -> list[str]:
        """What the section `build` would make differently now."""
        build = self.build
        return [] if build is None else changes_since(build.folder(self.method), self, build)

    def contradictions(self) -> list[str]:
        """Those of every recipe and of the section `build`."""
        own = [] if self.build is None else self.build.contradictions(self)
        return [*super().contradictions(), *own]


def build(config: DiceConfig) -> Path:
    """The file of pairs that the recipe's section `build` describes."""
    return build_dice(require_section(config.build, config), config)


METHOD = Method(
    name="dice",
    summary="DPO on pairs that the policy's own implicit reward makes of its own answers, in rounds",
    paper="Chen et al. 2024, Bootstrapping Language Models with DPO Implicit Rewards, arXiv 2406.09760 (ICLR 2025)",
    config=DiceConfig,
    objectives=objective_terms,
    build=build,
)
