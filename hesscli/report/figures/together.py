"""The figures of many reports together, each with a table of its numbers beside it."""

from collections.abc import Sequence
from pathlib import Path

from hesscli.errors import UsageError
from hesscli.report.figures import FORMATS, overlay, trend
from hesscli.report.figures.table import write_table
from hesscli.report.trends.points import Trend


def draw_together(over: Trend, folder: Path, formats: Sequence[str]) -> list[str]:
    """Draw the trend of the metrics, and an overlay of the densities where there are two, into `folder`.

    Returns the names of the files written, none where there is nothing to draw. No formats, no files.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UsageError("plots", f"{unknown[0]!r} is not a format", f"choose from {', '.join(FORMATS)} or none")
    if not formats:
        return []
    from hesscli.report.figures.canvas import save, style

    names = []
    if trend.tells(over):
        with style():
            names += save(trend.figure(over), folder, "trend", formats)
        names.append(write_table(trend.table(over), folder))
    if len(overlay.drawable(over)) > 1:
        with style():
            names += save(overlay.figure(over), folder, "overlay", formats)
        names.append(write_table(overlay.table(over), folder))
    return names
