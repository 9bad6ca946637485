"""Blocks as rows of a panel: long names, many blocks, a point or bar with its interval in each row."""

from typing import TYPE_CHECKING

from hesscli.report.schema import Metric, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST = 44


def height(count: int) -> float:
    """Return a figure height in inches that keeps `count` names apart."""
    return 2.1 + 0.24 * max(count, 4)


def labels(names: list[str]) -> tuple[list[str], str]:
    """Return short names and what was cut off their front: `layers.0` and `model.` for `model.layers.0`."""
    numbered = [name for name in names if any(part.isdigit() for part in name.split("."))]
    shared = []
    for words in zip(*(name.split(".") for name in numbered), strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    # The last shared word stays: it says what is numbered.
    prefix = "".join(f"{word}." for word in shared[:-1]) if len(numbered) > 1 else ""
    return [_middle_cut(name.removeprefix(prefix)) for name in names], prefix


def name_rows(axes: "Axes", report: Report) -> None:
    """Write the blocks' names down the vertical axis, first block on top, every other row shaded."""
    short, prefix = labels([block.name for block in report.blocks])
    for row in range(0, len(short), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", lw=0, zorder=0)
    axes.set_yticks(range(len(short)), short)
    axes.set_ylim(len(short) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylabel(f"block, without its leading “{prefix}”" if prefix else "block")


def column(report: Report, name: str) -> list[Metric | None]:
    """Return one metric of each block; None where a block has no such figure."""
    found = [block.metrics.get(name) for block in report.blocks]
    return [metric if metric is not None and metric.value is not None else None for metric in found]


def _middle_cut(name: str) -> str:
    if len(name) <= LONGEST:
        return name
    half = (LONGEST - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
