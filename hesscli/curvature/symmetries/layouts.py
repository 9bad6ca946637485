"""How channels stand in weights: attention heads, grouped heads, and projections that are stored as one.

A layout says to which channel each index of two axes belongs. Which one a model has is read off its gradient, so
neither names nor the configuration of an architecture are needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Layout:
    """The channel of each index of a first and of a second axis; -1 where an index belongs to none."""

    first: np.ndarray
    second: np.ndarray
    num_channels: int


def through(written: int, read: int) -> Iterator[Layout]:
    """Layouts in which each index that is read is one of the channels that are written.

    One for one; values of grouped heads, each read by the outputs of several heads of queries; one half of a
    projection that is stored with another (gate and up); the values of queries, keys and values stored together.
    """
    if read % written == 0:
        for width in _widths(written, read // written):
            yield Layout(np.arange(written), _heads(written, read // written, width), written)
    if written == 2 * read:
        for groups in _divisors(read):  # 1: one half after the other; all: alternating; between: in each expert
            halves = np.arange(written).reshape(groups, 2, -1)
            for half in (1, 0):
                yield Layout(_placed(written, halves[:, half], np.arange(read)), np.arange(read), read)
    for _, _, values, width in _fused(written, read):
        channels = np.arange(values.size)
        yield Layout(_placed(written, values, channels), _heads(values.size, read // values.size, width), values.size)


def scores(queries: int, keys: int) -> Iterator[Layout]:
    """Layouts in which scores of queries against keys see the product of their factors alone, the finest first.

    A channel for itself where positions are no part of the scores; the two that a rotation turns, half a head
    apart; a head, or two neighbours that a rotation turns.
    """
    repeats, rest = divmod(queries, keys)
    if rest:
        return
    both = [(w, _heads(keys, repeats, w), np.arange(keys)) for w in _divisors(keys)]
    for _width, first, second in both[: len(_widths(keys, repeats))]:
        yield Layout(first, second, keys)
    for width, first, second in both:
        if width % 2 == 0:
            yield Layout(_halved(first, width), _halved(second, width), keys // 2)
    for width, first, second in both[1:]:
        yield Layout(first // width, second // width, keys // width)


def fused_scores(written: int, read: int) -> Iterator[Layout]:
    """The layouts of `scores` inside an axis that holds queries, keys and values; both axes are that one."""
    for queries, keys, _, _ in _fused(written, read):
        for inner in scores(queries.size, keys.size):
            first, second = _placed(written, queries, inner.first), _placed(written, keys, inner.second)
            yield Layout(first, second, inner.num_channels)


def _fused(written: int, read: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """Indices of queries, keys and values in one axis, `read` of them queries, and the width of a head.

    In three blocks, or group by group: the queries of a group of heads, their key and their value.
    """
    values, rest = divmod(written - read, 2)
    if rest or values < 1 or read % values:
        return
    repeats, index = read // values, np.arange(written)
    for width in _widths(values, repeats):
        yield index[:read], index[read:-values], index[-values:], width
    for width in _divisors(values):
        groups = index.reshape(-1, repeats + 2, width)
        yield groups[:, :-2].ravel(), groups[:, -2].ravel(), groups[:, -1].ravel(), width


def _heads(channels: int, repeats: int, width: int) -> np.ndarray:
    """The channel that each of channels x repeats indices reads: heads of `width`, each read `repeats` times."""
    index = np.arange(channels * repeats)
    return index // (width * repeats) * width + index % width


def _halved(channels: np.ndarray, width: int) -> np.ndarray:
    half = width // 2
    return channels // width * half + channels % half


def _placed(size: int, places: np.ndarray, channels: np.ndarray) -> np.ndarray:
    out = np.full(size, -1)
    out[places.ravel()] = channels
    return out


def _widths(channels: int, repeats: int) -> list[int]:
    """The widths of a head that make a difference."""
    return _divisors(channels) if repeats > 1 else [channels]


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})
