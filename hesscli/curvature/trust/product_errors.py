"""The error of a product along given vectors: held against the same in a wider dtype, or estimated by differences.

It is not one number. On a trained model of 0.5M parameters float32's was 0.9e-6 to 7e-6 of the product's length over
random vectors and eigenvectors, whatever the eigenvalue; but along a given vector it was within 1.5 times the same on a
few short rows. So random vectors stand for random ones, their powers for those that lean to the ends of the spectrum,
and what a probe found is asked for by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterVector

Operator = LinearOperator[ParameterVector]
ErrorsAlong = Callable[[Sequence[ParameterVector]], list[float] | None]
"""||Hv - truth|| / ||Hv|| for each vector, whatever its length; 0 where Hv is zero. None where it is not measured."""

_SAMPLE = (1 << 41) + (1 << 20)  # the index of the first random vector: no probe draws it


@dataclass(frozen=True, slots=True)
class Rounding:
    """Relative errors of a product, each the root mean square over a few vectors."""

    random: float
    """Along random vectors."""
    ends: float
    """Along H v, H^2 v, ...: they lean to the eigenvectors at the ends of the spectrum."""
    largest: float
    """Of them all."""


def errors_along(measured: Operator, reference: Operator, vectors: Sequence[ParameterVector]) -> list[float]:
    """||Hv - truth|| / ||Hv|| for each v: one product of each operator. Products of the reference may be wider."""
    return [_error(measured, reference, v)[0] for v in vectors]


def sampled_errors(measured: Operator, reference: Operator, *, num_random: int, num_powers: int, seed: int) -> Rounding:
    """Errors over so many random vectors, and over powers of the matrix on up to two of them, `num_powers` in all.

    A product of each operator for each vector; holds three vectors and two results.
    """
    space = measured.space
    random, ends = [], []
    for index in range(num_random):
        v = space.random("gaussian", seed=seed, index=_SAMPLE + index)
        error, product = _error(measured, reference, v)
        random.append(error)
        for _ in range((num_powers + 1 - index) // 2 if index < 2 else 0):
            error, product = _error(measured, reference, product)
            ends.append(error)
    return Rounding(_root_mean_square(random), _root_mean_square(ends), max([*random, *ends], default=0.0))


def _error(measured: Operator, reference: Operator, v: ParameterVector) -> tuple[float, ParameterVector]:
    """The error along v made a unit vector, as probes have them, and H v."""
    space = measured.space
    length = space.norm(v)
    if length == 0.0:
        return 0.0, v
    unit = space.copy(v)
    space.scale(1.0 / length, unit)
    product = measured.matvec(unit)
    size = space.norm(product)
    if size == 0.0:
        return 0.0, product
    difference = reference.matvec(unit)
    space.axpy(-1.0, product, difference)
    return space.norm(difference) / size, product


def _root_mean_square(errors: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0
