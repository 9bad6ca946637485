"""The cells of a sweep: every combination of the matrix, less `exclude`, plus `include`, as GitHub Actions has them.

https://docs.github.com/actions/using-jobs/using-a-matrix-for-your-jobs
"""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

Values = dict[str, Any]  # dotted path -> value
SWEEP_KEYS = ("matrix", "include", "exclude")


def _distinct(values: list[Any]) -> list[Any]:
    seen = [same_as(value) for value in values]
    twice = next((value for value, text in zip(values, seen, strict=True) if seen.count(text) > 1), None)
    if twice is not None:
        raise PydanticCustomError("twice", "a list without {value} twice", {"value": repr(twice)})
    return values


def _not_empty(values: Values) -> Values:
    if not values:
        raise PydanticCustomError("empty", "a mapping such as model.revision: main")
    return values


Matrix = dict[str, Annotated[list[Any], Field(min_length=1), AfterValidator(_distinct)]]
Cells = list[Annotated[Values, AfterValidator(_not_empty)]]


def same_as(value: Any) -> str:
    """A text that two values of YAML share where they are the same: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def combinations(
    matrix: Mapping[str, Sequence[Any]], *, include: Sequence[Values], exclude: Sequence[Values]
) -> list[Values]:
    """The cells, the last key of the matrix changing fastest, then what `include` adds, in its order.

    A cell is dropped where one mapping of `exclude` agrees with it in all of its keys. Then each mapping of `include`
    joins every cell whose values of the matrix it leaves as they are, and is a cell of its own where there is none.
    """
    keys = list(matrix)
    found = [dict(zip(keys, row, strict=True)) for row in product(*matrix.values())] if keys else []
    found = [cell for cell in found if not any(matches(cell, dropped) for dropped in exclude)]
    cells, more = [dict(cell) for cell in found], []
    for added in include:
        fixed = {key: value for key, value in added.items() if key in matrix}
        joined = [cell for cell, original in zip(cells, found, strict=True) if matches(original, fixed)]
        for cell in joined:
            cell.update(added)
        if not joined:
            more.append(dict(added))
    return cells + more


def matches(cell: Values, part: Values) -> bool:
    """Whether the cell has every key of `part`, with the same value."""
    return all(key in cell and same_as(cell[key]) == same_as(value) for key, value in part.items())
