"""From a recipe to the command line that measures the same."""

import json
import shlex
from pathlib import Path
from typing import Any

import typer

from hesscli.cli.options import measuring_parameters, with_parameters
from hesscli.recipe.document import load_recipe, resolve
from hesscli.recipe.schema import PRESETS, Recipe


def command_line(recipe: Path) -> str:
    """Return `hess PROBE MODEL ...` with an option for every value that is not what the command takes by itself.

    Gates and where the output lies are left out: they change no figure. Raises UsageError where this version does not
    understand the recipe.
    """
    found, _ = resolve([("recipe", load_recipe(recipe))])
    model = found.model.id if found.model.revision is None else f"{found.model.id}@{found.model.revision}"
    words = ["hess", found.probe, model]
    for name, flags in _flags(found.probe).items():
        section, _, key = name.partition("__")
        value = getattr(getattr(found, section), key)
        if section != "output" and name != "model__revision" and not _is_default(found, section, key, value):
            words += _words(flags, value)
    return shlex.join(words)


def run_command(recipe: Path) -> str:
    """Return `hess run RECIPE` for the recipe in a run's folder, its path as it is from where the run was started.

    There, and nowhere else, do relative names of models and data hold. Raises UsageError where this version does not
    understand the recipe.
    """
    found, _ = resolve([("recipe", load_recipe(recipe))])
    place = recipe.absolute().parent.parts[-3:]  # model, revision, run
    return shlex.join(["hess", "run", str(Path(found.output.dir, *place, recipe.name))])


def _flags(probe: str) -> dict[str, tuple[str, str]]:
    """Return the long spelling of each option, and what switches it off, by the name of its parameter."""
    command = typer.Typer()
    command.command()(with_parameters(_nothing, measuring_parameters(probe)))
    options = [p for p in typer.main.get_command(command).params if "__" in (p.name or "")]
    return {str(p.name): (max(p.opts, key=len), max(p.secondary_opts, key=len, default="")) for p in options}


def _nothing(model: str = "", **_options: Any) -> None:
    """Stand for the command that takes the options."""


def _is_default(recipe: Recipe, section: str, key: str, value: Any) -> bool:
    if section == "estimator" and value == PRESETS[recipe.estimator.preset][recipe.probe].get(key):
        return True
    fields = type(getattr(recipe, section)).model_fields
    return bool(value == fields[key].get_default(call_default_factory=True))


def _words(flags: tuple[str, str], value: Any) -> list[str]:
    flag, off = flags
    if isinstance(value, bool):
        return [flag if value else off]
    if isinstance(value, list):
        return [word for item in value for word in (flag, str(item))]
    if isinstance(value, dict):  # limits of memory read 0=40GiB,cpu=100GiB; a map of devices is JSON
        limits = ",".join(f"{key}={item}" for key, item in value.items())
        return [flag, limits if flag == "--max-memory" else json.dumps(value)]
    return [flag, str(value)]
