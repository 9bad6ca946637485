"""A count over a whole model, from counts with a few of its layers and a few of its experts."""

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Generic, TypeVar

import numpy as np
from torch import nn

from hesscli.checkpoint.spread import Homes
from hesscli.run.planning.counting.course import Course, worst
from hesscli.run.planning.counting.regions import Regions
from hesscli.run.planning.counting.shallow import Shallow, over_depth, shallow_models

K = TypeVar("K", bound=Hashable)
P = TypeVar("P")
Mark = Callable[[nn.Module], Regions]
"""Of the modules that run, which may be copies of those that were given: where their work is."""
# Experts of a mixture that run in a count, each about 15 operations. What the bytes grow by from the one number to the
# other, one expert's share of a layer's gradient each, they grow by for every expert more.
EXPERTS = 8, 16


class Sites(Generic[P]):
    """Shallow copies of a model, with a few experts and with some more, each prepared for what is counted.

    `ends` layers are kept at each end of those that are alike: two where a layer's neighbours are there with it, one
    where not. `prepare` is given a copy, what marks the modules that run as its layers, and how many experts run.
    """

    def __init__(
        self,
        model: nn.Module,
        homes: Homes,
        *,
        num_experts: int,
        ends: int,
        prepare: Callable[[nn.Module, Mark, int], P],
    ) -> None:
        self._model, self._homes, self._num_experts, self._prepare = model, homes, num_experts, prepare
        hits = [min(hit, num_experts) for hit in EXPERTS]
        self._hits = hits[:1] if num_experts <= EXPERTS[0] else hits
        self._rows = [self._prepared(hit, ends) for hit in self._hits]

    @property
    def first(self) -> P:
        """The shallowest, with the fewest experts."""
        return self._rows[0][1][0]

    def worst(self, work: Callable[[P], Mapping[K, Course]]) -> dict[K, np.ndarray]:
        """(devices, parts) by what was counted: the bytes at the worst moment of each device, over the whole model."""
        found = self._courses(work)
        if any(course is None for row in found for course in row.values()):  # layers that only look alike
            self._rows = [self._prepared(hit, 0) for hit in self._hits]
            found = self._courses(work)
        peaks = [{key: worst(course) for key, course in row.items() if course is not None} for row in found]
        return {key: self._with_every_expert([row[key] for row in peaks]) for key in peaks[0]}

    def _prepared(self, hit: int, ends: int) -> tuple[list[Shallow], list[P]]:
        models = shallow_models(self._model, homes=self._homes, ends=ends)
        return models, [self._prepare(found.model, partial(self._marked, found), hit) for found in models]

    def _marked(self, found: Shallow, model: nn.Module) -> Regions:
        homes, devices = self._homes, [self._homes.layers[i] for i in found.layers]
        return Regions(model, layers=found.layers, devices=devices, outside=homes.outside, count=homes.count)

    def _courses(self, work: Callable[[P], Mapping[K, Course]]) -> list[dict[K, Course | None]]:
        out = []
        for models, prepared in self._rows:
            each = [work(one) for one in prepared]
            out.append({key: over_depth(models, [courses[key] for courses in each]) for key in each[0]})
        return out

    def _with_every_expert(self, counts: list[np.ndarray]) -> np.ndarray:
        if len(counts) == 1:
            return counts[0]
        fewer, more = self._hits
        growth = np.maximum(0, counts[1] - counts[0]) * (self._num_experts - more) // max(1, more - fewer)
        return np.asarray(counts[1] + growth)
