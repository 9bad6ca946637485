"""The long form as text: CSV and JSON lines with every digit, and a Markdown table with those that count."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hesscli.report.exporting.rows import COLUMNS, rows
from hesscli.report.figures.table import cell
from hesscli.report.schema import Report
from hesscli.report.tables import metric_cells
from hesscli.report.words import headline

# What Markdown or the HTML in it would take for its own.
_SPECIAL = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_|[]~#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def csv_text(reports: Sequence[Report]) -> str:
    """Return a line of names and a line per figure; numbers keep all their digits, what is not there is empty.

    `n` reads `batches=8;probes=10`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for report in reports:
        for row in rows(report):
            values = asdict(row) | {"n": ";".join(f"{key}={count}" for key, count in sorted(row.n.items()))}
            writer.writerow([cell(values[name]) for name in COLUMNS])
    return text.getvalue()


def jsonl_text(reports: Sequence[Report]) -> str:
    """Return one JSON object a line and figure, null for what is not there."""
    found = [asdict(row) for report in reports for row in rows(report)]
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in found)


def markdown_text(reports: Sequence[Report]) -> str:
    """Return a table for people: a row per metric, rounded to what its error supports.

    A figure of a run that is not ok is marked so in its own row.
    """
    lines: list[Sequence[Any]] = []
    for report in reports:
        run = f"{report.command} {report.operator.kind}"
        if report.status != "ok":
            run += f", {report.status.replace('_', ' ')}"
        lines += [[headline(report), run, name, *metric_cells(metric)] for name, metric in report.metrics.items()]
        if not report.metrics:
            words = report.status_text or report.status.replace("_", " ")
            lines.append([headline(report), run, "none", "", "", words])
    head = ["model", "run", "metric", "value", "± 95 %", "main source of error"]
    rule = ["---", "---", "---", "---:", "---:", "---"]
    body = [[" ".join(str(text).split()).translate(_SPECIAL) for text in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *body])
