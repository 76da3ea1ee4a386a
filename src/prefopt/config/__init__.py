"""Recipes: the schema that all methods share, reading and writing YAML, and messages for every mistake.

No torch here. A method extends `RunConfig` with its own parameters; `load_recipe` reads a file and the
`key=value` overrides, `parse` turns that into a config or lists everything that is wrong with it.
"""

from prefopt.config.mistakes import unknown_name
from prefopt.config.recipe import Recipe, load_recipe, parse, write_recipe
from prefopt.config.schema import Key, RunConfig, Section, keys_of, sections_of

__all__ = [
    "Key",
    "Recipe",
    "RunConfig",
    "Section",
    "keys_of",
    "load_recipe",
    "parse",
    "sections_of",
    "unknown_name",
    "write_recipe",
]
