"""Metrics over the steps of a training, or over whatever else was varied, with their 95 % intervals."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hesscli.report.figures.table import Table
from hesscli.report.interval import arms
from hesscli.report.kernel import KERNEL
from hesscli.report.trends.derived import figures_of
from hesscli.report.trends.points import FIRST, Trend
from hesscli.report.words import KIND, amount, plural, thousands

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
LINES = ("-", "--", "-.", ":")
# Between 0 and 1, or nearly: a logarithmic axis would hide that.
SHARES = ("negative_mass", "relative_error", "cosine", "off_block_fraction")
# A range wider than this is drawn on a logarithmic axis.
WIDE = 20.0
_GAP = 0.16  # of the axis, between the last step and the values that have none
_TICKS = 8


def figure(trend: Trend) -> "Figure":
    """Return a panel for each key metric; the steps stand at their places, values without a step behind them."""
    from hesscli.report.figures.canvas import titled

    count = len(trend.metrics)
    columns = min(count, 3 if count > 4 else 2)
    rows = -(-count // columns)
    sheet = titled(title_lines(trend, "95 % intervals"), max(4.6 * columns, 6.4), 3.1 * rows + 0.9)
    panels = np.atleast_1d(sheet.subplots(rows, columns)).ravel()
    for axes, name in zip(panels, trend.metrics, strict=False):
        _panel(axes, trend, name)
    for axes in panels[count:]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == "no figure")
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    if len(trend.series) > 1 or "no figure" in labels:
        beside = panels[count] if count < len(panels) else panels[0]
        beside.legend(handles, labels, loc="center" if count < len(panels) else "best")
    return sheet


def tells(trend: Trend) -> bool:
    """Return whether there is something to draw: cells that differ in their kernels alone have one and the same."""
    return bool(trend.metrics) and (trend.x != KERNEL or len(trend.series) > 1)


def table(trend: Trend) -> Table:
    """Return a row a point and metric; what has no figure says why."""
    rows: list[list[float | int | str | bool | None]] = []
    for point in trend.points:
        place = trend.place(point)
        for name in trend.metrics:
            metric = None if point.report is None else figures_of(point.report).get(name)
            trusted = point.metric(name)
            low, high = trusted.ci if trusted is not None and trusted.ci is not None else (None, None)
            why = point.error if metric is None else metric.reason
            value = None if trusted is None else trusted.value
            tick = _tick(trend.ticks[place])
            rows.append([tick, trend.steps[place], trend.label(point), name, value, low, high, point.status, why])
    heads = [trend.x or "point", "step", "series", "metric", "value", "low", "high", "status", "reason"]
    return Table("trend", heads, rows)


def title_lines(trend: Trend, what: str) -> list[tuple[str, float, str, str]]:
    """Return the lines above the panels: what is varied, and what all reports share."""
    from hesscli.report.figures.canvas import BLACK, VERMILION

    reports = [point.report for point in trend.points if point.report is not None]
    over = f"over {trend.x}" if trend.x else f"({plural(len(trend.points), 'report')})"
    facts = [
        [KIND[r.operator.kind] for r in reports],
        [r.model.id for r in reports],
        [f"{thousands(r.model.num_selected)} parameters" for r in reports],
        [f"{amount(r)} of {r.data.id}" for r in reports],
        [r.model.dtype for r in reports],
    ]
    shared = [names[0] for names in facts if names and len(set(names)) == 1]
    lines = [(f"{trend.title} {over}", 12.5, "bold", BLACK), (" · ".join([*shared, what]), 9.0, "normal", "#444444")]
    odd = {word: sum(p.status == word for p in trend.points) for word in ("not_converged", "untrustworthy", "failed")}
    odd |= {"missing": sum(p.status in ("missing", "skipped") for p in trend.points)}
    said = ", ".join(f"{count} {word.replace('_', ' ')}" for word, count in odd.items() if count)
    if said:
        lines.append((f"of {plural(len(trend.points), 'cell')}: {said}", 9.0, "bold", VERMILION))
    return lines


def _panel(axes: "Axes", trend: Trend, name: str) -> None:
    from hesscli.report.figures.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

    colours = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
    places, scaled = _places(trend)
    for number, series in enumerate(trend.series):
        points = sorted((p for p in trend.points if trend.label(p) == series), key=trend.place)
        found = [(places[trend.place(p)], p, metric) for p in points if (metric := p.metric(name)) is not None]
        # Series stand a little beside each other, so that no interval hides another.
        aside = 0.014 * (number - (len(trend.series) - 1) / 2)
        colour, marker = colours[number % len(colours)], MARKERS[number % len(MARKERS)]
        stepped = [(x + aside, m.value or 0.0) for x, p, m in found if trend.steps[trend.place(p)] is not None]
        style: dict[str, Any] = {"color": colour, "ls": LINES[number % len(LINES)], "lw": 1.1, "alpha": 0.75}
        axes.plot([x for x, _ in stepped], [y for _, y in stepped], **style)
        for index, (x, point, metric) in enumerate(found):
            style = {"color": colour, "mfc": colour if point.status == "ok" else "white", "ms": 5}
            style["label"] = (series or "value") if index == 0 else None
            bar = arms(metric)
            if bar is None:  # no caps: not to be taken for an interval too small to be seen
                axes.plot(x + aside, metric.value or 0.0, marker, **style)
            else:
                ends = [[bar[0]], [bar[1]]]
                axes.errorbar(x + aside, metric.value or 0.0, ends, fmt=marker, capsize=3, elinewidth=1.2, **style)
        lost = [places[trend.place(p)] + aside for p in points if p.metric(name) is None]
        if lost:
            said = "no figure" in axes.get_legend_handles_labels()[1]
            cross: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "label": None if said else "no figure"}
            axes.plot(lost, [0.03] * len(lost), "x", color=GREY, clip_on=False, **cross)
    _scale(axes, trend, name)
    _ticks(axes, trend, places, scaled)
    axes.set_title(name)


def _places(trend: Trend) -> tuple[list[float], bool]:
    """Return where each tick stands on an axis from 0 to 1, and whether that is logarithmic."""
    known = [step for step in trend.steps if step is not None]
    if len(known) < 2:
        count = max(len(trend.ticks) - 1, 1)
        return [index / count if len(trend.ticks) > 1 else 0.5 for index in range(len(trend.ticks))], False
    smallest = min((step for step in known if step > 0), default=1.0)
    logarithmic = max(known) > WIDE * smallest
    # asinh takes step 0, and is the logarithm from the first step on.
    seen = [None if s is None else float(np.arcsinh(s / smallest)) if logarithmic else s for s in trend.steps]
    numbers = [u for u in seen if u is not None]
    without = [i for i, u in enumerate(seen) if u is None]
    end = 1 - _GAP * len(without) if len(without) < 4 else 0.5
    span = max(numbers) - min(numbers)
    places = [0.0 if u is None else end * (u - min(numbers)) / span for u in seen]
    for rank, index in enumerate(without, start=1):
        places[index] = end + (1 - end) * rank / len(without)
    return places, logarithmic


def _scale(axes: "Axes", trend: Trend, name: str) -> None:
    ends = []
    for point in trend.points:
        metric = point.metric(name)
        if metric is not None and metric.value is not None:
            ends += [metric.value, *(metric.ci or ())]
    if name not in SHARES and ends and min(ends) > 0 and max(ends) > WIDE * min(ends):
        axes.set_yscale("log")


def _ticks(axes: "Axes", trend: Trend, places: list[float], logarithmic: bool) -> None:
    from hesscli.report.figures.canvas import GREY

    axes.set_xlim(-0.07, 1.07)
    steps = [index for index, step in enumerate(trend.steps) if step is not None]
    every = -(-len(steps) // _TICKS) if steps else -(-len(places) // _TICKS)
    shown = [i for i in range(len(places)) if i not in steps or steps.index(i) % every == 0 or i == steps[-1]]
    if not steps:
        shown = [i for i in range(len(places)) if i % every == 0 or len(places) <= _TICKS]
    names = [_name(trend, index) for index in shown]
    turned = max(map(len, names), default=0) * len(names) > 44
    axes.set_xticks([places[i] for i in shown], names, rotation=25 if turned else 0, ha="right" if turned else "center")
    for index, place in enumerate(places):
        if steps and index not in steps and index == len(steps):
            between = (place + max(places[i] for i in steps)) / 2
            axes.axvline(between, color=GREY, lw=0.8, ls=":")
    kind = ", logarithmic" if logarithmic else ""
    axes.set_xlabel(f"{trend.x} (step{kind})" if steps and trend.x in FIRST else f"{trend.x}{kind}")


def _name(trend: Trend, index: int) -> str:
    step = trend.steps[index]
    if step is None:
        return str(_tick(trend.ticks[index]))
    return f"{int(step):,}" if step.is_integer() else f"{step:g}"


def _tick(value: Any) -> str | float | int | None:
    return value if isinstance(value, str | float | int | None) else str(value)
