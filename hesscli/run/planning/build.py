"""The plan itself: a bare model, its counts, every placement, and what is recommended."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from hesscli.checkpoint.bare import BareModel, bare_model, with_few_layers
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.selection import partition, partition_by_globs, select_parameters
from hesscli.events import OnEvent, Started
from hesscli.recipe import Recipe
from hesscli.recipe.blocks import load_blocks
from hesscli.run.faults import in_section
from hesscli.run.figures.basis import storage_of
from hesscli.run.planning.document import (
    BlockSize,
    Devices,
    Enough,
    Gradient,
    Plan,
    PlannedData,
    PlannedModel,
    Uncounted,
    Way,
)
from hesscli.run.planning.elsewhere import Counts, fetched_set, gathered_set
from hesscli.run.planning.inputs import full_batch, patches
from hesscli.run.planning.placements import Costs, ways
from hesscli.run.planning.probe_cost import Demand, demands
from hesscli.run.planning.recommend import recommended
from hesscli.run.planning.sizes import block_sizes, sizes_of
from hesscli.run.planning.working_set import Work, WorkingSet, working_set
from hesscli.run.slices import full_rows

_KINDS: dict[str, tuple[Work, ...]] = {"hessian": ("graph-kept", "double-backward", "layered", "finite-difference")}
_GAUSS_NEWTON: tuple[Work, ...] = ("jacobian", "layered-ggn")
_LAYERED: set[Work] = {"layered", "layered-ggn"}
_ASKED: dict[str, tuple[Work, ...]] = {
    "double-backward": ("graph-kept", "double-backward"),
    "layered": ("layered", "layered-ggn"),
    "finite-difference": ("finite-difference",),
}


@dataclass(frozen=True, slots=True)
class _Subject:
    bare: BareModel
    risk: EmpiricalRisk
    kinds: tuple[Work, ...]
    demands: list[Demand]
    blocks: list[BlockSize]


def make_plan(recipe: Recipe, *, devices: Devices, typed: Sequence[str], on_event: OnEvent) -> Plan:
    """What the recipe's run needs on these devices, and the command that is recommended.

    No weight is read: the config decides the shapes, and products are run on tensors without data. `typed` are the
    options as they were typed, for the command. Takes seconds, more for deeper models.

    Raises UsageError or UnavailableError, each one line.
    """
    model = recipe.model
    with in_section("model"):
        bare = bare_model(
            model.id,
            revision=model.revision,
            task=model.task,
            dtype=model.dtype,
            attention=model.attn,
            trust_remote_code=model.trust_remote_code,
            allow_pickle=model.allow_pickle,
            offline=model.offline,
        )
    length, rows = full_rows(
        recipe, max_positions=bare.max_positions, positions_per_image=patches(bare.model.config, bare.task)
    )
    on_event(Started("count", None))
    subject = _subject(recipe, bare, rows=rows, length=length)
    costs = _costs(recipe, subject, devices)
    found = list(ways(costs, subject.demands, devices, subject.kinds))
    leanest = costs
    if not any(way.fits for way in found) and rows > 1:
        lean = _subject(recipe, bare, rows=1, length=length)
        leanest = _costs(recipe, lean, devices)
        found += ways(leanest, lean.demands, devices, lean.kinds)
    return Plan(
        command=recipe.probe,
        model=_model(bare, costs),
        data=PlannedData(
            sequences=recipe.data.limit, length=length, batch_size=costs.batch_size, num_batches=costs.num_batches
        ),
        estimator={"matvecs": max(d.matvecs for d in subject.demands), "basis": recipe.estimator.basis},
        blocks=subject.blocks,
        devices=devices,
        gradient=_gradient(costs, tokens=recipe.data.limit * length),
        ways=found,
        uncounted=[Uncounted(product=kind, reason=why) for kind, why in costs.working.reasons.items()],
        recommended=recommended(recipe, found, typed=typed, rows=rows),
        enough=None if any(way.fits for way in found) else _enough(recipe, leanest, subject, devices),
        notes=_notes(bare, costs, found),
    )


def _enough(recipe: Recipe, costs: Costs, subject: _Subject, devices: Devices) -> Enough | None:
    if devices.count == 1:
        costs = replace(costs, gathered=_gathered(recipe, subject, costs.batch_size, 2))
    for count in (2**power for power in range(1, 13)):
        if count > devices.count:
            more = devices.model_copy(update={"count": count})
            fitting = [way for way in ways(costs, subject.demands, more, subject.kinds) if way.fits and way.exact]
            if fitting:
                return Enough(num_devices=count, placement=fitting[0].placement, product=fitting[0].product)
    return None


def _subject(recipe: Recipe, bare: BareModel, *, rows: int, length: int) -> _Subject:
    operator = recipe.operator
    chosen = select_parameters(bare.model, params=operator.params, exclude=operator.exclude)
    risk = _risk(bare.model, chosen, bare, rows=rows, length=length)
    names, numels = list(chosen), [p.numel() for p in chosen.values()]
    blocks = (
        partition(names, by=operator.by)
        if operator.blocks is None
        else partition_by_globs(names, load_blocks(Path(operator.blocks)))
    )
    kinds = _KINDS.get(operator.kind, _GAUSS_NEWTON)
    asked = _ASKED.get(operator.product, kinds)
    return _Subject(
        bare,
        risk,
        tuple(kind for kind in kinds if kind in asked),
        demands(recipe, dimension=risk.space.dimension, num_blocks=len(blocks)),
        [BlockSize(name=name, num_parameters=count) for name, count in block_sizes(names, numels).items()],
    )


def _risk(
    model: nn.Module, chosen: dict[str, nn.Parameter], bare: BareModel, *, rows: int, length: int
) -> EmpiricalRisk:
    return EmpiricalRisk(
        model,
        [full_batch(bare.model.config, bare.task, rows=rows, length=length)],
        names=list(chosen),
        parameters=list(chosen.values()),
        input_device=torch.device("meta"),
    )


def _costs(recipe: Recipe, subject: _Subject, devices: Devices) -> Costs:
    bare, risk, storage, several = subject.bare, subject.risk, storage_of(recipe), devices.count > 1
    together = _together(subject)
    in_files = devices.found and devices.host_bytes is None
    rows, length = risk.batches[0].targets.shape[0], _length(risk)
    working = working_set(risk, num_experts=bare.num_experts, kinds=subject.kinds, vectors=together)
    return Costs(
        sizes=sizes_of(
            bare.model, risk.parameters, num_experts=bare.num_experts, experts_per_token=bare.experts_per_token
        ),
        dimension=risk.space.dimension,
        vector=risk.space.vector_bytes(),
        basis_vector=sum(storage.vector_bytes(numel, risk.space.dtype) for numel in risk.space.numels),
        basis_place=storage.place,
        working=working,
        fetched=fetched_set(
            risk, num_experts=bare.num_experts, kinds=_by_layer(subject), vectors=together, in_files=in_files
        ),
        gathered=_gathered(recipe, subject, rows, devices.count) if several else {},
        in_files=in_files,
        fewer=_fewer(subject, rows=rows, length=length, together=together) if several else None,
        batch_size=rows,
        num_batches=-(-recipe.data.limit // rows),
    )


def _together(subject: _Subject) -> int:
    return max(demand.together for demand in subject.demands)


def _by_layer(subject: _Subject) -> set[Work]:
    """What does not need all weights at once; narrow ones cannot hold a displacement where they are not all here."""
    narrow = any(p.dtype not in (torch.float32, torch.float64) for p in subject.risk.parameters)
    return (_LAYERED if narrow else {*_LAYERED, "finite-difference"}) & set(subject.kinds)


def _gathered(recipe: Recipe, subject: _Subject, rows: int, count: int) -> Counts:
    """Over so many processes, each with its share of the rows."""
    return gathered_set(
        subject.risk,
        num_experts=subject.bare.num_experts,
        kinds=_by_layer(subject),
        vectors=_together(subject),
        count=count,
        rows=min(rows, -(-recipe.data.limit // count)),
    )


def _length(risk: EmpiricalRisk) -> int:
    ids = risk.batches[0].inputs.get("input_ids")
    return 1 if ids is None else ids.shape[1]


def _fewer(subject: _Subject, *, rows: int, length: int, together: int) -> tuple[WorkingSet, float] | None:
    """Counted with a quarter of the layers: on several devices each has some of them."""
    found = with_few_layers(subject.bare.model, divisor=4)
    if found is None:
        return None
    model, share = found
    named = dict(model.named_parameters())
    chosen = {name: named[name] for name in subject.risk.space.names if name in named}
    if not chosen:
        return None
    risk = _risk(model, chosen, subject.bare, rows=rows, length=length)
    kinds = tuple(kind for kind in subject.kinds if kind != "finite-difference")
    return working_set(risk, num_experts=subject.bare.num_experts, kinds=kinds, vectors=together), share


def _model(bare: BareModel, costs: Costs) -> PlannedModel:
    return PlannedModel(
        id=bare.id,
        class_name=type(bare.model).__name__,
        task=bare.task,
        dtype=bare.dtype,
        num_parameters=bare.num_parameters,
        num_selected=costs.dimension,
        active_parameters=costs.sizes.active,
        num_layers=costs.sizes.num_layers,
        weights_bytes=costs.sizes.weights,
        vector_bytes=costs.vector,
        largest_layer_bytes=costs.sizes.largest_layer,
        outside_bytes=costs.sizes.outside,
    )


def _gradient(costs: Costs, *, tokens: int) -> Gradient:
    found = costs.working.held.get("gradient")
    return Gradient(
        activations_bytes=costs.working.activations,
        scores_bytes=costs.working.scores,
        score_chunk_bytes=costs.working.score_chunk,
        peak_bytes=None if found is None else found.own,
        teraflops=6 * costs.sizes.active * tokens / 1e12,
    )


def _notes(bare: BareModel, costs: Costs, found: Sequence[Way]) -> list[str]:
    notes = [
        "cost is in gradients; bytes are of tensors on the fullest device, with rows taken to be full; a tenth of a "
        "device is left to its runtime"
    ]
    if (
        bare.stored_elements is not None
        and abs(bare.stored_elements - bare.num_parameters) > 0.01 * bare.num_parameters
    ):
        notes.append(
            f"the weight files hold {bare.stored_elements:,} numbers, the config's model {bare.num_parameters:,}"
        )
    if not costs.sizes.num_layers:
        notes.append("no layers are marked in this architecture: it is not taken layer by layer")
    if any(not way.exact for way in found):
        notes.append("* is not exact: every interval allows for its error")
    if any(way.num_devices > 1 or way.placement == "offloaded" for way in found):
        notes.append("layerwise is counted on one device and divided by formula; fsdp and offloaded are counted")
    if bare.num_experts > 1:
        notes.append("experts weigh by their total and compute by those that a token goes through; routing is even")
    return notes
