"""One run: recipe in, report and figures in a run folder out."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from hesscli import __version__
from hesscli.curvature.choice import Choice, choose_operator
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.differences.kinks import find_kinks
from hesscli.curvature.risk import EmpiricalRisk, LossValue
from hesscli.curvature.trust.precision import FLOAT32_EPSILON, narrow_inside
from hesscli.curvature.trust.preflight import Preflight, RefusedProductError
from hesscli.distributed import ALONE, ranks
from hesscli.errors import UntrustworthyError, UsageError
from hesscli.events import Event, Finished, Noted, OnEvent, Started, Warned
from hesscli.linalg.space import ParameterVector
from hesscli.recipe import Recipe
from hesscli.recipe.document import dump
from hesscli.report import schema
from hesscli.report.document import read_report, write_report
from hesscli.report.figures import draw
from hesscli.report.kernel import with_kernel
from hesscli.run.environment import environment, exact_arithmetic, keep_freed_pages, peak_bytes
from hesscli.run.faults import as_hess_error
from hesscli.run.figures.measure import Findings, estimator_settings, measure
from hesscli.run.figures.pairs import check_topk
from hesscli.run.figures.solve import check_rows, check_solve
from hesscli.run.journal import Journal
from hesscli.run.observed import ObservedOperator
from hesscli.run.planning.check import check_fits, explained
from hesscli.run.redrawing import drawn_as_asked
from hesscli.run.retreat import RetreatingOperator
from hesscli.run.self_test import self_test
from hesscli.run.setup import Subject, build_subject
from hesscli.run.storage.artifacts import save_vectors
from hesscli.run.storage.folder import STATE, check_writable, part_folder, part_of, run_folder, run_hash
from hesscli.run.storage.product_log import ProductLog
from hesscli.run.storage.state import State


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run and where it lies; `fresh` is False where an equal run was there already."""

    report: schema.Report
    folder: Path
    fresh: bool


class _Listener:
    """Passes events on, keeps the warnings for the report, and tells the journal once there is one."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self.warnings: list[schema.Warning_] = []
        self.journal: Journal | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warnings.append(schema.Warning_(code=event.code, text=event.text))
        if self.journal is not None:
            self.journal(event)
        self._on_event(event)


def run(
    recipe: Recipe, *, force: bool, resume: bool, on_event: OnEvent, known: Mapping[str, Path] | None = None
) -> Outcome:
    """Run a recipe, or return the report of an equal run that is finished already, unless `force`.

    An equal run is looked for in the folders of `known`, by run id, and then in the recipe's own.

    With `resume` a run that was cut off goes on from its last product and gives the same report; products are kept on
    disk until it has ended. The folder appears whole or not at all. A product that is not finite, or fails its
    self-test, still gives a report, with the status `untrustworthy` and no metric.

    Raises UsageError, UnavailableError or DoesNotFitError.
    """
    start = time.perf_counter()
    listener = _Listener(on_event)
    root = Path(recipe.output.dir)
    check_writable(root)
    exact_arithmetic()
    keep_freed_pages()
    if recipe.probe == "solve":
        check_solve(recipe)
    elif recipe.probe == "topk":
        check_topk(recipe)
    with as_hess_error():
        subject = build_subject(recipe, on_event=listener)
    if recipe.probe == "solve":
        check_rows(recipe, subject.risk)
    run_id = run_hash(_facts(recipe, subject))
    identity = subject.checkpoint.identity
    final = run_folder(root, model=identity.id, revision=identity.revision, probe=recipe.probe, run_id=run_id)
    final = final if force else (known or {}).get(run_id, final)
    there = (final / "report.json").exists() and not force
    earlier = ranks().agreed(Outcome(_read_again(final), final, fresh=False) if there else None)
    if earlier is not None:
        on_event(Noted("an equal run is there already" + ("; --force measures again" if known is None else "")))
        if known is None and ranks().rank == 0:  # cells of a sweep share a run, and are drawn beside each other there
            again = drawn_as_asked(earlier.report, earlier.folder, recipe, on_event=on_event)
            earlier = replace(earlier, report=again)
        return earlier
    resume = resume and not force
    state = State(ranks().agreed(part_of(final)) / STATE, ranks())
    with explained(recipe, subject, listener), as_hess_error(), part_folder(final, resume=resume) as part:
        resumed = _goes_on(state, on_event) if resume else False
        subject = check_fits(recipe, subject, listener)
        journal = Journal(part, subject.risk.space, run_id=run_id, on_event=listener)
        facts = {"probe": recipe.probe, "operator": recipe.operator.kind}
        with journal.open(resumed=resumed, **facts):
            listener.journal = journal
            kept = state if resume else None
            report = _measured(recipe, subject, journal, part, listener, start, state=kept)
        report = with_kernel(report, recipe.density.kernel_width)
        report.artifacts += draw(report, part, recipe.output.plots)
        replayed = recipe.model_copy(update={"gates": []})  # no part of the run, and their baselines lie elsewhere
        (part / "recipe.yaml").write_text(dump(replayed), encoding="utf-8")
        report.seconds = time.perf_counter() - start
        write_report(report, part / "report.json")
        state.agreed_end()
    return Outcome(report, final, fresh=True)


def _goes_on(state: State, on_event: OnEvent) -> bool:
    """Whether there is what this run can go on from; said, and what there is that it cannot."""
    if state.agreed_to_go_on():
        on_event(Noted("going on with a run that was cut off; --no-resume starts again"))
        return True
    if others := state.of_others():
        this = "one process" if ranks() is ALONE else f"{ranks().size} under torchrun"
        what = f"a run of the same by {' and by '.join(others)} was cut off, which {this} cannot go on from"
        on_event(Noted(f"{what}: it starts afresh, and what is there stays until it has ended"))
    return False


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
        "config": subject.checkpoint.config_sha256,
        **_own_code(subject),
        "dtype": identity.dtype,
        "attention": identity.attention,
        "data": subject.data.fingerprint,
        "held_out": None if subject.held_out is None else subject.held_out.fingerprint,
        "probe": recipe.probe,
        "kind": recipe.operator.kind,
        "product": recipe.operator.product,
        **({} if recipe.operator.step == "auto" else {"step": recipe.operator.step}),  # names of other runs stay
        "parameters": list(subject.risk.space.names),
        "estimator": estimator_settings(recipe),
    }


def _own_code(subject: Subject) -> dict[str, object]:
    """Where the checkpoint's own code was loaded to: transformers names it by a hash of its files, or the commit."""
    module = type(subject.checkpoint.model).__module__
    return {"code": module} if module.startswith("transformers_modules.") else {}


def _measured(
    recipe: Recipe,
    subject: Subject,
    journal: Journal,
    folder: Path,
    listener: _Listener,
    start: float,
    *,
    state: State | None,
) -> schema.Report:
    choice = _choice(recipe, subject.risk, state)
    listener(Noted(f"{choice.product}: {choice.why}"))
    differences = _differences(choice)
    if (inside := narrow_inside(subject.risk)) is not None:
        listener(inside)
        subject.risk.space.epsilon = FLOAT32_EPSILON  # what is below it in products is rounding
    for warning in find_kinks(subject.risk) if differences else []:
        listener(warning)
    log = None if state is None else ProductLog(state, subject.risk.space)
    patient = RetreatingOperator(choice.operator, subject.risk, recipe=recipe, on_event=listener)
    operator = ObservedOperator(patient, subject.risk.space, log=log, journal=journal)
    findings = Findings(estimator_settings(recipe))
    preflight: Preflight | None = None
    noise = float("inf")
    loss = LossValue(float("nan"), None)
    gradient_seconds = None
    try:
        listener(Started("preflight", None))
        loss = patient.patiently(subject.risk.loss)
        journal.loss(loss.value)
        gradient, gradient_seconds = patient.patiently(lambda: _timed_gradient(subject.risk))
        journal.gradient(gradient, gradient_seconds)
        found = self_test(
            recipe, subject.risk, operator, patient, differences, loss=loss, gradient=gradient, on_event=listener
        )
        del gradient
        preflight, noise = found.preflight, found.noise
        listener(Finished("preflight"))
        operator.seconds, warm_up = 0.0, operator.num_matvecs - operator.num_replayed
        findings = measure(recipe, subject, operator, noise=noise, errors_along=found.errors_along, on_event=listener)
        timed = operator.num_matvecs - operator.num_replayed - warm_up
    except (UntrustworthyError, FloatingPointError) as error:
        timed = 0
        preflight = error.found if isinstance(error, RefusedProductError) else preflight
        findings.status, findings.status_text = "untrustworthy", str(error)
    for warning in differences.warnings(noise=noise) if differences else []:
        listener(warning)
    journal.end(findings.status, findings.status_text)
    return schema.Report(
        status=findings.status,
        status_text=findings.status_text,
        command=recipe.probe,
        run_id=journal.run_id,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - start,
        model=_model(subject),
        data=_data(subject),
        loss=_loss(loss),
        operator=_operator(recipe, subject, choice, patient, preflight),
        estimator=findings.estimator,
        metrics=findings.metrics,
        samples=findings.samples,
        eigenpairs=findings.eigenpairs,
        spectrum=findings.spectrum,
        blocks=findings.blocks,
        coupling=findings.coupling,
        solve=findings.solve,
        diagonal=findings.diagonal,
        cost=schema.Cost(
            matvecs=operator.num_matvecs,
            seconds_per_matvec=operator.seconds / timed if timed else None,
            gradient_seconds=gradient_seconds,
            peak_bytes=peak_bytes(),
            non_finite=journal.non_finite,
            retreats=journal.num_retreats,
        ),
        environment=environment(subject.checkpoint.input_device),
        artifacts=[save_vectors(folder, subject.risk.space, file, run_id=journal.run_id) for file in findings.files],
        warnings=listener.warnings,
    )


def _choice(recipe: Recipe, risk: EmpiricalRisk, state: State | None) -> Choice:
    """The product that a run was cut off with, else the one that suits what is found now.

    What fits depends on the memory that is free at the time, and products differ in their rounding.
    """
    kind, product, seed = recipe.operator.kind, recipe.operator.product, recipe.estimator.seed
    step = None if recipe.operator.step == "auto" else recipe.operator.step
    if state is not None and (kept := state.agreed_choice()) is not None:
        again = choose_operator(risk, kind=kind, product=kept["asked"], seed=seed, step=step)
        if again.product == kept["product"]:
            return replace(again, why=kept["why"])
        state.forget(start=0)
    choice = choose_operator(risk, kind=kind, product=product, seed=seed, step=step)
    if state is not None:
        asked = "auto" if choice.product == "jacobian" else choice.product
        state.keep_choice({"asked": asked, "product": choice.product, "why": choice.why})
    return choice


def _timed_gradient(risk: EmpiricalRisk) -> tuple[ParameterVector, float]:
    begun = time.perf_counter()
    gradient = risk.gradient()
    risk.space.norm(gradient)  # waits for the device
    return gradient, time.perf_counter() - begun


def _model(subject: Subject) -> schema.Model:
    identity = subject.checkpoint.identity
    return schema.Model(
        id=identity.id,
        revision=identity.revision,
        commit=identity.commit,
        weights_sha256=identity.weights_sha256,
        class_name=identity.class_name,
        task=identity.task,
        num_parameters=identity.num_parameters,
        num_selected=subject.risk.space.dimension,
        dtype=identity.dtype,
        attention=identity.attention,
        tied=identity.tied,
        base=identity.base,
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


def _differences(choice: Choice) -> FiniteDifferenceOperator | None:
    return choice.operator if isinstance(choice.operator, FiniteDifferenceOperator) else None


def _operator(
    recipe: Recipe, subject: Subject, choice: Choice, patient: RetreatingOperator, preflight: Preflight | None
) -> schema.Operator:
    tests, differences = schema.Preflight(), _differences(choice)
    if preflight is not None:
        tests = schema.Preflight(
            symmetry=preflight.symmetry,
            repeat=preflight.repeat,
            linearity=preflight.linearity,
            known_answer=preflight.known_answer,
            slope=preflight.slope,
            curvature=preflight.curvature,
            rounding=preflight.rounding,
            rounding_at_ends=preflight.rounding_at_ends,
        )
    return schema.Operator(
        kind=recipe.operator.kind,
        product="layered" if patient.is_layered else choice.product,
        why=choice.why,
        params=recipe.operator.params,
        exclude=recipe.operator.exclude,
        placement=subject.checkpoint.placement,
        batch_size=patient.num_rows or subject.batch_size,
        preflight=tests,
        steps=differences.steps if differences else None,
        error_estimate=differences.error_estimate if differences and differences.steps else None,
        choices=differences.num_choices if differences else None,
        switched=differences.switched[0] if differences and differences.switched else None,
    )
