"""Model-written Python runs here, never in our process: isolated, limited, one interpreter per solution."""

from prefopt.sandbox.base import CellResult, Death, Interpreter, Limits
from prefopt.sandbox.isolation import Isolation, isolation
from prefopt.sandbox.sandbox import Sandbox

__all__ = ["CellResult", "Death", "Interpreter", "Isolation", "Limits", "Sandbox", "isolation"]
