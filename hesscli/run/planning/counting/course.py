"""The bytes that a piece of work holds over its course, and those of a deep model's from shallow ones'."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

Course = dict[tuple[int, int], np.ndarray]
"""By layer, and by how often the work had come to it before: bytes at the worst moment there, until another layer.

An array (devices, parts): all bytes that a device holds, and of these the ones that have a name.
"""


@dataclass(frozen=True, slots=True)
class Longer:
    """The course over a model that has a few layers more than the shallowest."""

    course: Course
    added: Set[int]
    """The layers that it has more."""
    missing: np.ndarray
    """(devices,): how often the whole model has as many more on each device, beyond the shallowest."""


def worst(course: Course) -> np.ndarray:
    """(devices, parts) at the worst moment of each device."""
    found = np.stack(list(course.values()))
    return np.asarray(found[found[:, :, 0].argmax(axis=0), np.arange(found.shape[1])])


def extended(one: Course, several: Course, *, times: float) -> Course | None:
    """The first course and so many times what the second has more, place by place; None where they are not alike."""
    if one.keys() != several.keys():
        return None
    return {place: held + np.asarray(times * (several[place] - held), np.int64) for place, held in one.items()}


def whole_course(shallow: Course, longer: Sequence[Longer]) -> Course | None:
    """The course over the whole model; None where the courses are not alike.

    At one place of the work, in the first layer or the last, on the way there or back, what is held grows by the same
    for each layer between that is like the others. So it is taken place by place: the worst moment may be another one
    in a deep model than in a shallow one.
    """
    out = {place: held.astype(float) for place, held in shallow.items()}
    for more in longer:
        alike = {place: held for place, held in more.course.items() if place[0] not in more.added}
        if alike.keys() != shallow.keys():
            return None
        for place, held in alike.items():
            out[place] += more.missing[:, None] * (held - shallow[place])
    return {place: np.maximum(held, 0).astype(np.int64) for place, held in out.items()}
