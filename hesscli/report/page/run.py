"""The page of a run."""

from collections.abc import Mapping
from functools import partial

from hesscli.report.figures import drawings
from hesscli.report.page import provenance
from hesscli.report.page.drawing import inline
from hesscli.report.page.metrics import block_table, cards, metric_table, pair_table, system_table
from hesscli.report.page.parts import Notice, Page, Picture, Section
from hesscli.report.page.render import render
from hesscli.report.schema import Report
from hesscli.report.sentence import sentence
from hesscli.report.terminal import measured
from hesscli.report.words import distrust, headline, tied

_CAPTIONS = {
    "density": "Density of the eigenvalues, its outliers, the tails of both signs, and the cumulative distribution",
    "topk": "Eigenvalues at both ends of the spectrum, each with its bar",
    "blockdiag": "Relative error and cosine of each block, with 95 % intervals",
    "trace": "Trace of each diagonal block, with 95 % intervals",
    "solve": "Residuals by iteration: what the solver believes and what products of their own found",
    "coupling": "Coupling of the blocks: Frobenius norm of each block of the matrix over those of its diagonal blocks",
}
_PROBES = {
    "density": "Spectral density",
    "topk": "Largest and smallest eigenvalues",
    "trace": "Trace",
    "blockdiag": "Block-diagonal test",
    "solve": "Linear solve",
}
_STATUS = {"ok": "good", "not_converged": "unsure", "untrustworthy": "bad"}
_VERDICT = {
    "pass": ("good", "gates passed"),
    "fail": ("bad", "gates failed"),
    "inconclusive": ("unsure", "gates inconclusive"),
}


def run_page(
    report: Report,
    *,
    recipe: str | None = None,
    commands: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> str:
    """Return the page of a run as HTML.

    `recipe` is the YAML that replays it, `commands` lines to type by their captions, `files` addresses by name of what
    lies beside the report. Figures are drawn from the report; matplotlib is imported while they are.
    """
    there = files or {}
    page = Page(
        title=headline(report),
        kicker=f"{_PROBES[report.command]} · run {report.run_id}",
        finding=tied(sentence(report)),
        badges=badges(report),
        lines=[f"{report.model.class_name} · {measured(report)[0]}", *measured(report)[1:]],
        cards=cards(report) if report.status != "untrustworthy" else [],
        sections=[
            Section("figures", "Figures", pictures=pictures(report, there)),
            Section("metrics", "Metrics", tables=[metric_table(report)] if report.metrics else []),
            *_parts(report),
            provenance.warnings(report),
            provenance.gates(report),
            provenance.trust(report),
            provenance.measured(report),
            provenance.cost(report),
            provenance.settings(report, recipe=recipe, commands=commands or {}),
            Section("files", "Files", links=list(there.items())),
        ],
        footer=f"hess {report.environment.get('hess', '')} · {report.schema_} · run {report.run_id} · {report.created}",
    )
    return render(page)


def badges(report: Report) -> list[Notice]:
    """Return the status of the run, and the verdict of its gates where it has any."""
    words = "" if report.status == "ok" else report.status_text
    title = {"ok": "ok"}.get(report.status, distrust(report).partition(":")[0].lower())
    found = [Notice(_STATUS[report.status], title, words)]
    if report.verdict:
        kind, words = _VERDICT[report.verdict]
        found.append(Notice(kind, words, ""))
    return found


def pictures(report: Report, files: Mapping[str, str]) -> list[Picture]:
    """Return the figures of the report as inline drawings, each with the address of its CSV if `files` has it."""
    return [
        Picture(
            inline(partial(figure, report), name, _CAPTIONS[name]),
            _CAPTIONS[name],
            files.get(f"{name}.csv", ""),
        )
        for name, figure, _ in drawings(report)
    ]


def _parts(report: Report) -> list[Section]:
    sections = []
    if report.eigenpairs:
        sections.append(Section("eigenpairs", "Eigenpairs", tables=[pair_table(report)]))
    if report.blocks:
        table = block_table(report.blocks, "Blocks, with 95 % intervals.")
        sections.append(Section("blocks", "Blocks", tables=[table]))
    if report.diagonal is not None:
        lead = f"Every entry stands in {report.diagonal.file}, with its standard error."
        table = block_table(report.diagonal.tensors, "Mean entry of the diagonal, by parameter.")
        sections.append(Section("diagonal", "Diagonal", lead=lead, tables=[table]))
    if report.solve is not None:
        solve = report.solve
        lead = f"{solve.solver.upper()}, right-hand side: {solve.rhs}, tolerance {solve.tolerance:g}"
        lead += f", preconditioner: {solve.preconditioner}."
        sections.append(Section("systems", "Systems", lead=lead, tables=[system_table(solve)]))
    return sections
