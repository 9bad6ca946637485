"""Recipes: what to measure, as data. Every default of hess stands here, once."""

from hesscli.recipe.document import load_recipe, resolve
from hesscli.recipe.schema import PROBES, Recipe

__all__ = ["PROBES", "Recipe", "load_recipe", "resolve"]
