"""The text format of Prometheus, for the textfile collector of its node exporter.

https://prometheus.io/docs/instrumenting/exposition_formats: HELP and TYPE once before the samples of a name, which
stand together; backslash, quote and line feed escaped in labels. No time stamps: the collector refuses them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from hesscli.errors import UsageError
from hesscli.report.exporting.rows import figures
from hesscli.report.glossary import meaning
from hesscli.report.schema import Report

Labels = Mapping[str, str]
Sample = tuple[str, str, Labels, float]
"""Name, help, labels, value."""

_SCOPES = {"block": "block", "parameter": "parameter", "eigenpair": "index", "damping": "damping"}


def prometheus(reports: Sequence[Report]) -> str:
    """Return gauges `hess_NAME`; the ends of the interval and the standard error as `_ci_low`, `_ci_high`, `_stderr`.

    Labels: model, revision, operator, dataset, probe; for a figure of a part also block, parameter, index or damping. A
    figure without a value has no sample. `hess_run_ok` is 0 for a run that has not converged or cannot be trusted.

    Raises UsageError where two reports give the same series: which of them would be stored is chance.
    """
    families: dict[str, tuple[str, dict[str, float]]] = {}
    owners: dict[str, Report] = {}
    for report in reports:
        for name, words, labels, value in _samples(report):
            samples = families.setdefault(name, (words, {}))[1]
            series = f"{name}{{{_pairs(labels)}}}"
            if series in samples:
                _refuse(owners[series], report)
            samples[series], owners[series] = value, report
    lines = []
    for name, (words, samples) in families.items():
        lines += [f"# HELP {name} {_escaped_help(words)}", f"# TYPE {name} gauge"]
        lines += [f"{series} {value!r}" for series, value in samples.items()]
    return "".join(f"{line}\n" for line in lines)


def _samples(report: Report) -> Iterator[Sample]:
    labels = {
        "model": report.model.id,
        "revision": report.model.revision or report.model.commit or "",
        "operator": report.operator.kind,
        "dataset": report.data.id,
        "probe": report.command,
    }
    for scope, item, name, metric in figures(report):
        if metric.value is None:
            continue
        part = {} if item is None else {_SCOPES[scope]: item}
        full = f"hess_{'' if scope in ('model', 'eigenpair') else scope + '_'}{re.sub(r'[^a-zA-Z0-9_]', '_', name)}"
        words = meaning(name) + ("" if scope == "model" else f", by {_SCOPES[scope]}")
        yield full, words, {**labels, **part}, float(metric.value)
        if metric.ci is not None:
            level = f"{100 * metric.level:g} % interval of {full}"
            # The labels are those of the value, so that a rule can subtract one from the other.
            yield f"{full}_ci_low", f"lower end of the {level}", {**labels, **part}, metric.ci[0]
            yield f"{full}_ci_high", f"upper end of the {level}", {**labels, **part}, metric.ci[1]
        if metric.stderr is not None:
            yield f"{full}_stderr", f"standard error of {full}", {**labels, **part}, metric.stderr
    for gate in report.gates:
        words = "verdict of a gate: 1 pass, 0 fail, -1 inconclusive"
        found = {"pass": 1.0, "fail": 0.0, "inconclusive": -1.0}[gate.verdict]
        yield "hess_gate", words, {**labels, "expr": gate.expr}, found
    yield "hess_run_ok", "1 if the run is ok, 0 if its figures cannot be trusted", labels, float(report.status == "ok")
    if (measured := _seconds(report.created)) is not None:
        yield "hess_run_measured_timestamp_seconds", "when the run was measured, Unix time", labels, measured
    yield "hess_run_seconds", "how long the run took", labels, report.seconds
    yield "hess_run_matvecs", "products with the matrix", labels, float(report.cost.matvecs)


def _pairs(labels: Labels) -> str:
    return ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())


def _refuse(one: Report, other: Report) -> None:
    what = f"runs {one.run_id} and {other.run_id} give the same series: {one.command} of {one.model.id}"
    raise UsageError("report", what, "export one of them")


def _seconds(created: str) -> float | None:
    try:
        return datetime.fromisoformat(created.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _escaped(text: str) -> str:
    return _escaped_help(text).replace('"', '\\"')


def _escaped_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
