"""What a comparison needs of a report, and nothing else: also the file that a baseline is kept in."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from hesscli.errors import UsageError
from hesscli.report.document import dumps, read_object, read_report, validated
from hesscli.report.files import write_whole
from hesscli.report.schema import SCHEMA, Metric, Part, Report, Samples, Status

BASELINE: Literal["hess.baseline/1"] = "hess.baseline/1"

# What only says how well a figure is known differs freely; these say which figure it is.
_SETTINGS = {
    "blockdiag": ("by", "blocks"),
    "solve": ("damping", "rhs"),
}


class Identity(Part):
    """Which weights, and which run."""

    id: str
    revision: str | None = None
    commit: str | None = None
    weights_sha256: str | None = None
    run_id: str


class Measured(Part):
    """Figures with their errors, and what must agree before two of them are compared.

    As a file it is a baseline: unlike the report it is short, and all of it that changes with a new measurement is
    figures, so that a person can read the change in a diff.
    """

    schema_: Annotated[Literal["hess.baseline/1"], Field(alias="schema")] = BASELINE
    command: str
    status: Status
    status_text: str = ""
    model: Identity
    settings: dict[str, Any]
    """By the report's own paths: what must be the same."""
    remarks: dict[str, Any]
    """What may differ, and is said where it does."""
    draws: dict[str, Any]
    """What determines the random vectors. Two runs that agree in all of it drew the same."""
    metrics: dict[str, Metric]
    """`lambda_max`, and `blocks.NAME.trace` for what was measured of a block."""
    samples: dict[str, Samples] = Field(default_factory=dict)

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        content = _without_none(handler(self))
        content["samples"] = {
            name: {of: draws for of, draws in sample.items() if draws} for name, sample in content["samples"].items()
        }
        return content


def measured(report: Report) -> Measured:
    """Return what a comparison needs of the report."""
    blocks = {f"blocks.{b.name}.{name}": metric for b in report.blocks for name, metric in b.metrics.items()}
    identity = report.model.model_dump(include={"id", "revision", "commit", "weights_sha256"})
    return Measured(
        command=report.command,
        status=report.status,
        status_text=report.status_text,
        model=Identity(**identity, run_id=report.run_id),
        settings=_settings(report),
        remarks=_remarks(report),
        draws=_draws(report),
        metrics=report.metrics | blocks,
        samples=report.samples,
    )


def read_measured(path: str | Path, *, field: str) -> Measured:
    """Return what is in a report, a run folder, or a baseline file.

    Raises UsageError with `field` in front where it is none of them.
    """
    path = report_path(path)
    if not path.exists():
        raise UsageError(field, f"no such file: {path}", "give the path of a report.json, or of a baseline")
    if _schema(path) == SCHEMA:
        return measured(read_report(path))
    remedy = "write it again with --update-baseline"
    content = read_object(path, field=field, name="baseline.json", version=BASELINE, remedy=remedy)
    return validated(content, Measured, field=field, remedy=remedy)


def write_baseline(found: Measured, path: Path) -> None:
    """Write the baseline to `path`, whole or not at all.

    Raises UsageError where it cannot be written.
    """
    write_whole(dumps(found), path, field="baseline")


def report_path(path: str | Path) -> Path:
    """Return the report's own path where that of its run folder is given."""
    path = Path(path)
    return path / "report.json" if path.is_dir() else path


def headline(found: Measured) -> str:
    """Return `MODEL@REVISION`."""
    return f"{found.model.id}@{found.model.revision}" if found.model.revision else found.model.id


def _schema(path: Path) -> object:
    """Return the schema that a file names; None where it cannot be told."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content.get("schema") if isinstance(content, dict) else None


def _without_none(value: Any) -> Any:
    """Leave out what was not measured; a figure without a value says so."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if item is not None or key == "value"}
        return {key: _without_none(item) for key, item in kept.items()}
    return value


def _settings(report: Report) -> dict[str, Any]:
    out: dict[str, Any] = {
        "data.fingerprint": report.data.fingerprint,
        "loss.normalisation": report.loss.normalisation,
        "model.task": report.model.task,
        "model.dtype": report.model.dtype,
        "operator.kind": report.operator.kind,
        "operator.params": report.operator.params,
        "operator.exclude": report.operator.exclude,
    }
    for key in _SETTINGS.get(report.command, ()):
        if key in report.estimator:
            out[f"estimator.{key}"] = report.estimator[key]
    # The seed draws a Fisher matrix's labels, and a random right-hand side: another seed is another matrix or system.
    if report.operator.kind == "fisher" or report.estimator.get("rhs") == "random":
        out["estimator.seed"] = report.estimator.get("seed")
    return out


def _remarks(report: Report) -> dict[str, Any]:
    out = {"operator.product": report.operator.product, "environment.hess": report.environment.get("hess")}
    if report.command == "trace":
        out["estimator.by"] = report.estimator.get("by", report.estimator.get("blocks"))
    if "effective_dimension_damping" in report.estimator:
        out["estimator.effective_dimension_damping"] = report.estimator["effective_dimension_damping"]
    return {key: value for key, value in out.items() if value is not None}


def _draws(report: Report) -> dict[str, Any]:
    keys = ("seed", "probes", "steps", "method", "by", "blocks", "reorthogonalise", "basis_dtype")
    out = {key: report.estimator[key] for key in keys if key in report.estimator}
    model = {"class": report.model.class_name, "num_selected": report.model.num_selected}
    return {"command": report.command, **model, "batch_size": report.operator.batch_size, **out}
