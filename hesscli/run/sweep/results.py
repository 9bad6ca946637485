"""What a sweep leaves beside its manifest: verdicts, tables and figures over the cells that are done."""

from collections.abc import Sequence
from dataclasses import dataclass

from hesscli.errors import HessError, UsageError
from hesscli.events import OnEvent, Warned
from hesscli.report.comparing.measured import measured
from hesscli.report.document import write_report
from hesscli.report.figures.table import write_table
from hesscli.report.figures.together import draw_together
from hesscli.report.files import write_whole
from hesscli.report.gating.check import Check, Demand, OnInconclusive, check
from hesscli.report.sweep import Manifest, read_cells, report_file
from hesscli.report.trends.points import trend_of_sweep
from hesscli.report.trends.results import results_lines, results_markdown, results_table
from hesscli.run.sweep.ledger import Ledger
from hesscli.run.sweep.plan import Plan, shard_indices


@dataclass(frozen=True, slots=True)
class Gating:
    """What is demanded of every cell's report, and what an undecided verdict counts as."""

    demands: Sequence[Demand]
    policy: OnInconclusive


@dataclass(frozen=True, slots=True)
class Ending:
    """A sweep at its end: its manifest, and what its gates say."""

    manifest: Manifest
    judged: Check | None = None
    refused: UsageError | None = None
    """Why the gates could not be judged: a metric that a report does not have, or a baseline of something else."""


def write_results(
    plan: Plan, ledger: Ledger, *, shard: tuple[int, int], gating: Gating | None, on_event: OnEvent
) -> Ending:
    """Judge the shard's reports, and write tables and figures over the cells of all shards.

    A figure that cannot be drawn is a warning: the cells are measured.
    """
    folder = plan.folder
    judged, refused = None, None
    with ledger.changed() as manifest:
        if gating is not None:
            try:
                judged = _judge(manifest, ledger, shard, gating)
            except UsageError as error:
                refused = error
        trend = trend_of_sweep(manifest, read_cells(ledger.path, manifest))
        names = [write_table(results_table(trend), folder), "results.jsonl", "results.md"]
        write_whole(results_lines(trend), folder / "results.jsonl", field="sweep")
        write_whole(results_markdown(trend), folder / "results.md", field="sweep")
        try:
            names += draw_together(trend, folder, plan.plots)
        except (HessError, ValueError, OSError) as error:
            on_event(Warned("no_figure", f"the figures of the sweep cannot be drawn: {error}"))
        manifest.artifacts = names
    return Ending(manifest, judged, refused)


def _judge(manifest: Manifest, ledger: Ledger, shard: tuple[int, int], gating: Gating) -> Check | None:
    """One check of all reports together, so that more cells are no more false alarms; verdicts go into the reports."""
    cells = read_cells(ledger.path, manifest)
    mine = [cells[index] for index in shard_indices(len(cells), shard=shard)]
    reports = {path: r for c, r in mine if r is not None and (path := report_file(ledger.path, c)) is not None}
    if not reports:
        return None
    names = [(str(path), measured(report)) for path, report in reports.items()]
    outcome = check(names, gating.demands, on_inconclusive=gating.policy)
    for (path, report), found in zip(reports.items(), outcome.reports, strict=True):
        report.gates, report.verdict = found.gates, found.verdict
        write_report(report, path)
    for cell, own in mine:
        path = report_file(ledger.path, cell)
        cell.verdict = reports[path].verdict if own is not None and path is not None else None
    return outcome
