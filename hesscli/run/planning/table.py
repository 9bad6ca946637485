"""A plan in the terminal: what it is for, the ways it may run, and what to type."""

import re
from collections.abc import Mapping, Sequence
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hesscli.report.words import DASH, plural, thousands
from hesscli.run.planning.document import BlockSize, Plan, Way

_MOST = 24  # rows of blocks
_PARTS = ("weights", "vectors", "basis", "product", "of rows")  # what a total is made of
_SHORT = {"double-backward": "double backward", "finite-difference": "differences", "jacobian": "graph"}
_ANY = 1000  # columns: wider than any table
_NUMBER = re.compile(r"^(.*\.)(\d+)$")


def render(plan: Plan, console: Console) -> None:
    """Print the plan to the console; nothing is wider than it."""

    def line(text: str, style: str = "") -> None:
        for piece in wrap(text, console.width, break_long_words=False, break_on_hyphens=False):
            console.print(Text(piece, style=style), highlight=False)

    line(f"{plan.model.id}  {plan.model.class_name}", "bold")
    for text in _what(plan):
        line(text)
    for table in (_block_table(plan.blocks), *_way_tables(plan.ways, console)):
        console.print(Padding(table, (1, 0, 0, 0), expand=False))
    console.print()
    if plan.recommended is not None:
        line(f"recommended: {plan.recommended.why}")
        # Whole, to be pasted: a terminal breaks it where it must.
        console.print(Text(f"  {plan.recommended.command}", style="bold"), highlight=False, soft_wrap=True)
    for product in plan.uncounted:
        line(f"warning: {product.product} could not be counted: {product.reason}", "yellow")
    for note in plan.notes:
        line(f"note: {note}", "dim")


def plain(plan: Plan, *, width: int) -> str:
    """The table of ways as plain text, for an error's sake."""
    console = Console(width=width, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as captured:
        for table in _way_tables(plan.ways, console):
            console.print(table)
    return captured.get().rstrip("\n")


def _way_tables(ways: Sequence[Way], console: Console) -> list[Table]:
    """A row per placement and product: bytes on the fullest device, and whether they fit.

    Two tables where the console is too narrow for one: what a way comes to, and what its total is made of.
    """
    figures = _figures(ways)
    whole = _way_table(ways, figures, fits=True)
    if Measurement.get(console, console.options.update(max_width=_ANY), whole).maximum <= console.width:
        return [whole]
    parts = {name: figures.pop(name) for name in _PARTS if name in figures}
    return [_way_table(ways, figures, fits=True), _way_table(ways, parts, fits=False)]


def _figures(ways: Sequence[Way]) -> dict[str, list[str]]:
    """The cells of each column that has anything to say."""
    held = {
        "weights": [way.weights_bytes for way in ways],
        "vectors": [way.vectors_bytes for way in ways],
        "basis": [way.basis_bytes for way in ways],
        "product": [way.product_bytes or 0 for way in ways],
        "of rows": [way.activations_bytes or 0 for way in ways],
        "total": [way.total_bytes for way in ways],
        "host": [way.host_bytes + way.disk_bytes for way in ways],
    }
    found = {"rows": [str(way.batch_size) for way in ways]} if len({way.batch_size for way in ways}) > 1 else {}
    found["cost"] = [f"{way.gradients:.2g}" for way in ways]
    found |= {
        name: [size(count, unit="") for count in column]
        for name, column in held.items()
        if any(column) or name == "total"
    }
    more = [">" if way.product_bytes is None else "" for way in ways]
    found["total"] = [sign + total for sign, total in zip(more, found["total"], strict=True)]
    if any(way.seconds is not None for way in ways):
        found["time"] = [duration(way.seconds) for way in ways]
    return found


def _way_table(ways: Sequence[Way], figures: Mapping[str, Sequence[str]], *, fits: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("placement", "way"):
        table.add_column(name, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    if fits:
        table.add_column("fits", no_wrap=True)
    before = ""
    for i, way in enumerate(ways):
        place = way.placement if way.num_devices == 1 else f"{way.placement} x{way.num_devices}"
        name = "graph kept" if way.graph_kept else _SHORT.get(way.product, way.product)
        cells = ["" if place == before else place, name if way.exact else f"{name} *"]
        cells += [column[i] for column in figures.values()]
        verdict = [Text("yes") if way.fits else Text("NO", style="bold")] if fits else []
        table.add_row(*map(Text, cells), *verdict)
        before = place
    return table


def size(count: int, *, unit: str = "iB") -> str:
    """Return bytes with three digits, in powers of 1024: `16.4 GiB`, or `16.4G` with no `unit`; a dash for none."""
    if not count:
        return DASH
    for letter, power in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if count >= 0.9995 * (1 << power):
            value = count / (1 << power)
            digits = f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"
            return f"{digits} {letter}{unit}" if unit else f"{digits}{letter}"
    return f"{count} B" if unit else str(count)


def duration(seconds: float | None) -> str:
    """Return `12 s`, `3.5 min` or `7.2 h`."""
    if seconds is None:
        return DASH
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _what(plan: Plan) -> list[str]:
    model, data, devices = plan.model, plan.data, plan.devices
    of = f" of {thousands(model.num_parameters)}" if model.num_selected != model.num_parameters else ""
    active = "" if model.active_parameters == model.num_parameters else f", {thousands(model.active_parameters)} active"
    layers = f", {plural(model.num_layers, 'layer')}" if model.num_layers else ""
    batches = f"{plural(data.num_batches, 'batch')[:-1]}es" if data.num_batches != 1 else "1 batch"
    found = "free here" if devices.found else "as given"
    host = "" if devices.host_bytes is None else f", host {size(devices.host_bytes)}"
    gradient = plan.gradient
    return [
        f"{thousands(model.num_selected)}{of} parameters{active}{layers}, {model.dtype}; weights "
        f"{size(model.weights_bytes)}, a vector {size(model.vector_bytes)}",
        f"{plan.command}: at most {plural(plan.estimator['matvecs'], 'product')} on {plural(data.sequences, 'row')} "
        f"of {data.length} positions, in {batches} of {data.batch_size}",
        f"a gradient: {gradient.teraflops:.3g} Tflop; of a batch it saves {size(gradient.activations_bytes)}, and its "
        f"scores are {size(gradient.scores_bytes)} ({size(gradient.score_chunk_bytes)} at a time)",
        f"{plural(devices.count, 'device')} of {size(devices.bytes_each)} {found}{host}",
    ]


def _block_table(blocks: Sequence[BlockSize]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("block", overflow="fold")
    table.add_column("parameters", justify="right")
    rows = _together(blocks)
    for name, count in rows[:_MOST]:
        table.add_row(Text(name), Text(count))
    if len(rows) > _MOST:
        table.add_row(Text(f"and {len(rows) - _MOST} more in --json"), Text(""))
    return table


def _together(blocks: Sequence[BlockSize]) -> list[tuple[str, str]]:
    """Neighbours of one size whose names count up, in one row."""
    runs: list[list[BlockSize]] = []
    for block in blocks:
        if runs and _follows(runs[-1][-1], block):
            runs[-1].append(block)
        else:
            runs.append([block])
    rows = []
    for run in runs:
        first, count = run[0], thousands(run[0].num_parameters)
        last = _NUMBER.match(run[-1].name)
        if len(run) == 1 or last is None:
            rows.append((first.name, count))
        else:
            rows.append((f"{first.name}..{last[2]}", f"{len(run)} x {count}"))
    return rows


def _follows(before: BlockSize, after: BlockSize) -> bool:
    a, b = _NUMBER.match(before.name), _NUMBER.match(after.name)
    if a is None or b is None or before.num_parameters != after.num_parameters:
        return False
    return a[1] == b[1] and int(b[2]) == int(a[2]) + 1
