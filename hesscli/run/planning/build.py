"""The plan itself: a bare model, its counts, every placement, and what is recommended."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from hesscli.checkpoint.bare import BareModel, bare_model
from hesscli.checkpoint.layers import outermost_layers
from hesscli.checkpoint.spread import spread as spread_over
from hesscli.curvature.layers.offloaded import experts_at_once
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.selection import partition, partition_by_globs, select_parameters
from hesscli.curvature.trust.rounding import is_narrow
from hesscli.errors import UnavailableError
from hesscli.events import OnEvent, Started
from hesscli.recipe import Recipe
from hesscli.recipe.blocks import load_blocks
from hesscli.run.faults import in_section
from hesscli.run.figures.basis import storage_of
from hesscli.run.planning.counting.elsewhere import Counts, fetched_set, gathered_set
from hesscli.run.planning.counting.inputs import full_batch, patches
from hesscli.run.planning.counting.working_set import Work, WorkingSet, working_set, working_sets
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
from hesscli.run.planning.placements import Costs, CostsAt, OnDevice, halves, ways
from hesscli.run.planning.probe_cost import Demand, demands
from hesscli.run.planning.recommend import recommended
from hesscli.run.planning.sizes import block_sizes, sizes_of
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
        if model.id.endswith(".json") and not Path(model.id).expanduser().is_file():  # no repository is named so
            what = f"{model.id!r} is not a file"
            raise UnavailableError("id", what, "give the path of a config, a folder, a hub id or demo")
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

    @cache
    def costs_at(rows: int) -> Costs:
        return _costs(recipe, _subject(recipe, bare, rows=rows, length=length), devices)

    costs = costs_at(rows)
    tried = halves(rows) if recipe.data.batch_size == "auto" else [rows]
    found = list(ways(costs_at, tried, subject.demands, devices, subject.kinds))
    return Plan(
        command=recipe.probe,
        model=_model(bare, costs),
        data=PlannedData(
            sequences=recipe.data.limit, length=length, batch_size=costs.batch_size, num_batches=costs.num_batches
        ),
        estimator={"matvecs": _most_products(subject), "basis": recipe.estimator.basis},
        blocks=subject.blocks,
        devices=devices,
        gradient=_gradient(costs, tokens=recipe.data.limit * length),
        ways=found,
        uncounted=_uncounted(costs, found),
        recommended=recommended(recipe, found, devices, typed=typed, rows=rows, lists=_lists(bare)),
        enough=None if any(way.fits for way in found) else _enough(recipe, subject, costs_at, tried, devices),
        notes=_notes(bare, costs, found),
    )


def _enough(
    recipe: Recipe, subject: _Subject, costs_at: CostsAt, rows: Sequence[int], devices: Devices
) -> Enough | None:
    """Of sharded weights alone: what each of many devices holds besides does not depend on their number."""

    @cache
    def gathered_at(rows: int) -> Costs:
        costs = costs_at(rows)
        if devices.count > 1:
            return replace(costs, spread=tuple)
        return replace(costs, gathered=cache(lambda: _gathered(recipe, subject, rows, 2)), spread=tuple)

    for count in (2**power for power in range(1, 13)):
        if count > devices.count:
            more = devices.model_copy(update={"count": count})
            found = ways(gathered_at, rows[-1:], subject.demands, more, subject.kinds)
            fitting = [way for way in found if way.fits and way.exact]
            if fitting:
                return Enough(num_devices=count, placement=fitting[0].placement, product=fitting[0].product)
    return None


def _lists(bare: BareModel) -> list[str]:
    """The names of the modules that layers are in."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in outermost_layers(bare.model)))


def _most_products(subject: _Subject) -> int:
    differences = subject.kinds == ("finite-difference",)
    return max(demand.by_differences if differences else demand.matvecs for demand in subject.demands)


def _subject(recipe: Recipe, bare: BareModel, *, rows: int, length: int) -> _Subject:
    operator = recipe.operator
    chosen = select_parameters(
        bare.model, params=operator.params, exclude=operator.exclude, adapter=bare.adapter_parameters
    )
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
        demands(recipe, dimension=risk.space.dimension, num_blocks=len(blocks), narrow=is_narrow(risk)),
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
    rows = risk.batches[0].targets.shape[0]
    experts = bare.num_experts

    def gathered() -> Counts:
        return _gathered(recipe, subject, rows, devices.count) if several else {}

    def spread() -> Sequence[OnDevice]:
        return _spread(subject, devices.count, together=together) if several else ()

    return Costs(
        sizes=sizes_of(bare.model, num_experts=bare.num_experts, experts_per_token=bare.experts_per_token),
        dimension=risk.space.dimension,
        vector=risk.space.vector_bytes(),
        basis_vector=sum(storage.vector_bytes(numel, risk.space.dtype) for numel in risk.space.numels),
        basis_place=storage.place,
        gradient=cache(lambda: working_set(risk, num_experts=experts, kinds=(), vectors=1)),
        working=cache(lambda: working_set(risk, num_experts=experts, kinds=subject.kinds, vectors=together)),
        fetched=cache(
            lambda: fetched_set(
                risk, num_experts=experts, kinds=_by_layer(subject), vectors=together, in_files=in_files
            )
        ),
        gathered=cache(gathered),
        spread=cache(spread),
        by_layer=_by_layer(subject) if outermost_layers(bare.model) else set(),
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


def _spread(subject: _Subject, count: int, *, together: int) -> list[OnDevice]:
    """Layers over so many devices: the first, the last, and of those between the ones that have most."""
    model, risk = subject.bare.model, subject.risk
    homes = spread_over(model, count=count)
    if homes is None:
        return []
    weights, selected = [0] * count, [0] * count
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        weights[homes.parameters[name]] += x.nbytes
        selected[homes.parameters[name]] += x.numel() if x.requires_grad else 0
    ends = {0, *homes.outside.values()}
    between = [device for device in range(count) if device not in ends]
    fullest = {max(between, key=each.__getitem__) for each in (weights, selected)} if between else set()
    kept = sorted(ends | fullest)

    @cache
    def counted() -> list[WorkingSet]:
        experts = subject.bare.num_experts
        return working_sets(risk, homes.only(kept), num_experts=experts, kinds=subject.kinds, vectors=together)

    return [
        OnDevice(weights[device], selected[device] / risk.space.dimension, lambda place=place: counted()[place])  # type: ignore[misc]
        for place, device in enumerate(kept)
    ]


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


def _uncounted(costs: Costs, found: Sequence[Way]) -> list[Uncounted]:
    """Of what there was room to count."""
    if any(way.placement == "single" and way.product_bytes is None for way in found):
        return []
    return [Uncounted(product=kind, reason=why) for kind, why in costs.working().reasons.items()]


def _gradient(costs: Costs, *, tokens: int) -> Gradient:
    gradient = costs.gradient()
    found = gradient.held.get("gradient")
    return Gradient(
        activations_bytes=gradient.activations,
        scores_bytes=gradient.scores,
        score_chunk_bytes=gradient.score_chunk,
        peak_bytes=None if found is None else found.own,
        teraflops=6 * costs.sizes.active * tokens / 1e12,
    )


def _notes(bare: BareModel, costs: Costs, found: Sequence[Way]) -> list[str]:
    notes = [
        "cost is in gradients; bytes are of tensors on the fullest device, with rows taken to be full; a tenth of a "
        "device is left to its runtime, and what is free beside them the self-test may take for a moment, in float64",
        "of rows: the part of a product that grows with the rows of a batch, where all else fits",
    ]
    if any(way.product_bytes is None for way in found):
        notes.append("> where weights and vectors alone do not fit: no product is counted")
    if any(way.batch_size != costs.batch_size for way in found):
        notes.append(f"rows: of a batch, where {costs.batch_size} do not fit as many as do, by halves")
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
    if bare.num_experts > 1:
        notes.append("experts weigh by their total and compute by those that a token goes through; routing is even")
    if (at_once := experts_at_once(bare.model, of=bare.num_experts)) < bare.num_experts:
        notes.append(f"offloaded, experts come {at_once} at a time: a product takes up to 1.9 times the cost given")
    return notes
