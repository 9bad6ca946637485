"""Bytes on the fullest device, by placement and product.

Products are counted: on one device, on each of several that layers are spread over, and what a layer needs that is
fetched or gathered (`counting/elsewhere.py`). Offloading leaves layers and all vectors on the host; sharding holds
1 / N of weights, vectors and basis. Where a batch does not fit, half of its rows are tried, down to one.
"""

import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace

from hesscli.run.figures.basis import SHARE as BASIS_SHARE
from hesscli.run.planning.counting.elsewhere import Counts, HeldElsewhere
from hesscli.run.planning.counting.working_set import Work, WorkingSet
from hesscli.run.planning.document import Devices, Placement, Way
from hesscli.run.planning.probe_cost import Demand, Phase
from hesscli.run.planning.sizes import Sizes

# Of a device: the rest is for the runtime's own, the allocator's gaps and what kernels take.
FULL = 0.9
_NAMES: dict[Work, str] = {"graph-kept": "double-backward", "layered-ggn": "layered"}
IN_A_DIFFERENCE = 4  # vectors beside the one that is multiplied and its product, while the step is calibrated


@dataclass(frozen=True, slots=True)
class OnDevice:
    """What one of several devices has of a model."""

    weights: int
    """Bytes, of buffers too."""
    share: float
    """Of the selected parameters."""
    working: Callable[[], WorkingSet]
    """Counted when it is asked for."""


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
    gradient: Callable[[], WorkingSet]
    """A gradient alone, counted when it is asked for, as the next four are."""
    working: Callable[[], WorkingSet]
    fetched: Callable[[], Counts]
    """What products hold on a device whose layers are fetched."""
    gathered: Callable[[], Counts]
    """What products hold where weights are sharded; empty where there is one device."""
    spread: Callable[[], Sequence[OnDevice]]
    """The devices of a layerwise placement, of those that are alike one; empty where there is none."""
    by_layer: Set[Work]
    """The products that do not need all weights at once, if layers are understood."""
    batch_size: int
    num_batches: int


CostsAt = Callable[[int], Costs]
"""Of batches of so many rows."""


def ways(
    costs_at: CostsAt, rows: Sequence[int], demands: list[Demand], devices: Devices, kinds: tuple[Work, ...]
) -> Iterator[Way]:
    """Every placement and product that hess has, each with the first way to run the probe that fits.

    `rows` are the sizes of a batch that may be tried, the largest first.
    """
    placements: list[Placement] = ["single", "offloaded"]
    if devices.count > 1:
        placements = ["single", "layerwise", "fsdp", "offloaded"]
    for placement in placements:
        for kind in kinds:
            if (way := _largest_that_fits(placement, kind, costs_at, rows, demands, devices)) is not None:
                yield way


def halves(rows: int) -> list[int]:
    """From so many rows down to one."""
    return [rows, *halves(rows // 2)] if rows > 1 else [1]


def _largest_that_fits(
    placement: Placement, kind: Work, costs_at: CostsAt, rows: Sequence[int], demands: list[Demand], devices: Devices
) -> Way | None:
    """With the largest batch that fits, with the smallest if none does and a batch decides; None if there is no way."""

    def way(size: int) -> Way | None:
        return _first_that_fits(placement, kind, costs_at, size, demands, devices)

    whole = way(rows[0])
    if whole is None or whole.fits or len(rows) == 1 or whole.product_bytes is None:
        return whole
    least = way(rows[-1]) or whole
    found = (way(size) for size in rows[1:-1])
    return next((smaller for smaller in found if smaller is not None and smaller.fits), least) if least.fits else least


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
    """Whether it can be counted."""
    if placement == "offloaded":
        return (kind, 1) in costs.fetched()
    if placement == "fsdp":
        return (kind, 1) in costs.gathered()
    working = [costs.working()] if placement == "single" else [device.working() for device in costs.spread()]
    return bool(working) and all(kind in one.held for one in working)


def _shares(placement: Placement, kind: Work, costs: Costs) -> bool:
    """Whether several vectors at once take more memory than one."""
    if placement in ("offloaded", "fsdp"):
        counts = costs.fetched() if placement == "offloaded" else costs.gathered()
        return any(name == kind and number > 1 for name, number in counts)
    working = costs.working() if placement == "single" else costs.spread()[0].working()
    return working.held[kind].further > 0


def _first_that_fits(
    placement: Placement, kind: Work, costs_at: CostsAt, rows: int, demands: list[Demand], devices: Devices
) -> Way | None:
    """Bases before none, and vectors multiplied together before one by one, to which a run retreats by itself."""
    costs, way = costs_at(rows), None
    if placement == "layerwise" and not costs.spread():
        return None
    if placement in ("fsdp", "offloaded") and kind not in costs.by_layer:
        return None
    if placement == "offloaded" and devices.host_bytes is None:  # what the host has is not known: ask least of it
        demands = demands[-1:]
    for demand in demands:
        for most in (demand.together, 1):
            way = _way(placement, kind, costs_at, rows, demand, devices, most=most)
            if way is None:
                return None
            room = devices.bytes_each - way.weights_bytes
            if way.fits and (costs.basis_place != "device" or way.basis_bytes <= BASIS_SHARE * room):
                return way
            if not demand.by_turns and (way.product_bytes is None or not _shares(placement, kind, costs)):
                break
    return way


def _way(
    placement: Placement, kind: Work, costs_at: CostsAt, rows: int, demand: Demand, devices: Devices, *, most: int
) -> Way | None:
    """None where it cannot be counted; it is not counted where all else alone does not fit."""
    costs, room = costs_at(rows), FULL * devices.bytes_each
    count = devices.count if placement in ("layerwise", "fsdp") else 1

    def held(phase: Phase, costs: Costs, num_batches: int | None) -> list[_Bytes]:
        found = _held(placement, kind, costs, phase, count, min(most, phase.together), num_batches)
        if num_batches is None or kind != "graph-kept" or not phase.of_groups:
            return found
        # The graphs of the slice stay while a group's products are made, each with a graph of its own.
        group = costs_at(min(rows, phase.of_groups))
        beside = _held(placement, "double-backward", group, phase, count, 1, 1)
        return [replace(each, own=each.own + more.own) for each, more in zip(found, beside, strict=True)]

    def phases(num_batches: int | None) -> list[tuple[int, Phase, int, _Bytes]]:
        every = [(phase, enumerate(held(phase, costs, num_batches))) for phase in demand.phases]
        return [(found.total, phase, place, found) for phase, each in every for place, found in each]

    found = phases(None)
    counted = max(total for total, *_ in found) <= room
    if counted:
        if not _exists(placement, kind, costs):
            return None
        found = phases(costs.num_batches)
    total, phase, place, worst = max(found, key=lambda one: one[0])
    host, disk = (max(getattr(each, name) for *_, each in found) for name in ("host", "disk"))
    fits = counted and total <= room
    if devices.host_bytes is not None:
        fits = fits and host <= FULL * devices.host_bytes
    grows = None
    if counted and _exists(placement, kind, other := costs_at(1 if rows > 1 else 2)):
        again = held(phase, other, costs.num_batches)[place]
        grows = min(worst.own, max(0, (worst.own - again.own) * rows // (rows - other.batch_size)))
    return Way(
        placement=placement,
        product=_NAMES.get(kind, kind),
        graph_kept=kind == "graph-kept",
        exact=kind != "finite-difference",
        batch_size=costs.batch_size,
        together=most,
        gradients=gradients_of(kind, min(most, _usual(demand)), fetched=placement == "offloaded"),
        demand=demand.words,
        matvecs=demand.by_differences if kind == "finite-difference" else demand.matvecs,
        num_devices=count,
        weights_bytes=worst.weights,
        vectors_bytes=worst.vectors,
        basis_bytes=worst.basis,
        product_bytes=worst.own if counted else None,
        activations_bytes=grows,
        total_bytes=total,
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


def _held(
    placement: Placement, kind: Work, costs: Costs, phase: Phase, count: int, at_once: int, num_batches: int | None
) -> list[_Bytes]:
    """On each device that is counted; without what the product takes where the number of batches is None."""
    sizes, vector = costs.sizes, costs.vector
    vectors = phase.held(at_once) * vector
    basis = phase.basis * costs.basis_vector
    disk = basis if costs.basis_place == "disk" else 0
    host = basis if costs.basis_place == "host" else 0
    on_device = basis - disk - host
    if placement == "single":
        own = 0 if num_batches is None else _own(kind, costs.working(), at_once, num_batches)
        return [_Bytes(sizes.weights, vectors, on_device, own, host, disk)]
    if placement == "layerwise":
        return [
            _Bytes(
                device.weights,
                int(device.share * vectors),
                int(device.share * on_device),
                0 if num_batches is None else _own(kind, device.working(), at_once, num_batches),
                host,
                disk,
            )
            for device in costs.spread()
        ]
    if placement == "fsdp":
        own = 0 if num_batches is None else _elsewhere(costs.gathered(), kind, at_once).total
        shares = [math.ceil(n / count) for n in (sizes.weights, vectors, on_device)]
        return [_Bytes(shares[0], shares[1], shares[2], own, host, disk)]
    held = HeldElsewhere(0, 0, 0) if num_batches is None else _elsewhere(costs.fetched(), kind, at_once)
    # What lies outside of layers is on the device; vectors are on the host as a whole, and no part of them stays there.
    further = IN_A_DIFFERENCE * vector if kind == "finite-difference" else 0
    host += sizes.weights - sizes.outside + vectors + on_device + further
    return [_Bytes(sizes.outside + held.weights, held.vectors, 0, held.own, host, disk)]


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


def _own(kind: Work, working: WorkingSet, together: int, num_batches: int) -> int:
    held = working.held[kind]
    return held.own + held.further * (together - 1) + held.graph * (num_batches - 1)
