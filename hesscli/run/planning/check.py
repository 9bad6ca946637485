"""The check that a run makes before hours are lost, and the table that an error of memory comes with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch

from hesscli.checkpoint.bare import experts_of, twin
from hesscli.checkpoint.memory import available_bytes
from hesscli.curvature.batches import split_rows
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.trust.rounding import is_narrow
from hesscli.data import Batch
from hesscli.errors import DoesNotFitError, HessError
from hesscli.events import Noted, OnEvent, Warned, ignore
from hesscli.linalg.mapped_space import MappedSpace
from hesscli.recipe import Recipe
from hesscli.report.words import plural
from hesscli.run.figures.basis import storage_of
from hesscli.run.planning.build import make_plan
from hesscli.run.planning.counting.elsewhere import fetched_set
from hesscli.run.planning.counting.working_set import Work, working_set
from hesscli.run.planning.devices import found_devices
from hesscli.run.planning.probe_cost import Demand, demands
from hesscli.run.planning.table import plain, size
from hesscli.run.setup import Subject

_MARGIN = 1.1  # of what is free: a run is refused where the least that it needs is clearly more
_SMALL = 0.25  # of what is free: vectors below this leave room enough for a product, and counting it can be saved
_WIDTH = 100  # of the table, in columns
FEWER_ROWS = "fewer-rows"  # the code of the warning that a batch was made smaller before anything ran


def check_fits(recipe: Recipe, subject: Subject, on_event: OnEvent) -> Subject:
    """Refuse a run whose leanest form needs clearly more than what is free now, with the weights in place.

    That is: no basis where the probe can do without, one row at a time, one vector after the other, the leanest exact
    product. Where that fits and the rows of a batch do not, and their number was left open, the batches of the subject
    that comes back have fewer: sums do not depend on it. Takes no time where vectors are few beside what is free, else
    seconds.

    Raises DoesNotFitError.
    """
    risk = subject.risk
    if isinstance(risk, LayeredRisk):
        return _check_fetched(recipe, subject, risk, on_event)
    if type(risk) is not EmpiricalRisk:  # what is sharded has no bound of its own
        return subject
    lean = _leanest(recipe, subject)
    devices, batch = set(risk.space.devices), max(risk.batches, key=lambda batch: batch.targets.numel())
    for device in devices:
        share = _share(risk, device)
        needed = int(share * _vectors(recipe, risk, lean))
        free = available_bytes(device)
        if needed <= _SMALL * free:
            continue
        room, alone = int(_MARGIN * free) - needed, len(devices) == 1

        def product(rows: int, alone: bool = alone) -> int:
            return _least_product(recipe, subject, batch, rows) if alone else 0

        rows = len(batch.targets)
        fitting = next((n for n in (rows, *_halves(rows)) if product(n) <= room), None) if room >= 0 else None
        if fitting is None:
            least = needed + product(1)
            what = f"{recipe.probe} needs {size(least)} beside the weights on {device} at the least, "
            what += f"of which {size(needed)} for vectors, and {size(free)} are free"
            remedy = "choose fewer --params, a smaller --max-length or a larger machine; hess plan says what would fit"
            raise DoesNotFitError("memory", what, remedy)
        if fitting < rows and recipe.data.batch_size == "auto":
            return _with_rows(subject, fitting, on_event, what=f"a product on {rows} does not fit on {device}")
    return subject


def _with_rows(subject: Subject, rows: int, on_event: OnEvent, *, what: str) -> Subject:
    subject.risk.batches = tuple(split_rows(subject.risk.batches, rows))
    on_event(Warned(FEWER_ROWS, f"batches have {plural(rows, 'row')} each: {what}"))
    return replace(subject, batch_size=rows)


def _check_fetched(recipe: Recipe, subject: Subject, risk: LayeredRisk, on_event: OnEvent) -> Subject:
    """Where layers are fetched: a batch's activations come on top of what bounds weights and vectors."""
    lean = _leanest(recipe, subject)
    in_files = isinstance(risk.space, MappedSpace)  # then vectors are in no memory, but for parts beside an accelerator
    sizes = {device: _share(risk, device) * _vectors(recipe, risk, lean) for device in risk.space.devices}
    vectors = {device: 0 if in_files and device.type == "cpu" else int(size) for device, size in sizes.items()}
    batch = max(risk.batches, key=lambda batch: batch.targets.numel())
    rows = fewest = len(batch.targets)
    for device in {risk.input_device, *vectors}:
        room = int(_MARGIN * available_bytes(device)) - vectors.get(device, 0)
        computes = device == risk.input_device

        def needed(rows: int, computes: bool = computes) -> int:
            return _fetched_product(recipe, subject, batch, rows) if computes else 0

        if (product := needed(rows)) <= room:
            continue
        fitting = next((n for n in _halves(rows) if needed(n) <= room), None)
        if fitting is not None and recipe.data.batch_size == "auto":
            fewest = min(fewest, fitting)
            continue
        what = f"with layers that are fetched a product on {rows} rows at a time needs {size(product)} on {device}, "
        what += (
            f"activations and all, vectors {size(vectors.get(device, 0))}, and {size(available_bytes(device))} are free"
        )
        remedy = "choose a smaller --max-length, fewer --params or a larger machine"
        raise DoesNotFitError("memory", what, remedy if fitting is None else f"use --batch-size {fitting}")
    if fewest < rows:
        return _with_rows(subject, fewest, on_event, what=f"a product on {rows} does not fit beside what is resident")
    return subject


def _halves(rows: int) -> Iterator[int]:
    while rows > 1:
        rows //= 2
        yield rows


def _fetched_product(recipe: Recipe, subject: Subject, batch: Batch, rows: int) -> int:
    """Beside what is resident, with so many rows of the batch; 0 where it could not be counted."""
    shadow = _shadow(subject, [_first_rows(batch, rows)])
    if shadow is None:
        return 0
    kind: Work = "layered" if recipe.operator.kind == "hessian" else "layered-ggn"
    if recipe.operator.product == "finite-difference":
        kind = "finite-difference"
    experts, in_files = experts_of(subject.checkpoint.model), isinstance(subject.risk.space, MappedSpace)
    found = fetched_set(shadow, num_experts=experts, kinds={kind}, vectors=1, in_files=in_files)
    return found[kind, 1].total if found else 0


@contextmanager
def explained(recipe: Recipe, subject: Subject, on_event: OnEvent) -> Iterator[None]:
    """Within it an error of memory comes with the table of `hess plan` for what is free here."""
    try:
        yield
    except DoesNotFitError:
        with suppress(HessError, RuntimeError, ValueError, OSError):  # the error itself says more than how this fails
            weights = sum(p.nbytes for p in subject.checkpoint.model.parameters())
            found = found_devices()
            found = found.model_copy(update={"bytes_each": found.bytes_each + weights // found.count})
            offline = recipe.model.model_copy(update={"offline": True})
            planned = recipe.model_copy(update={"model": offline})
            on_event(Noted(plain(make_plan(planned, devices=found, typed=[], on_event=ignore), width=_WIDTH)))
        raise


def _leanest(recipe: Recipe, subject: Subject) -> Demand:
    risk = subject.risk
    blocks = len(subject.blocks)
    return demands(recipe, dimension=risk.space.dimension, num_blocks=blocks, narrow=is_narrow(risk))[-1]


def _share(risk: EmpiricalRisk, device: torch.device) -> float:
    here = sum(n for n, d in zip(risk.space.numels, risk.space.devices, strict=True) if d == device)
    return here / risk.space.dimension


def _vectors(recipe: Recipe, risk: EmpiricalRisk, demand: Demand) -> int:
    storage, space = storage_of(recipe), risk.space
    kept = sum(storage.vector_bytes(numel, space.dtype) for numel in space.numels) if storage.place == "device" else 0
    vector = space.vector_bytes()
    return max(phase.held(1) * vector + phase.basis * kept for phase in demand.phases)


def _least_product(recipe: Recipe, subject: Subject, batch: Batch, rows: int) -> int:
    """Of so many rows of a batch, by the leanest product that could be counted; 0 where none could be."""
    kinds: tuple[Work, ...] = ("layered", "double-backward")
    if recipe.operator.kind != "hessian":
        kinds = ("layered-ggn", "jacobian")
    elif recipe.operator.product == "finite-difference":
        kinds = ("finite-difference",)
    shadow = _shadow(subject, [_first_rows(batch, rows)])
    if shadow is None:
        return 0
    experts = experts_of(subject.checkpoint.model)
    held = working_set(shadow, num_experts=experts, kinds=kinds, vectors=1).held
    return min((held[kind].own for kind in kinds if kind in held), default=0)


def _first_rows(batch: Batch, rows: int) -> Batch:
    return Batch({name: value[:rows] for name, value in batch.inputs.items()}, batch.targets[:rows])


def _shadow(subject: Subject, batches: Sequence[Batch]) -> EmpiricalRisk | None:
    """The same risk on a model without weights; None where that cannot be built."""
    try:
        bare = twin(subject.checkpoint.model)
    except HessError:
        return None
    named = dict(bare.named_parameters())
    chosen = {name: named[name] for name in subject.risk.space.names if name in named}
    if len(chosen) < len(subject.risk.space.names):  # an adapter's, which the config does not know
        return None
    device = torch.device("meta")
    return EmpiricalRisk(bare, batches, names=list(chosen), parameters=list(chosen.values()), input_device=device)
