"""A sweep before it runs: its cells in order, its name, and its folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from hesscli.recipe import Recipe
from hesscli.recipe.cells import CellRecipe, Expansion
from hesscli.recipe.matrix import Values, same_as
from hesscli.report.sweep import FOLDER, Axis
from hesscli.report.trends.steps import natural_order
from hesscli.run.sweep.inputs import given, hashed

# Keys whose values are put in the order of training where their names tell it; others stay as they were given.
REVISIONS = ("model.revision", "model.id")


@dataclass(frozen=True, slots=True)
class Plan:
    """The cells, in the order in which they run and stand in every table."""

    name: str
    sweep_id: str
    root: Path
    """The output folder: that of the runs, too."""
    cells: list[CellRecipe]
    axes: list[Axis]
    plots: list[str]

    @property
    def folder(self) -> Path:
        """Where the manifest, the tables and the figures lie."""
        return self.root / FOLDER / f"{self.name}-{self.sweep_id}"

    @property
    def probes(self) -> list[str]:
        """The probes of the cells, each once."""
        return list(dict.fromkeys(cell.recipe.probe for cell in self.cells))


def plan_sweep(expansion: Expansion) -> Plan:
    """The cells in natural order of revisions; the hash is over what the cells measure, in this order."""
    expansion = replace(expansion, cells=_without_paths(expansion.cells))
    axes = [_axis(key, [cell.values[key] for cell in expansion.cells if key in cell.values]) for key in expansion.keys]
    places = {axis.key: [same_as(value) for value in axis.values] for axis in axes}

    def rank(cell: CellRecipe) -> list[int]:
        return [places[key].index(same_as(cell.values[key])) if key in cell.values else -1 for key in places]

    extra = len(expansion.grid.matrix)
    whole = [cell for cell in expansion.cells if all(key in cell.values for key in list(places)[:extra])]
    cells = sorted(whole, key=rank) + [cell for cell in expansion.cells if cell not in whole]
    first: Recipe = cells[0].recipe
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", first.name or "sweep").strip("._") or "sweep"
    sweep_id = hashed([[cell.values, given(cell.recipe)] for cell in cells])[:8]
    return Plan(name, sweep_id, Path(first.output.dir), cells, axes, list(first.output.plots))


def shard_indices(count: int, *, shard: tuple[int, int]) -> list[int]:
    """The cells of shard i of n: every n-th, so that neighbours, which cost alike, fall to different shards."""
    number, of = shard
    return list(range(number - 1, count, of))


def label(values: Values) -> str:
    """`model.revision=step200 operator.kind=ggn`."""
    return " ".join(f"{key}={_shown(value)}" for key, value in values.items())


def _without_paths(cells: list[CellRecipe]) -> list[CellRecipe]:
    """The cells with the ends of absolute paths in the place of them: tables and manifest name no machine's folders."""
    typed = {
        (key, v) for cell in cells for key, v in cell.values.items() if isinstance(v, str) and v.startswith(("/", "~"))
    }
    short: dict[tuple[str, str], str] = {}
    for key, _ in typed:
        parts = {value: PurePath(value).parts for other, value in typed if other == key}
        least = next((n for n in range(1, 99) if len({p[-n:] for p in parts.values()}) == len(parts)), 99)
        short |= {(key, value): "/".join(p[-least:]) for value, p in parts.items()}
    return [
        replace(
            cell, values={key: short.get((key, v), v) if isinstance(v, str) else v for key, v in cell.values.items()}
        )
        for cell in cells
    ]


def _axis(key: str, values: Sequence[Any]) -> Axis:
    distinct = list({same_as(value): value for value in values}.values())
    order = natural_order(distinct) if key in REVISIONS else range(len(distinct))
    return Axis(key=key, values=[distinct[i] for i in order])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else same_as(value)
