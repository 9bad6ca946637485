"""One run: recipe in, report and figures in a run folder out."""

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from hesscli import __version__
from hesscli.curvature.choice import Choice, choose_operator
from hesscli.curvature.preflight import Preflight, check_product
from hesscli.curvature.risk import EmpiricalRisk, LossValue
from hesscli.errors import UntrustworthyError, UsageError
from hesscli.events import Event, Finished, Noted, OnEvent, Started, Warned
from hesscli.recipe import Recipe
from hesscli.recipe.document import dump
from hesscli.report import schema
from hesscli.report.document import read_report, write_report
from hesscli.report.figures import draw
from hesscli.run.environment import environment, exact_arithmetic, keep_freed_pages, peak_bytes
from hesscli.run.faults import as_hess_error
from hesscli.run.folder import check_writable, part_folder, run_folder, run_hash
from hesscli.run.measure import Findings, estimator_settings, measure
from hesscli.run.observed import ObservedOperator
from hesscli.run.setup import Subject, build_subject


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run and where it lies; `fresh` is False where an equal run was there already."""

    report: schema.Report
    folder: Path
    fresh: bool


class _Listener:
    """Passes events on and keeps the warnings for the report."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self.warnings: list[schema.Warning_] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warnings.append(schema.Warning_(code=event.code, text=event.text))
        self._on_event(event)


def run(recipe: Recipe, *, force: bool, on_event: OnEvent) -> Outcome:
    """Run a recipe, or return the report of an equal run that is finished already, unless `force`.

    The folder appears whole or not at all. A product that is not finite, or fails its self-test, still gives
    a report, with the status `untrustworthy` and no metric.

    Raises UsageError, UnavailableError or DoesNotFitError.
    """
    start = time.perf_counter()
    listener = _Listener(on_event)
    root = Path(recipe.output.dir)
    check_writable(root)
    exact_arithmetic()
    keep_freed_pages()
    with as_hess_error():
        subject = build_subject(recipe, on_event=listener)
    run_id = run_hash(_facts(recipe, subject))
    identity = subject.checkpoint.identity
    final = run_folder(root, model=identity.id, revision=identity.revision, probe=recipe.probe, run_id=run_id)
    if (final / "report.json").exists() and not force:
        on_event(Noted("an equal run is there already; --force measures again"))
        return Outcome(_read_again(final), final, fresh=False)
    with as_hess_error(), part_folder(final) as part:
        report = _measured(recipe, subject, run_id, listener, start)
        report.artifacts = draw(report, part, recipe.output.plots)
        (part / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
        report.seconds = time.perf_counter() - start
        write_report(report, part / "report.json")
    return Outcome(report, final, fresh=True)


def _read_again(final: Path) -> schema.Report:
    try:
        return read_report(final / "report.json")
    except UsageError as error:
        raise UsageError("output.dir", f"{final.name}/report.json: {error.what}", "--force measures again") from error


def _facts(recipe: Recipe, subject: Subject) -> dict[str, object]:
    """Everything that determines the figures."""
    identity = subject.checkpoint.identity
    return {
        "hess": __version__,
        "weights": identity.weights_sha256,
        "class": identity.class_name,
        "dtype": identity.dtype,
        "attention": identity.attention,
        "data": subject.data.fingerprint,
        "probe": recipe.probe,
        "kind": recipe.operator.kind,
        "product": recipe.operator.product,
        "parameters": list(subject.risk.space.names),
        "estimator": estimator_settings(recipe),
    }


def _measured(recipe: Recipe, subject: Subject, run_id: str, listener: _Listener, start: float) -> schema.Report:
    choice = choose_operator(
        subject.risk, kind=recipe.operator.kind, product=recipe.operator.product, seed=recipe.estimator.seed
    )
    listener(Noted(f"{choice.product}: {choice.why}"))
    operator = ObservedOperator(choice.operator, subject.risk.space)
    findings = Findings(estimator_settings(recipe))
    preflight: Preflight | None = None
    loss = LossValue(float("nan"), None)
    gradient_seconds = None
    try:
        listener(Started("preflight", None))
        loss = subject.risk.loss()
        preflight = check_product(
            operator, subject.risk, semi_definite=recipe.operator.kind != "hessian", seed=recipe.estimator.seed
        )
        gradient_seconds = _time_gradient(subject.risk)
        listener(Finished("preflight"))
        operator.seconds, warm_up = 0.0, operator.num_matvecs
        findings = measure(recipe, subject, operator, preflight, on_event=listener)
        timed = operator.num_matvecs - warm_up
    except (UntrustworthyError, FloatingPointError) as error:
        timed = 0
        findings.status, findings.status_text = "untrustworthy", str(error)
    return schema.Report(
        status=findings.status,
        status_text=findings.status_text,
        command=recipe.probe,
        run_id=run_id,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - start,
        model=_model(subject),
        data=_data(subject),
        loss=_loss(loss),
        operator=_operator(recipe, subject, choice, preflight),
        estimator=findings.estimator,
        metrics=findings.metrics,
        eigenpairs=findings.eigenpairs,
        spectrum=findings.spectrum,
        blocks=findings.blocks,
        coupling=findings.coupling,
        cost=schema.Cost(
            matvecs=operator.num_matvecs,
            seconds_per_matvec=operator.seconds / timed if timed else None,
            gradient_seconds=gradient_seconds,
            peak_bytes=peak_bytes(),
        ),
        environment=environment(subject.checkpoint.input_device),
        warnings=listener.warnings,
    )


def _time_gradient(risk: EmpiricalRisk) -> float:
    begun = time.perf_counter()
    gradient = risk.gradient()
    risk.space.norm(gradient)  # waits for the device
    return time.perf_counter() - begun


def _model(subject: Subject) -> schema.Model:
    identity = subject.checkpoint.identity
    return schema.Model(
        id=identity.id,
        revision=identity.revision,
        commit=identity.commit,
        weights_sha256=identity.weights_sha256,
        class_name=identity.class_name,
        num_parameters=identity.num_parameters,
        num_selected=subject.risk.space.dimension,
        dtype=identity.dtype,
        attention=identity.attention,
        tied=identity.tied,
    )


def _data(subject: Subject) -> schema.Data:
    data = subject.data
    return schema.Data(
        id=data.id,
        split=data.split,
        config_name=data.config_name,
        revision=data.revision,
        column=data.column,
        sequences=len(data.sequences),
        tokens=data.num_tokens,
        loss_terms=data.num_terms,
        max_length=data.max_length,
        packed=data.packed,
        fingerprint=data.fingerprint,
    )


def _loss(loss: LossValue) -> schema.Loss:
    finite = loss.value == loss.value and abs(loss.value) != float("inf")
    if not finite:
        return schema.Loss(value=None, reason="the loss on the slice is not finite")
    return schema.Loss(value=loss.value, stderr=loss.stderr)


def _operator(recipe: Recipe, subject: Subject, choice: Choice, preflight: Preflight | None) -> schema.Operator:
    tests = schema.Preflight()
    if preflight is not None:
        tests = schema.Preflight(
            symmetry=preflight.symmetry,
            repeat=preflight.repeat,
            linearity=preflight.linearity,
            known_answer=preflight.known_answer,
        )
    return schema.Operator(
        kind=recipe.operator.kind,
        product=choice.product,
        why=choice.why,
        params=recipe.operator.params,
        exclude=recipe.operator.exclude,
        placement=subject.checkpoint.placement,
        batch_size=subject.batch_size,
        preflight=tests,
    )
