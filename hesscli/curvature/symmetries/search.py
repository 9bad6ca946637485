"""Which scalings of channels leave the loss unchanged to first order, read off one gradient.

If L(exp(t C) theta) does not depend on t, then <C theta, grad L> = 0, channel by channel (the conservation law of
Kunin et al. 2021, section 3). Axes whose balances cancel are candidates: names of architectures are not needed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from hesscli.curvature.symmetries.axes import Axes, Axis, Shapes, Tensors, as_used, axes_of, layers, pairs
from hesscli.curvature.symmetries.layouts import Layout, fused_scores, scores, through

_MOST = 3  # layouts of one pair that are tried
# What PEFT calls the factors of a low rank. Before the first step one of them is zero, and no balance shows the pair.
_FACTORS = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B"}


@dataclass(frozen=True, slots=True)
class Member:
    """An axis whose channel c is scaled by exp(sign t c)."""

    axis: Axis
    channels: np.ndarray
    """The channel of each index; -1 where it belongs to none."""
    sign: float


@dataclass(frozen=True, slots=True)
class Scaling:
    """Axes that are scaled together in each of some layers, each channel by a factor of its own."""

    prefixes: tuple[str, ...]
    members: tuple[Member, ...]
    num_channels: int

    @property
    def exact(self) -> bool:
        """Whether a factor of two in a channel leaves the loss the same in every bit."""
        return all(member.axis.offset == 0.0 for member in self.members)


@dataclass(frozen=True, slots=True)
class Shift:
    """An axis along which the same number is added to every index, as to the rows of a head under a softmax."""

    axis: Axis

    @property
    def exact(self) -> bool:
        """Never: sums are rounded."""
        return False


Candidate = Scaling | Shift


class _Balances:
    """What stands along the axes of one kind of layer, in all its layers."""

    def __init__(self, prefixes: Sequence[str], weights: Tensors, gradient: Tensors, tolerance: float) -> None:
        self.prefixes = tuple(prefixes)
        self._weights, self._gradient, self._tolerance = weights, gradient, tolerance
        self._known: dict[Axis, np.ndarray] = {}

    def of(self, axis: Axis) -> np.ndarray:
        """dL/dt for weights exp(t) w at each index in each layer, (layers, size)."""
        if axis not in self._known:
            rows = [axis.inner(p, as_used([axis], p, self._weights), self._gradient).numpy() for p in self.prefixes]
            self._known[axis] = np.stack(rows)
        return self._known[axis]

    def passing(self, first: Axis, second: Axis, layouts: Iterable[Layout]) -> list[Candidate]:
        """The scalings by opposite factors, of these layouts, in which the two axes cancel; in the order given."""
        found: list[Candidate] = []
        for layout in layouts:
            if layout.num_channels < 2 or not self._pass(first, second, layout):
                continue  # two numbers that agree are a coincidence, or a whole weight, which another layout has
            members = (Member(first, layout.first, 1.0), Member(second, layout.second, -1.0))
            found.append(Scaling(self.prefixes, members, layout.num_channels))
            if len(found) == _MOST:
                break
        return found

    def _pass(self, first: Axis, second: Axis, layout: Layout) -> bool:
        for some in (slice(1), slice(None)):  # most layouts fail in the first layer already
            a = _by_channel(self.of(first)[some], layout.first, layout.num_channels)
            b = _by_channel(self.of(second)[some], layout.second, layout.num_channels)
            if not self.cancel(a, b):
                return False
        return True

    def cancel(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether two balances are the same and not zero."""
        larger = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
        return larger > 0 and float(np.linalg.norm(a - b)) <= self._tolerance * larger


def search(model: nn.Module, weights: Tensors, gradient: Tensors, *, tolerance: float) -> Iterator[list[Candidate]]:
    """Candidates, each with its alternatives, the preferred one first.

    `tolerance` is the relative difference of balances that counts as none. Costs a few passes over the weights.
    """
    for alike, prefixes in layers({name: w.shape for name, w in weights.items()}).items():
        shapes = dict(alike)
        axes = axes_of(model, prefixes[0], shapes)
        balances = _Balances(prefixes, weights, gradient, tolerance)
        found = [*_pairs(axes, shapes, balances), *_gains(axes, shapes, balances)]
        if prefixes == [""]:
            found += [[Shift(axis)] for axis in axes.writes if _adds_up_to_zero(axis, gradient, tolerance)]
        yield from (alternatives for alternatives in found if alternatives)


def _pairs(axes: Axes, shapes: Shapes, balances: _Balances) -> Iterator[list[Candidate]]:
    """What one weight writes and another reads, and what meets in products of two: queries and keys."""
    linked = set()
    for writer, reader in pairs(axes.writes, axes.reads):
        sizes = writer.size(shapes), reader.size(shapes)
        if _are_factors(writer.weight, reader.weight):
            channels = np.arange(sizes[0])
            members = Member(writer, channels, 1.0), Member(reader, channels, -1.0)
            yield [Scaling(balances.prefixes, members, sizes[0])]
            continue
        found = balances.passing(writer, reader, through(*sizes))
        if found:
            linked.add(frozenset((writer.weight, reader.weight)))
            yield found
            yield balances.passing(writer, writer, fused_scores(*sizes))
    for kind in (axes.writes, axes.gains):
        meeting: dict[tuple[str, str], list[Candidate]] = {}
        for a, b in pairs(kind, kind):
            sizes, names = (a.size(shapes), b.size(shapes)), (a.weight, b.weight)
            if frozenset(names) in linked or a.offset != b.offset or names[::-1] in meeting:
                continue
            if sizes[0] >= sizes[1]:
                meeting.setdefault(names, []).extend(balances.passing(a, b, scores(*sizes)))
        yield from meeting.values()


def is_factor(name: str) -> bool:
    """Whether a weight is a factor of a low rank."""
    return any(f".{factor}." in name for pair in _FACTORS.items() for factor in pair)


def _are_factors(first: str, second: str) -> bool:
    """Whether they are the factors of one low rank, the one that reads the layer's input first."""
    return any(f".{a}." in first and first.replace(f".{a}.", f".{b}.") == second for a, b in _FACTORS.items())


def _gains(axes: Axes, shapes: Shapes, balances: _Balances) -> Iterator[list[Candidate]]:
    """A gain and all that read what it scales: which of the axes of its size do is a least squares problem."""
    found: dict[str, list[Candidate]] = {}
    for gain in axes.gains:
        channels = np.arange(gain.size(shapes))
        readers = [axis for axis in axes.reads if axis.size(shapes) == channels.size]
        columns = [balances.of(axis).ravel() for axis in readers]
        target = balances.of(gain).ravel()
        if not 0 < len(columns) < target.size or not all(column.any() for column in columns):
            continue  # too little to tell readers apart, or one that this data does not reach
        matrix = np.stack(columns, axis=1)
        reads = np.asarray(np.round(np.linalg.lstsq(matrix, target, rcond=None)[0]))
        if np.isin(reads, (0.0, 1.0)).all() and balances.cancel(target, matrix @ reads):
            chosen = [axis for axis, taken in zip(readers, reads.tolist(), strict=True) if taken]
            members = (Member(gain, channels, 1.0), *(Member(axis, channels, -1.0) for axis in chosen))
            found.setdefault(gain.weight, []).append(Scaling(balances.prefixes, members, channels.size))
    yield from found.values()


def _adds_up_to_zero(axis: Axis, gradient: Tensors, tolerance: float) -> bool:
    g = gradient[axis.weight]
    return bool(g.sum(dim=axis.dims).norm() < tolerance * g.norm())


def _by_channel(balance: np.ndarray, channels: np.ndarray, count: int) -> np.ndarray:
    """Sums over the indices of each channel, (layers, channels)."""
    inside = channels >= 0
    places = np.arange(len(balance))[:, None] * count + channels[inside]
    sums = np.bincount(places.ravel(), weights=balance[:, inside].ravel(), minlength=len(balance) * count)
    return sums.reshape(len(balance), count)
