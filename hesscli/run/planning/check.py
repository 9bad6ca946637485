"""The check that a run makes before hours are lost, and the table that an error of memory comes with."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from hesscli.checkpoint.bare import experts_of, twin
from hesscli.checkpoint.memory import available_bytes
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.errors import DoesNotFitError, HessError
from hesscli.events import Noted, OnEvent, ignore
from hesscli.recipe import Recipe
from hesscli.run.figures.basis import storage_of
from hesscli.run.planning.build import make_plan
from hesscli.run.planning.devices import found_devices
from hesscli.run.planning.probe_cost import Demand, demands
from hesscli.run.planning.table import plain, size
from hesscli.run.planning.working_set import Work, working_set
from hesscli.run.setup import Subject

_MARGIN = 1.1  # of what is free: a run is refused where the least that it needs is clearly more
_SMALL = 0.25  # of what is free: vectors below this leave room enough for a product, and counting it can be saved
_WIDTH = 100  # of the table, in columns


def check_fits(recipe: Recipe, subject: Subject) -> None:
    """Refuse a run whose leanest form needs clearly more than what is free now, with the weights in place.

    That is: no basis where the probe can do without, one row at a time, one vector after the other, the leanest exact
    product. Takes no time where vectors are few beside what is free, else seconds.

    Raises DoesNotFitError.
    """
    risk = subject.risk
    if type(risk) is not EmpiricalRisk:  # weights that are fetched or sharded have bounds of their own
        return
    lean = demands(recipe, dimension=risk.space.dimension, num_blocks=len(subject.blocks))[-1]
    devices = set(risk.space.devices)
    for device in devices:
        share = _share(risk, device)
        needed = int(share * _vectors(recipe, risk, lean))
        free = available_bytes(device)
        if needed <= _SMALL * free:
            continue
        product = _least_product(recipe, subject) if len(devices) == 1 else 0
        if needed + product > _MARGIN * free:
            what = f"{recipe.probe} needs {size(needed + product)} beside the weights on {device} at the least, "
            what += f"of which {size(needed)} for vectors, and {size(free)} are free"
            remedy = "choose fewer --params, a smaller --max-length or a larger machine; hess plan says what would fit"
            raise DoesNotFitError("memory", what, remedy)


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


def _share(risk: EmpiricalRisk, device: torch.device) -> float:
    here = sum(n for n, d in zip(risk.space.numels, risk.space.devices, strict=True) if d == device)
    return here / risk.space.dimension


def _vectors(recipe: Recipe, risk: EmpiricalRisk, demand: Demand) -> int:
    storage, space = storage_of(recipe), risk.space
    kept = sum(storage.vector_bytes(numel, space.dtype) for numel in space.numels) if storage.place == "device" else 0
    vector = space.vector_bytes()
    return max((phase.vectors + phase.together) * vector + phase.basis * kept for phase in demand.phases)


def _least_product(recipe: Recipe, subject: Subject) -> int:
    """Of one row, by the leanest product that could be counted; 0 where none could be."""
    kinds: tuple[Work, ...] = ("layered", "double-backward")
    if recipe.operator.kind != "hessian":
        kinds = ("layered-ggn", "jacobian")
    elif recipe.operator.product == "finite-difference":
        kinds = ("finite-difference",)
    model = subject.checkpoint.model
    try:
        bare = twin(model)
    except HessError:
        return 0
    named = dict(bare.named_parameters())
    chosen = {name: named[name] for name in subject.risk.space.names if name in named}
    if len(chosen) < len(subject.risk.space.names):  # an adapter's, which the config does not know
        return 0
    row = subject.risk.first_row()
    shadow = EmpiricalRisk(
        bare, row.batches, names=list(chosen), parameters=list(chosen.values()), input_device=torch.device("meta")
    )
    held = working_set(shadow, num_experts=experts_of(model), kinds=kinds, vectors=1).held
    return min((held[kind].own for kind in kinds if kind in held), default=0)
