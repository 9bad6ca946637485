"""Bytes on the fullest device, by placement and product.

On one device every number is counted, and so is what a layer needs that is fetched or gathered (`elsewhere.py`). The
rest is divided by formula: a layerwise placement holds contiguous layers, of which the fullest device has
ceil(layers / N), and what lies outside of them; offloading leaves layers and vectors on the host, but for what lies
outside of layers; sharding holds 1 / N of weights, vectors and basis.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hesscli.run.figures.basis import SHARE as BASIS_SHARE
from hesscli.run.planning.document import Devices, Placement, Way
from hesscli.run.planning.elsewhere import Counts, HeldElsewhere
from hesscli.run.planning.probe_cost import Demand, Phase
from hesscli.run.planning.sizes import Sizes
from hesscli.run.planning.working_set import Work, WorkingSet

# Of a device: the rest is for the runtime's own, the allocator's gaps and what kernels take.
FULL = 0.9
_NAMES: dict[Work, str] = {"graph-kept": "double-backward", "layered-ggn": "layered"}
IN_A_DIFFERENCE = 4  # vectors beside the one that is multiplied and its product, while the step is calibrated


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
    working: WorkingSet
    fetched: Counts
    """What products hold on a device whose layers are fetched."""
    gathered: Counts
    """What products hold where weights are sharded; empty where there is one device."""
    in_files: bool
    """Whether the host computes: then all vectors of an offloaded run lie in files."""
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
            if kind in costs.working.held and _exists(placement, kind, costs):
                yield _first_that_fits(placement, kind, costs, demands, devices)


def gradients_of(kind: Work, together: int, *, fetched: bool) -> float:
    """A product's cost in gradients, with so many vectors at once; where layers are `fetched` a gradient is 4 units."""
    if kind == "finite-difference":
        return 8 / 3 if fetched else 2.0
    if kind == "layered":
        return (4 + 8 * together) / (3 * together)
    if kind == "layered-ggn":
        return (2 + 4 * together) / (3 * together)
    return {"graph-kept": 2.0, "double-backward": 3.0, "jacobian": 2.0}[kind]


def _exists(placement: Placement, kind: Work, costs: Costs) -> bool:
    if placement == "offloaded":
        return (kind, 1) in costs.fetched
    return (kind, 1) in costs.gathered if placement == "fsdp" else True


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
        gradients=gradients_of(kind, min(most, _usual(demand)), fetched=placement == "offloaded"),
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
    if placement == "single":
        return _Bytes(sizes.weights, vectors, on_device, _own(kind, costs, costs.working, at_once), host, disk)
    if placement == "layerwise":
        share = _largest_share(sizes, count)
        own = _own_of_share(kind, costs, at_once, max(share, 1 / count))
        return _Bytes(
            int(share * sizes.weights), int(share * vectors), int(share * on_device), own, host=host, disk=disk
        )
    if placement == "fsdp":
        own = _elsewhere(costs.gathered, kind, at_once).total
        shares = [math.ceil(n / count) for n in (sizes.weights, vectors, on_device)]
        return _Bytes(shares[0], shares[1], shares[2], own, host, disk)
    held = _elsewhere(costs.fetched, kind, at_once)
    # What lies outside of layers is on the device, and so are all vectors' parts of it, but for those in files.
    beside = 0 if costs.in_files else sizes.outside_selected * vectors // max(1, costs.dimension)
    further = IN_A_DIFFERENCE * vector if kind == "finite-difference" else 0
    host += sizes.weights - sizes.outside + vectors - beside + on_device + further
    return _Bytes(sizes.outside + held.weights, beside + held.vectors, 0, held.own, host, disk)


def _elsewhere(counts: Counts, kind: Work, together: int) -> HeldElsewhere:
    """For so many vectors at once, of which one and the most were counted."""
    alone = counts[kind, 1]
    most = max(number for name, number in counts if name == kind)
    share = (together - 1) / (most - 1) if most > 1 else 0.0

    def between(one: int, many: int) -> int:
        return one + int(share * (many - one))

    many = counts[kind, most]
    return HeldElsewhere(
        between(alone.own, many.own), between(alone.weights, many.weights), between(alone.vectors, many.vectors)
    )


def _own(kind: Work, costs: Costs, working: WorkingSet, together: int) -> int:
    held = working.held[kind]
    return held.own + held.further * (together - 1) + held.graph * (costs.num_batches - 1)


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
