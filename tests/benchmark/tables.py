"""Markdown tables on stdout."""

import sys


def write_row(values):
    sys.stdout.write(f"| {' | '.join(values)} |\n")


def write_table(columns, rows, legend):
    """A table and under it its legend, a line each."""
    write_row(columns)
    write_row(["---"] * len(columns))
    for row in rows:
        write_row(row)
    sys.stdout.write("\n")
    for line in legend:
        sys.stdout.write(f"- {line}\n")
    sys.stdout.write("\n")
    sys.stdout.flush()
