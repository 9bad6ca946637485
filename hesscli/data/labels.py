"""The class of a row: a number, or a name that the model knows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hesscli.data.notes import Note
from hesscli.data.values import describe
from hesscli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hesscli.data.rows import Row
    from hesscli.data.slice import Sequence
    from hesscli.data.source import Source
    from hesscli.data.task import Requirements

_SHOWN = 5  # names in one line of an error


@dataclass(frozen=True, slots=True)
class Labels:
    """From what a data set says of a row's class to the model's number for it.

    Numbers are the model's own, unless the data set has names for them that the model knows: then the names decide,
    because two sets of numbers for the same names need not agree.
    """

    column: str
    num_labels: int
    label2id: Mapping[str, int]
    names: tuple[str, ...]
    """The data set's name for each of its numbers, where it has any."""

    @property
    def by_name(self) -> bool:
        """Whether the data set's names decide."""
        return any(self._number(name) is not None for name in self.names)

    def _number(self, name: str) -> int | None:
        """The model's number for a name, written large or small where that leaves one name."""
        if name in self.label2id:
            return self.label2id[name]
        close = [number for known, number in self.label2id.items() if known.lower() == name.lower()]
        return close[0] if len(close) == 1 else None

    def target(self, number: int, row: Row) -> torch.Tensor:
        """The row's class as the target of its one position, (1,).

        Raises:
            UsageError: it is neither a number nor a name of one of the model's classes.
        """
        value = row.get(self.column)
        if type(value) is int and self.by_name and 0 <= value < len(self.names):
            value = self.names[value]
        if isinstance(value, str):
            found = self._number(value)
            if found is not None:
                return torch.tensor([found])
            names = sorted(self.label2id, key=self.label2id.__getitem__)
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            what = f"row {number} holds {value!r}, which is none of the model's labels"
            raise UsageError(self.column, what, f"give {', '.join(names[:_SHOWN])}{more}, or their numbers")
        if type(value) is not int:
            what = f"row {number} holds {describe(value)}, no label"
            raise UsageError(self.column, what, f"give a number from 0 to {self.num_labels - 1}, or a label's name")
        if not 0 <= value < self.num_labels:
            what = f"row {number} holds {value}, outside the model's {self.num_labels} labels"
            remedy = f"use numbers from 0 to {self.num_labels - 1}"
            raise UsageError(self.column, what, remedy + (", or a split that has labels" if value < 0 else ""))
        return torch.tensor([value])

    def notes(self, rows: Iterable[Sequence]) -> list[Note]:
        """What a reader must know: numbers without names in common, rows of one class only."""
        counts = Counter(int(row.targets[0]) for row in rows)
        found = []
        if self.names and not self.by_name:
            text = f"the names in {self.column!r} ({', '.join(self.names[:_SHOWN])}) are not the model's: numbers count"
            found.append(("labels-by-number", text))
        if len(counts) == 1 and counts.total() > 1:
            text = f"every row has label {next(iter(counts))}: the data set may be sorted by its labels"
            found.append(("one-label", text))
        return found


def find_labels(source: Source, model: Requirements, target_column: str | None) -> Labels:
    """The column of labels: as asked, else `label` or `labels`.

    Raises:
        UsageError: there is no such column.
    """
    wanted = [target_column] if target_column else ["label", "labels"]
    column = next((name for name in wanted if name in source.columns), None)
    if column is None:
        what = f"{wanted[0]!r} is not a column of {source.name} (it has: {', '.join(source.columns)})"
        raise UsageError("target_column", what, "name the column of labels with --target-column")
    return Labels(column, model.num_labels, model.label2id, source.class_names.get(column, ()))
