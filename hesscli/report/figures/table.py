"""The CSV beside a figure."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from hesscli.report.files import write_whole


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns of numbers and words; None is an empty cell."""

    name: str
    columns: list[str]
    rows: list[list[float | int | str | bool | None]]


def write_table(table: Table, folder: Path) -> str:
    """Write `<name>.csv` into the folder, whole or not at all, and return its name; numbers keep all their digits.

    Raises UsageError where it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([[cell(value) for value in row] for row in table.rows])
    write_whole(text.getvalue(), folder / f"{table.name}.csv", field="output.dir")
    return f"{table.name}.csv"


def cell(value: float | int | str | bool | None) -> str:
    """Return the text of a cell: every digit of a number, nothing for None."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(float(value))
    return "" if value is None else str(value)
