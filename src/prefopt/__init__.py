"""Preference optimisation: data, training, evaluation and evidence for the whole family around DPO.

The names below are the public interface, together with the command line; anything else may change. They
are imported when first used, so that `import prefopt` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefopt import objectives
    from prefopt.analysis.credit import token_credit
    from prefopt.build.controlled import build_controlled_pairs
    from prefopt.build.steps import build_step_pairs
    from prefopt.config import RunConfig, load_recipe, parse, write_recipe
    from prefopt.errors import PrefoptError
    from prefopt.evals.maths import evaluate
    from prefopt.generate.base import Generator
    from prefopt.generate.openai import OpenAIGenerator
    from prefopt.grade.maths import GradeItem, Grader
    from prefopt.ledger import Ledger
    from prefopt.methods.base import find_method, method_names
    from prefopt.models.scorer import Scorer
    from prefopt.objectives import Pairs, dpo
    from prefopt.pack.batch import Example, PackedBatch, collate
    from prefopt.pack.prepare import PrepareSettings, prepare
    from prefopt.pack.tree import TokenTree, build_tree
    from prefopt.records import (
        Message,
        Pair,
        Preference,
        Response,
        read_preferences,
        write_preferences,
    )
    from prefopt.report.page import write_report
    from prefopt.runs.method import Method
    from prefopt.runs.train import run_training
    from prefopt.sandbox import Limits, Sandbox
    from prefopt.text.problems import load_problems
    from prefopt.text.sources import load_preferences
    from prefopt.worlds.arithmetic import ArithmeticWorld
    from prefopt.worlds.reviews import ReviewWorld

    __version__: str

__all__ = [
    "ArithmeticWorld",
    "Example",
    "Generator",
    "GradeItem",
    "Grader",
    "Ledger",
    "Limits",
    "Message",
    "Method",
    "OpenAIGenerator",
    "PackedBatch",
    "Pair",
    "Pairs",
    "Preference",
    "PrefoptError",
    "PrepareSettings",
    "Response",
    "ReviewWorld",
    "RunConfig",
    "Sandbox",
    "Scorer",
    "TokenTree",
    "build_controlled_pairs",
    "build_step_pairs",
    "build_tree",
    "collate",
    "dpo",
    "evaluate",
    "find_method",
    "load_preferences",
    "load_problems",
    "load_recipe",
    "method_names",
    "objectives",
    "parse",
    "prepare",
    "read_preferences",
    "run_training",
    "token_credit",
    "write_preferences",
    "write_recipe",
    "write_report",
]

_HOMES = {
    "prefopt.analysis.credit": ("token_credit",),
    "prefopt.build.controlled": ("build_controlled_pairs",),
    "prefopt.build.steps": ("build_step_pairs",),
    "prefopt.config": ("RunConfig", "load_recipe", "parse", "write_recipe"),
    "prefopt.errors": ("PrefoptError",),
    "prefopt.evals.maths": ("evaluate",),
    "prefopt.generate.base": ("Generator",),
    "prefopt.generate.openai": ("OpenAIGenerator",),
    "prefopt.grade.maths": ("GradeItem", "Grader"),
    "prefopt.ledger": ("Ledger",),
    "prefopt.methods.base": ("find_method", "method_names"),
    "prefopt.models.scorer": ("Scorer",),
    "prefopt.objectives": ("Pairs", "dpo"),
    "prefopt.pack.batch": ("Example", "PackedBatch", "collate"),
    "prefopt.pack.prepare": ("PrepareSettings", "prepare"),
    "prefopt.pack.tree": ("TokenTree", "build_tree"),
    "prefopt.records": (
        "Message",
        "Pair",
        "Preference",
        "Response",
        "read_preferences",
        "write_preferences",
    ),
    "prefopt.report.page": ("write_report",),
    "prefopt.runs.method": ("Method",),
    "prefopt.runs.train": ("run_training",),
    "prefopt.sandbox": ("Limits", "Sandbox"),
    "prefopt.text.problems": ("load_problems",),
    "prefopt.text.sources": ("load_preferences",),
    "prefopt.worlds.arithmetic": ("ArithmeticWorld",),
    "prefopt.worlds.reviews": ("ReviewWorld",),
}
"""Module -> the public names it defines."""


def __getattr__(name: str) -> object:
    """The public name, imported on first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("prefopt")
    if name == "objectives":
        return importlib.import_module("prefopt.objectives")
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'prefopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
