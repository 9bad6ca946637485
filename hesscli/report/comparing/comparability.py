"""Whether two measurements are of the same thing: same slice, same matrix, same settings."""

from collections.abc import Collection
from typing import Any

from hesscli.errors import UsageError
from hesscli.report.comparing.measured import Measured

_REMEDIES = {
    "data.fingerprint": "measure both on the same slice",
    "operator.kind": "measure both with the same --operator",
    "model.dtype": "measure both with the same --dtype",
    "estimator.seed": "measure both with the same --seed: it draws the Fisher matrix's labels, or b",
}


def check_comparable(base: Measured, new: Measured, *, field: str, across: Collection[str] = ()) -> list[str]:
    """Return what else differs, in lines for people.

    The model, its revision and how much was spent may differ. A setting that says what the figures are of must not,
    unless it is named in `across`. Raises UsageError, with `field` and the setting in front, on the first that does.
    """
    notes = []
    if base.status == "untrustworthy":
        raise UsageError(field, "the base is not trustworthy: it holds no figures", "measure it again")
    for key in sorted(set(base.settings) | set(new.settings)):
        ours, theirs = new.settings.get(key), base.settings.get(key)
        if ours == theirs or (key.startswith("estimator.") and base.command != new.command):
            continue
        if key not in across:
            remedy = _REMEDIES.get(key, f"measure both with the same {key}")
            where = f"{field}: {key}"
            raise UsageError(where, f"not comparable: {_said(theirs)} against {_said(ours)}", remedy)
        notes.append(f"{key}: {_said(theirs)} against {_said(ours)}")
    if not set(base.metrics) & set(new.metrics) and new.status != "untrustworthy":
        where = f"{field}: command"
        what = f"not comparable: {base.command} and {new.command} have no figure in common"
        raise UsageError(where, what, "measure both with the same command")
    for key in sorted(set(base.remarks) & set(new.remarks)):
        ours, theirs = new.remarks[key], base.remarks[key]
        if ours != theirs and key != "estimator.effective_dimension_damping":
            notes.append(f"{key}: {_said(theirs)} against {_said(ours)}")
    return notes


def unlike(base: Measured, new: Measured, metric: str) -> str | None:
    """Return why a single figure of two comparable measurements is not comparable; None where it is."""
    key = "estimator.effective_dimension_damping" if metric == "effective_dimension" else "estimator.by"
    if metric != "effective_dimension" and not metric.startswith("blocks."):
        return None
    ours, theirs = new.remarks.get(key), base.remarks.get(key)
    return None if ours == theirs else f"not comparable: {key} is {_said(theirs)} against {_said(ours)}"


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
