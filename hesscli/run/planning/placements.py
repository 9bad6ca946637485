"""Bytes on the fullest device, by placement and product.

On one device every number is counted. Over several, counted numbers are divided by formula: a layerwise placement
holds contiguous layers, of which the fullest device has ceil(layers / N), and what lies outside of them; offloading
holds two layers' weights (one runs, one is being fetched) and one layer's parts of each vector; sharding holds 1 / N of
weights, vectors and basis, and one layer gathered.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hesscli.run.figures.basis import SHARE as BASIS_SHARE
from hesscli.run.planning.document import Devices, Placement, Way
from hesscli.run.planning.probe_cost import Demand, Phase
from hesscli.run.planning.sizes import Sizes
from hesscli.run.planning.working_set import Work, WorkingSet

# Of a device: the rest is for the runtime's own, the allocator's gaps and what kernels take.
FULL = 0.9
_NAMES: dict[Work, str] = {"graph-kept": "double-backward", "layered-ggn": "layered"}
# What needs all weights and a batch's whole graph at once; the others go layer by layer, or sum what they stream.
_WHOLE: tuple[Work, ...] = ("graph-kept", "double-backward", "jacobian")


@dataclass(frozen=True, slots=True)
class Costs:
    """All that placements are made of."""

    sizes: Sizes
    dimension: int
    vector: int
    """Bytes of one vector."""
    basis_vector: int
    """Bytes of one vector of a basis, as it is kept."""
    basis_place: str
    narrow: int
    """Bytes of a vector's copy in the weights' dtype, which the layered product makes where that is another."""
    working: WorkingSet
    fewer: tuple[WorkingSet, float] | None
    """The same counted with a share of the layers: what grows with their number."""
    batch_size: int
    num_batches: int


def ways(costs: Costs, demands: list[Demand], devices: Devices, kinds: tuple[Work, ...]) -> Iterator[Way]:
    """Every placement and product that hess has, each with the first way to run the probe that fits."""
    placements: list[Placement] = ["single", "offloaded"]
    if devices.count > 1:
        placements = ["single", "layerwise", "fsdp", "offloaded"]
    for placement in placements:
        for kind in kinds:
            if kind in costs.working.held and _exists(placement, kind):
                yield _first_that_fits(placement, kind, costs, demands, devices)


def gradients_of(kind: Work, together: int) -> float:
    """A product's cost in gradients, with so many vectors at once."""
    if kind == "layered":
        return (4 + 8 * together) / (3 * together)
    if kind == "layered-ggn":
        return (2 + 4 * together) / (3 * together)
    return {"graph-kept": 2.0, "double-backward": 3.0, "finite-difference": 2.0, "jacobian": 2.0}[kind]


def _exists(placement: Placement, kind: Work) -> bool:
    return placement in ("single", "layerwise") or kind not in _WHOLE


def _first_that_fits(placement: Placement, kind: Work, costs: Costs, demands: list[Demand], devices: Devices) -> Way:
    """Bases before none, and vectors multiplied together before one by one, to which a run retreats by itself."""
    way = None
    alone = costs.working.held[kind].further > 0
    if placement == "offloaded" and devices.host_bytes is None:  # what the host has is not known: ask least of it
        demands = demands[-1:]
    tries = [(demand, together) for demand in demands for together in ([demand.together, 1] if alone else [0])]
    for demand, together in tries:
        way = _way(placement, kind, costs, demand, devices, most=together or demand.together)
        room = devices.bytes_each - way.weights_bytes
        if way.fits and (costs.basis_place != "device" or way.basis_bytes <= BASIS_SHARE * room):
            break
    assert way is not None
    return way


def _way(placement: Placement, kind: Work, costs: Costs, demand: Demand, devices: Devices, *, most: int) -> Way:
    count = devices.count if placement in ("layerwise", "fsdp") else 1
    phases = [_phase(placement, kind, costs, phase, count, min(most, phase.together)) for phase in demand.phases]
    held = max(phases, key=lambda found: found.total)
    host, disk = max(found.host for found in phases), max(found.disk for found in phases)
    fits = held.total <= FULL * devices.bytes_each
    if devices.host_bytes is not None:
        fits = fits and host <= FULL * devices.host_bytes
    return Way(
        placement=placement,
        product=_NAMES.get(kind, kind),
        graph_kept=kind == "graph-kept",
        exact=kind != "finite-difference",
        batch_size=costs.batch_size,
        together=most,
        gradients=gradients_of(kind, min(most, _usual(demand))),
        demand=demand.words,
        matvecs=demand.matvecs,
        num_devices=count,
        weights_bytes=held.weights,
        vectors_bytes=held.vectors,
        basis_bytes=held.basis,
        product_bytes=held.own,
        total_bytes=held.total,
        host_bytes=host,
        disk_bytes=disk,
        fits=fits,
    )


def _usual(demand: Demand) -> int:
    """Vectors at once in the stage that most products are made in."""
    long = [phase for phase in demand.phases if phase.name in ("krylov", "probes", "estimate", "blocks", "iterations")]
    return long[0].together if long else 1


@dataclass(frozen=True, slots=True)
class _Bytes:
    weights: int
    vectors: int
    basis: int
    own: int
    host: int
    disk: int

    @property
    def total(self) -> int:
        return self.weights + self.vectors + self.basis + self.own


def _phase(placement: Placement, kind: Work, costs: Costs, phase: Phase, count: int, at_once: int) -> _Bytes:
    sizes, vector = costs.sizes, costs.vector
    vectors = (phase.vectors + phase.together) * vector
    basis = phase.basis * costs.basis_vector
    disk = basis if costs.basis_place == "disk" else 0
    host = basis if costs.basis_place == "host" else 0
    on_device = basis - disk - host
    own = _own(kind, costs, costs.working, at_once)
    if placement == "single":
        return _Bytes(sizes.weights, vectors, on_device, own, host, disk)
    each = vector / max(1, costs.dimension)
    if placement == "layerwise":
        share = _largest_share(sizes, count)
        own = _own_of_share(kind, costs, at_once, max(share, 1 / count))
        return _Bytes(
            int(share * sizes.weights), int(share * vectors), int(share * on_device), own, host=host, disk=disk
        )
    layer_vectors = int(each * sizes.largest_selected)
    outside_vectors = int(each * sizes.outside_selected)
    parts = 1 + 2 * at_once
    own = _streamed_gradient(costs) if kind == "finite-difference" else own - at_once * costs.narrow
    if placement == "fsdp":
        gathered = sizes.largest_layer + sizes.outside + parts * (layer_vectors + outside_vectors)
        if kind == "finite-difference":
            # A displaced copy and the gradients at theta and at one side are sharded too; a gradient is gathered.
            gathered = sizes.largest_layer + sizes.outside + layer_vectors + outside_vectors
            own += math.ceil((sizes.weights + 4 * vector) / count)
        shares = [math.ceil(n / count) for n in (sizes.weights, vectors, on_device)]
        return _Bytes(shares[0], shares[1], shares[2], own + gathered, host, disk)
    weights = 2 * sizes.largest_layer + sizes.outside
    # One layer's part of each vector that is multiplied, and of its result, with those of what lies outside.
    here = 2 * at_once * (layer_vectors + outside_vectors)
    copies = sizes.weights + 4 * vector if kind == "finite-difference" else 0
    host += sizes.weights + vectors + on_device + copies
    return _Bytes(weights, here, 0, own, host, disk)


def _own(kind: Work, costs: Costs, working: WorkingSet, together: int) -> int:
    held = working.held[kind]
    return held.own + held.further * (together - 1) + held.graph * (costs.num_batches - 1)


def _streamed_gradient(costs: Costs) -> int:
    """Of a gradient whose parts leave the device layer by layer: what a forward pass saves, and scores' derivatives."""
    gradient = costs.working.held.get("gradient")
    saved = costs.working.activations + 3 * costs.working.score_chunk
    return min(saved, gradient.own) if gradient is not None else saved


def _largest_share(sizes: Sizes, count: int) -> float:
    """Of the weights, on the fullest device: layers in equal numbers, and an end outside of them."""
    if not sizes.num_layers:
        return 1.0
    inside = (sizes.weights - sizes.outside) * math.ceil(sizes.num_layers / count) / sizes.num_layers
    end = sizes.outside / min(2, count)
    # A good placement gives the ends fewer layers; it cannot split the largest piece.
    return min(1.0, max(sizes.weights / count, inside, end, sizes.outside / 2) / sizes.weights)


def _own_of_share(kind: Work, costs: Costs, together: int, share: float) -> int:
    """The product's own on the device at the end: what does not depend on the number of layers is all there."""
    whole = _own(kind, costs, costs.working, together)
    if costs.fewer is None:
        return whole
    counted, part = costs.fewer
    name: Work = "gradient" if kind == "finite-difference" else kind
    if name not in counted.held or part == 1:
        return whole
    base = _own(name, costs, costs.working, together)
    growing = (base - _own(name, costs, counted, together)) / (1 - part)
    constant = max(0, int(base - growing))
    return int(constant + (whole - constant) * share)
