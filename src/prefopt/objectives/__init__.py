"""Objectives: pure functions from per-response log-probabilities to unreduced losses."""

from prefopt.objectives.pairwise import dpo
from prefopt.objectives.supervised import sft
from prefopt.objectives.types import Losses, Needs, Objective, Pairs, Scores, needs, needs_of

__all__ = ["Losses", "Needs", "Objective", "Pairs", "Scores", "dpo", "needs", "needs_of", "sft"]
