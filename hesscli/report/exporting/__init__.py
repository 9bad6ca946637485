"""Reports for other programs: long tables, CI, a monitor. Each text is made from reports alone."""

from collections.abc import Callable, Sequence

from hesscli.report.exporting.junit import junit
from hesscli.report.exporting.long import csv_text, jsonl_text, markdown_text
from hesscli.report.exporting.prometheus import prometheus
from hesscli.report.schema import Report

TEXTS: dict[str, Callable[[Sequence[Report]], str]] = {
    "csv": csv_text,
    "jsonl": jsonl_text,
    "md": markdown_text,
    "junit": junit,
    "prom": prometheus,
}
