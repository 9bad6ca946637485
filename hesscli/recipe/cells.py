"""From a recipe with a matrix to one recipe for each cell, or every fault of all of them at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from hesscli.errors import UsageError
from hesscli.recipe.document import RecipeError, content, known_paths, render, resolve
from hesscli.recipe.matrix import SWEEP_KEYS, Values, combinations, matches, same_as
from hesscli.recipe.schema import PROBES, Recipe

MOST = 4096  # cells: each is checked before the first one runs, a thousand in about a second

Layers = Sequence[tuple[str, Values]]


@dataclass(frozen=True, slots=True)
class CellRecipe:
    """One cell: what sets it apart, by dotted path, and the whole recipe that it stands for."""

    values: Values
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Expansion:
    """The cells of a sweep in the order of its matrix, the last key changing fastest."""

    cells: list[CellRecipe]
    keys: list[str]
    """What the cells may differ in: the matrix's keys, then those that `include` adds."""
    idle: list[Values]
    """Mappings of `exclude` that dropped no cell."""
    origins: dict[str, str]
    grid: Recipe
    """Holds `matrix`, `include` and `exclude` as they were given; nothing else of it counts."""


def expand(layers: Layers) -> Expansion:
    """The recipe of each cell, from layers of (origin, values) as `resolve` takes them.

    Raises UsageError: every fault of the matrix and of every cell, each named once; no matrix; too many cells.
    """
    base = [(origin, {p: v for p, v in values.items() if not _of_sweep(p)}) for origin, values in layers]
    grids = [(origin, {p: v for p, v in values.items() if _of_sweep(p)}) for origin, values in layers]
    faults: dict[str, tuple[str, str]] = {}
    try:
        grid, origins = resolve([("", {"probe": PROBES[0]}), *grids])
    except RecipeError as error:
        _resolve(base, {}, {}, faults, probe_is_known=any("probe" in values for _, values in base))
        raise RecipeError(error.faults | faults) from None
    del origins["probe"]
    if not (grid.matrix or grid.include):
        remedy = "use hess run, or give one such as matrix.model.revision=[step50,final]"
        raise UsageError("matrix", "the recipe has none, so it has one cell", remedy)
    faults |= _key_faults(grid)
    count = math.prod(len(values) for values in grid.matrix.values())
    if count > MOST:
        raise UsageError("matrix", f"gives {count} cells", f"at most {MOST}; split it into several recipes")
    if faults:
        raise RecipeError(faults)
    cells = []
    for values in combinations(grid.matrix, include=grid.include, exclude=grid.exclude):
        recipe = _resolve(base, values, grid.matrix, faults, probe_is_known=True)
        if recipe is not None:
            cells.append(CellRecipe(values, recipe))
    if faults:
        raise RecipeError(faults)
    if not cells:
        raise UsageError("exclude", "drops every cell of the matrix", "leave one")
    whole = combinations(grid.matrix, include=[], exclude=[])
    idle = [dropped for dropped in grid.exclude if not any(matches(cell, dropped) for cell in whole)]
    keys = list(dict.fromkeys([*grid.matrix, *(key for added in grid.include for key in added)]))
    origins |= {path: origin for origin, values in base for path in values}
    return Expansion(cells, keys, idle, origins, grid)


def print_cells(expansion: Expansion) -> str:
    """The sweep as one recipe with the origin of each value: what all cells share, and the matrix.

    What differs from cell to cell by itself, such as a preset's budgets, is left out. Read again, it gives the same
    cells.
    """
    trees = [content(cell.recipe) for cell in expansion.cells]
    shared = _shared(trees, set(expansion.keys))
    tree = shared | {key: value for key in SWEEP_KEYS if (value := getattr(expansion.grid, key))}
    return render(tree, expansion.origins, preset=expansion.cells[0].recipe.estimator.preset)


def _shared(trees: Sequence[Mapping[str, Any]], varied: set[str], prefix: str = "") -> dict[str, Any]:
    first, *others = trees
    out: dict[str, Any] = {}
    for key, value in first.items():
        path = f"{prefix}{key}"
        if prefix == "" and isinstance(value, dict):
            out[key] = _shared([tree[key] for tree in trees], varied, f"{key}.")
        elif path not in varied and all(key in tree and tree[key] == value for tree in others):
            out[key] = value
    return {key: value for key, value in out.items() if value != {} or prefix}


def _of_sweep(path: str) -> bool:
    return path.partition(".")[0] in SWEEP_KEYS


def _key_faults(grid: Recipe) -> dict[str, tuple[str, str]]:
    """What is wrong with the names of keys, by where they stand."""
    allowed = [path for path in known_paths() if path == "probe" or ("." in path and not path.startswith("output."))]
    places = [(f"matrix.{key}", key, allowed) for key in grid.matrix]
    places += [(f"include.{i}.{key}", key, allowed) for i, cell in enumerate(grid.include) for key in cell]
    places += [(f"exclude.{i}.{key}", key, list(grid.matrix)) for i, cell in enumerate(grid.exclude) for key in cell]
    faults = {}
    for place, key, names in places:
        if key in names:
            continue
        if key in known_paths() and names is allowed:
            faults[place] = ("is the same for every cell", f"set {key} beside the matrix")
            continue
        near = get_close_matches(key, names, n=1)
        what = "no such key" if names is allowed else "is not a key of the matrix"
        faults[place] = (what, f"did you mean {near[0]}?" if near else f"keys are {', '.join(names[:6])}, ...")
    return faults


def _resolve(
    base: Layers,
    values: Values,
    matrix: Mapping[str, Sequence[Any]],
    faults: dict[str, tuple[str, str]],
    *,
    probe_is_known: bool,
) -> Recipe | None:
    """The recipe of one cell; where it has faults they join `faults`, those of its own values by their place."""
    layers = [*([] if probe_is_known else [("", {"probe": PROBES[0]})]), *base, ("matrix", values)]
    try:
        return resolve(layers)[0]
    except RecipeError as error:
        for path, (what, remedy) in error.faults.items():
            if " is not read by " in f" {what}" and path in values:
                remedy = f"{remedy}, or give it to the cells of another probe alone, by include"
            faults[_place(path, values, matrix)] = (what, remedy)
        return None


def _place(path: str, values: Values, matrix: Mapping[str, Sequence[Any]]) -> str:
    if path not in values:
        return path
    if path not in matrix:
        return f"include.{path}"
    texts = [same_as(value) for value in matrix[path]]
    return f"matrix.{path}[{texts.index(same_as(values[path]))}]"
