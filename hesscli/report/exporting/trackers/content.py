"""What a tracker is told of a report: numbers by name, settings, and the step of the training."""

import re

from hesscli.report.exporting.rows import figures
from hesscli.report.schema import Report
from hesscli.report.words import headline

# Names of revisions that say where in a training they stand.
_STEP = re.compile(r"(?:global[_-]?)?(?:step|checkpoint|ckpt|iter(?:ation)?)[-_]?(\d+)([kKmM]?)(?![a-zA-Z\d])")
_SIZES = {"": 1, "k": 1_000, "m": 1_000_000}


def scalars(report: Report) -> dict[str, float]:
    """Return `NAME/value`, and `NAME/ci_low`, `NAME/ci_high`, `NAME/stderr` where the figure has them.

    A figure of a part has the part in front, as in `block/model.layers.0/trace/value`. What has no value is absent.
    """
    found: dict[str, float] = {}
    for scope, item, name, metric in figures(report):
        if metric.value is None:
            continue
        place = name if item is None else f"{scope}/{item}/{name}"
        found[f"{place}/value"] = metric.value
        if metric.ci is not None:
            found[f"{place}/ci_low"], found[f"{place}/ci_high"] = metric.ci
        if metric.stderr is not None:
            found[f"{place}/stderr"] = metric.stderr
    return found


def settings(report: Report) -> dict[str, str]:
    """Return what identifies the run, as words by name."""
    facts = {
        "run_id": report.run_id,
        "command": report.command,
        "status": report.status,
        "verdict": report.verdict,
        "model": report.model.id,
        "revision": report.model.revision,
        "commit": report.model.commit,
        "dtype": report.model.dtype,
        "operator": report.operator.kind,
        "product": report.operator.product,
        "dataset": report.data.id,
        "split": report.data.split,
        "tokens": report.data.tokens,
        "fingerprint": report.data.fingerprint,
        "hess": report.environment.get("hess"),
        **{f"estimator.{key}": value for key, value in report.estimator.items()},
    }
    return {key: str(value) for key, value in facts.items() if value is not None}


def name(report: Report) -> str:
    """Return a name for people."""
    return f"{headline(report)} {report.command}"


def training_step(report: Report) -> int:
    """Return the step that the revision's name tells, else 0."""
    found = _STEP.search(report.model.revision or "")
    return int(found[1]) * _SIZES[found[2].lower()] if found else 0
