"""What a run's page says of where its figures come from: product, self-tests, cost, environment, recipe."""

from collections.abc import Mapping
from typing import Any

from hesscli.report.page.parts import Cell, Code, Column, Notice, Section, Table
from hesscli.report.rounding import significant, with_error
from hesscli.report.schema import Report
from hesscli.report.words import DASH, KIND, plural, thousands

_TESTS = {
    "symmetry": ("u.Hv against v.Hu", "how far the product is from symmetric"),
    "repeat": ("the same product twice", "its noise floor"),
    "linearity": ("H(au + bv) against aHu + bHv", "how far it is from linear"),
    "known_answer": ("a product known from a symmetry of the network", "its error along it, on these weights"),
    "rounding": ("products against the same in a wider dtype", "what their arithmetic does to them"),
    "rounding_at_ends": ("the same towards the ends of the spectrum", "what it does to extreme eigenvalues"),
    "slope": ("the gradient against differences of the loss", "good to 0.01, in float64 to 1e-6"),
    "curvature": ("the product against differences", "good to 0.01, in float64 to 1e-6"),
}
_VERDICTS = {"pass": "good", "fail": "bad", "inconclusive": "unsure"}


def gates(report: Report) -> Section:
    """Return the assertions with their verdicts."""
    rows = [
        [Cell(g.expr), Cell(g.verdict, look=_VERDICTS[g.verdict]), Cell(g.text, look="words")] for g in report.gates
    ]
    columns = [Column("gate"), Column("verdict"), Column("why")]
    return Section("gates", "Gates", tables=[Table("Assertions on this run.", columns, rows)] if rows else [])


def warnings(report: Report) -> Section:
    """Return what a reader of the figures must know."""
    notices = [
        Notice("unsure", warning.code.replace("_", " ").replace("-", " "), warning.text) for warning in report.warnings
    ]
    return Section("warnings", "Warnings", notices=notices)


def measured(report: Report) -> Section:
    """Return model, data and operator as facts."""
    model, data, operator = report.model, report.data, report.operator
    facts: dict[str, Any] = {
        "model": model.id,
        "revision": model.revision,
        "commit": model.commit,
        "stands in": model.base,
        "class": model.class_name,
        "task": model.task,
        "parameters": f"{thousands(model.num_selected)} of {thousands(model.num_parameters)}",
        "weights": f"{model.dtype}, {'tied' if model.tied else 'not tied'}, attention {model.attention}",
        "weights SHA-256": model.weights_sha256,
        "data": " ".join(filter(None, [data.id, data.config_name, data.split])),
        "data revision": data.revision,
        "column": data.column,
        "slice": f"{plural(data.sequences, 'sequence')}, {thousands(data.tokens)} tokens, "
        f"{thousands(data.loss_terms)} loss terms, at most {thousands(data.max_length)} long, "
        f"{'packed' if data.packed else 'not packed'}",
        "fingerprint": data.fingerprint,
        "loss": _loss(report),
        "matrix": KIND[operator.kind],
        "product": f"{operator.product}: {operator.why}",
        "taken": ", ".join(operator.params),
        "left out": ", ".join(operator.exclude),
        "placement": f"{operator.placement}, {plural(operator.batch_size, 'sequence')} a batch",
        "difference steps": None if operator.steps is None else f"{operator.steps[0]:.2g} to {operator.steps[1]:.2g}",
    }
    return Section("measured", "What was measured", facts=_facts(facts))


def trust(report: Report) -> Section:
    """Return the self-tests of the product on these weights."""
    found = report.operator.preflight.model_dump()
    rows = []
    for name, size in found.items():
        what, meant = _TESTS.get(name, (name.replace("_", " "), ""))
        if isinstance(size, float | int | None):
            text = "does not apply" if size is None else f"{size:.1e}" if size else "0"
            rows.append(
                [
                    Cell(what),
                    Cell(text, "" if size is None else size, look="faint" if size is None else ""),
                    Cell(meant),
                ]
            )
    columns = [Column("self-test"), Column("relative error", numeric=True), Column("what it says")]
    table = Table("Before the run, on this checkpoint and slice.", columns, rows)
    facts: dict[str, Any] = {"error of the differences": report.operator.error_estimate}
    return Section("trust", "Self-tests of the product", tables=[table], facts=_facts(facts))


def cost(report: Report) -> Section:
    """Return what the run spent and what it ran on."""
    spent = report.cost
    facts: dict[str, Any] = {
        "products": thousands(spent.matvecs),
        "time": seconds(report.seconds),
        "a product": None if spent.seconds_per_matvec is None else seconds(spent.seconds_per_matvec),
        "a gradient": None if spent.gradient_seconds is None else seconds(spent.gradient_seconds),
        **{f"peak memory, {device}": f"{size / 2**30:.2f} GiB" for device, size in spent.peak_bytes.items()},
        **report.environment,
    }
    return Section("cost", "Cost and environment", facts=_facts(facts))


def settings(report: Report, *, recipe: str | None, commands: Mapping[str, str]) -> Section:
    """Return the estimator's settings, the recipe, and what to type to measure the same again."""
    codes = [Code(caption, text) for caption, text in commands.items()]
    codes += [Code("recipe.yaml", recipe.rstrip())] if recipe else []
    return Section("recipe", "Measure it again", facts=_facts(report.estimator), codes=codes)


def seconds(value: float) -> str:
    """Return a duration in the unit that suits it."""
    if value < 1:
        return f"{significant(1000 * value, 2)} ms"
    if value < 120:
        return f"{significant(value, 3)} s"
    hours, rest = divmod(round(value / 60), 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"


def _loss(report: Report) -> str:
    loss = report.loss
    if loss.value is None:
        return loss.reason or DASH
    return f"{with_error(loss.value, None if loss.stderr is None else 1.96 * loss.stderr)}, {loss.normalisation}"


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), _plain(value)) for name, value in facts.items() if value not in (None, "", [], {})]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)
