"""How far to go along a unit vector, from what two gradients show; plain numbers, no tensors.

With a = g(theta + h v) - g(theta) and b = g(theta - h v) - g(theta), the central quotient is (a - b) / 2h, and three
lengths say how good it is (error of a unit vector's product, relative to it):

    change d = |a - b| / 2       what the quotient divides by h
    bend   e = |a + b| / 2       third derivatives of the loss along v; (e/d)^2 is the truncation error to within a
                                 factor of two, since a network's derivatives along a line grow geometrically
    noise  s                     a gradient's rounding, the same in every direction: s/d is the rounding error

On a trained model of 0.5M parameters in float32 their sum was within a factor of two of the true error for random
vectors and for eigenvectors of either sign, where the best h differs by a factor of 250. The curvature along v
does not give h: for the lowest eigenvector 3e-3 / sqrt(|v.Hv|) is six times the best step, and the error 1e-2.
"""

from dataclasses import dataclass

import numpy as np

# Two more gradients are worth an error that is less by these: above 1e-3, and where the error is fine as it is.
_FINE, _LITTLE, _MUCH = 1e-3, 1.5, 3.0
_LEAP = 16.0  # a step grows by this at the most from one trial to the next
# Of a one-sided quotient only the rounding is seen. Its bending was 0.3 to 5 times the calibrated one, over random and
# eigenvectors of one model at six moments, the most at the lowest: guessed is twice, and steps are for four times.
_GUESSED, _GUARDED = 2.0, 4.0
ROUNDINGS = 3.0  # |a + b|^2 over |a - b|^2 for nothing but roundings: the gradient at theta is in it twice


@dataclass(frozen=True, slots=True)
class Shape:
    """What a step of a unit vector showed: change and bend of the gradient, in its own unit."""

    change: float
    bend: float

    def error(self, noise: float) -> float:
        """The estimated error of the central quotient, relative to it: truncation and rounding."""
        return (self.bend / self.change) ** 2 + noise / self.change if self.change > 0 else float("inf")

    def best(self, noise: float) -> float:
        """The step of least error, over the step that was made: s = 2 d (e/d)^2 r^3."""
        if self.change == 0.0:
            return _LEAP
        return float(min(_LEAP, (0.5 * noise * self.change / self._true_bend(noise) ** 2) ** (1 / 3)))

    def is_best(self, noise: float) -> bool:
        """Whether no other step would be much better."""
        if self.change == 0.0:
            return False
        least = 3.0 * (self._true_bend(noise) / self.change * self.best(noise)) ** 2
        error = self.error(noise)
        return error <= (_MUCH if error <= _FINE else _LITTLE) * least

    def bending(self, noise: float) -> float:
        """Bend over squared change: with it the change alone tells the truncation error of another vector."""
        return float(self._true_bend(noise) / self.change**2) if self.change > 0 else 0.0

    def _true_bend(self, noise: float) -> float:
        # A bend below the roundings is not seen: it is taken for a third of them, so that the step may grow.
        return float(np.sqrt(max(self.bend**2 - ROUNDINGS * noise**2, 0.1 * noise**2)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a run's steps are chosen by, measured once on the model."""

    noise: float
    """The length of a central difference's rounding before it is divided by the step."""
    bending: float
    """Bend over squared change: with it a change of the gradient tells the truncation error beforehand."""
    typical: float
    """The length of a random unit vector's product: the root mean square eigenvalue."""
    longest: float
    shortest: float
    """Limits of a step: 3 % of the weights' length, and what their dtype can hold."""

    @property
    def change(self) -> float:
        """The change of the gradient that central steps aim at: least (bending d)^2 + noise/d."""
        return float((0.5 * self.noise / self.bending**2) ** (1 / 3))

    @property
    def forward_change(self) -> float:
        """The same for forward differences, for a bending that is not seen: least (4 bending d) + 2 noise/d."""
        return float((2.0 * self.noise / (_GUARDED * self.bending)) ** 0.5)

    def forward_error(self, change: float) -> float:
        """The estimated error of a forward quotient, relative to it; the bend is not seen, but guessed."""
        return _GUESSED * self.bending * change + 2.0 * self.noise / change if change > 0 else float("inf")

    def within(self, step: float) -> float:
        """The step, kept within its limits."""
        return min(self.longest, max(self.shortest, step))
