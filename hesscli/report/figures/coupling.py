"""The heat map of coupling: how strongly blocks act on each other, each pair scaled by its own blocks."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hesscli.report.figures.rows import labels
from hesscli.report.figures.table import Table
from hesscli.report.schema import Coupling, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LETTER = 0.067  # inches, of a name at eight points


def figure(report: Report) -> "Figure":
    """Return the heat map of ||H_ab|| / sqrt(||H_aa|| ||H_bb||); numbers in the cells while they fit."""
    from hesscli.report.figures.canvas import sheet

    coupling = _coupling(report)
    scaled = relative(coupling)
    count = len(coupling.blocks)
    short, _ = labels(coupling.blocks)
    names = _LETTER * max(map(len, short))
    side = 1.9 + 0.26 * max(count, 8) + names
    sheet_ = sheet(report, side + 1.1, side + 0.9)
    axes = sheet_.subplots()
    axes.grid(visible=False)
    top = max(1.0, float(np.nanmax(scaled)))
    image = axes.imshow(scaled, cmap="cividis", vmin=0, vmax=top)
    axes.set_xticks(range(count), short, rotation=90)
    axes.set_yticks(range(count), short)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    if count <= 16:
        for row, column in np.ndindex(count, count):
            shade = "white" if scaled[row, column] < 0.55 * top else "black"
            axes.text(column, row, f"{scaled[row, column]:.2f}", ha="center", va="center", fontsize=7, color=shade)
    axes.set_title(f"Coupling of blocks\n(standard errors up to {_largest_error(coupling):.1g})")
    sheet_.colorbar(
        image,
        ax=axes,
        shrink=0.85,
        label=r"$\Vert H_{ab} \Vert \;/\; \sqrt{\Vert H_{aa} \Vert \, \Vert H_{bb} \Vert}$" + "\nFrobenius norms",
    )
    return sheet_


def relative(coupling: Coupling) -> npt.NDArray[np.float64]:
    """Return each norm over the geometric mean of its two diagonal blocks; 1 on the diagonal."""
    return _scaled(coupling, coupling.frobenius)


def table(report: Report) -> Table:
    """Return a row per pair of blocks."""
    coupling = _coupling(report)
    scaled = relative(coupling)
    rows: list[list[float | int | str | bool | None]] = [
        [
            one,
            other,
            coupling.frobenius[row][column],
            coupling.stderr[row][column],
            float(scaled[row, column]) if np.isfinite(scaled[row, column]) else None,
        ]
        for row, one in enumerate(coupling.blocks)
        for column, other in enumerate(coupling.blocks)
    ]
    return Table("coupling", ["block", "other_block", "frobenius", "stderr", "relative"], rows)


def _largest_error(coupling: Coupling) -> float:
    """Return the largest standard error off the diagonal, where the ratio is not 1 by its making."""
    errors = _scaled(coupling, coupling.stderr)
    off = errors[~np.eye(len(errors), dtype=bool)]
    return float(np.nanmax(off)) if np.isfinite(off).any() else 0.0


def _scaled(coupling: Coupling, norms: list[list[float]]) -> npt.NDArray[np.float64]:
    own = np.sqrt(np.diag(np.asarray(coupling.frobenius, dtype=np.float64)))
    scales = np.outer(own, own)
    return np.divide(np.asarray(norms), scales, out=np.full_like(scales, np.nan), where=scales > 0)


def _coupling(report: Report) -> Coupling:
    if report.coupling is None:
        msg = "a heat map needs coupling"
        raise ValueError(msg)
    return report.coupling
