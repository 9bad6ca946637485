"""The Hessian by differences of gradients: for what has a gradient and no second derivative, fused attention too.

    central   (g(theta + h v) - g(theta - h v)) / 2h      2 gradients, error O(h^2)
    forward   (g(theta + h v) - g(theta)) / h             1 gradient, error O(h): for a basis that is certified after

v is of unit length here whatever its own, and h is chosen for it from what the gradients show (`step.py`). One step for
every vector is for studies of the step alone: it is wrong for one vector or the other, and its error is told the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from hesscli.curvature.differences.displaced import DisplacedGradient
from hesscli.curvature.differences.kinks import find_kinks, has_experts
from hesscli.curvature.differences.step import ROUNDINGS, Calibration, Shape
from hesscli.curvature.fingerprint import fingerprint
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.errors import UsageError
from hesscli.events import Warned
from hesscli.linalg.space import ParameterSpace, ParameterVector

Scheme = Literal["central", "forward"]

# Steps are powers of this, so that which vectors came before does not change a product.
_GRID = 4.0
_WINDOW = 2.2  # the change may miss what is aimed at by this: half a grid, and some noise
_TRIALS = 4
_ROUNDS = 4  # of the power method at each end: 0.9 of the largest error of a run was seen then, on one trained model
_SAMPLE = 1 << 41  # the index of the calibration's random vector: neither a probe nor the preflight draws it
_LONGEST = 3e-2  # of the weights' length
# Roundings of the weights' length: a displacement's own are then a tenth of it, in no direction of their own, and their
# product is part of the noise that is measured.
_SHORTEST = 2.0
# Rounding is measured at 1e-5 of the weights' length, then nearer by 16 until the bend no longer falls as h^2 or a step
# is as near as this many roundings.
_NOISY, _NEARER, _NEAREST = 1e-5, 16.0, 10.0
_LEAST_NOISE = 0.1  # roundings of the gradient's length; about 6 was measured
# Signs of a loss that is not smooth. Quotients at h and h/4 disagree by this many times their errors (1.4 was the most
# where it is smooth), or no step of some vector has an error below this (3e-3 was the most).
_ROUGH, _ROUGH_ERROR = 5.0, 0.03
# Estimated errors of six random vectors, root mean square, were 0.5 to 1.7 times the true ones over 77 architectures.
_DOUBT = 1.25
_FIXED = 1e-3  # what intervals allow for whatever was estimated of a step that was given
_BEYOND = 3.0  # an estimate above what intervals allow for by less than products differ is not spoken of


@dataclass(frozen=True, slots=True)
class Difference:
    """A product, the step that it was made with, and its estimated error."""

    product: ParameterVector
    step: float
    """Of the unit vector."""
    error: float
    """Estimated length of the product's error, over the product's length; inf where the product is zero."""
    switched: int | None = None
    """How many of the model's choices, as experts for a token in a layer, changed on either side; None if it has none.

    Each adds a jump of the gradient over the step, which `error` knows nothing of.
    """


class FiniteDifferenceOperator:
    """The Hessian of a risk by differences, with an estimated error for every product.

    Holds the gradient at theta; a product holds a displaced copy of the weights, one more vector (central), and what
    one batch's gradient needs. The first product calibrates: about 15 gradients more, again after a weight was changed.

    `fixed_step` is for central differences: of every unit vector, in the weights' unit; None chooses one for each.

    Raises UsageError where a parameter has no data or the weights' dtype cannot hold the fixed step, and
    FloatingPointError where a gradient is not finite.
    """

    def __init__(self, risk: EmpiricalRisk, *, scheme: Scheme, fixed_step: float | None = None) -> None:
        for name, p in risk.model.named_parameters():
            if p.device.type == "meta":
                what = f"finite differences move the weights, and '{name}' is not in memory"
                raise UsageError("operator.product", what, "place every weight on a device that holds it")
        self.risk, self.scheme, self.fixed_step = risk, scheme, fixed_step
        self._made_from: tuple[int, ...] | None = None
        self._kinked = False
        self._step = 0.0  # the last one
        self.error_estimate = 0.0
        """The largest estimated error of a product so far, over its length or that of a random vector's, if longer."""
        self._logarithms, self._count = 0.0, 0  # of all of them
        self.steps: tuple[float, float] | None = None
        """The smallest and the largest step of a unit vector so far."""
        self.roughness = 0.0
        """How far quotients at two steps disagree, over what their errors explain."""
        self.switched: tuple[int, int] | None = None
        """The most choices that changed within one product's step, and in how many products any did; None as above."""

    @property
    def num_choices(self) -> int | None:
        """How often the model chooses in one pass over the data; None before the first product, and if it does not."""
        return self._gradient.num_choices or None if self._made_from is not None else None

    @property
    def space(self) -> ParameterSpace:
        """The selected parameters."""
        return self.risk.space

    def gradient(self) -> ParameterVector:
        """A copy of the gradient at theta that products are differences from: in float32 where weights are narrower."""
        self._calibrate_once()
        return self._gradient.origin()

    @property
    def relative_error(self) -> float:
        """What intervals must allow for, over the product's length: 1.25 times the estimates so far, geometric mean.

        Along a symmetry the gradient bends and the product does not err: an estimate may be six times too large there.
        The largest of them where they disagree with each other or are large, where the gradient has kinks, and where
        the step was given.
        """
        if self.fixed_step is not None:
            return max(_FIXED, self.error_estimate)
        if self._is_rough or self._kinked or self._count == 0:  # which kinks a step crosses differs by the vector
            return self.error_estimate
        return _DOUBT * float(np.exp(self._logarithms / self._count))

    @property
    def _is_rough(self) -> bool:
        return self.roughness > _ROUGH or self.error_estimate > _ROUGH_ERROR

    def errors_along(self, vectors: Sequence[ParameterVector]) -> list[float]:
        """The estimated error of the product along each vector, relative to it, nearer than `Difference.error` is.

        The truncation is read off a quotient at four times the step, as Richardson does, and not guessed from the
        bend: 4 gradients a vector. A given step's is what it is at that step.
        """
        return [self._nearer_error(v) for v in vectors]

    def _nearer_error(self, v: ParameterVector) -> float:
        found = self.difference(v)
        length = self.space.norm(v)
        size = self.space.norm(found.product) / length if length > 0 else 0.0
        if size == 0.0:
            return 0.0
        step = _GRID * found.step
        if self.scheme == "forward" or step > self._calibration.longest:
            return found.error
        other, _ = self._complete(v, step / length, self._gradient.change(v, step / length))
        self.space.scale(length / step, other)
        self.space.axpy(-1.0, found.product, other)
        apart = self.space.norm(other) / length / size
        noise = self._calibration.noise / (found.step * size)
        return float(np.hypot(apart / (_GRID**2 - 1), noise))

    def warnings(self, *, noise: float) -> list[Warned]:
        """What the products so far say against themselves; intervals were widened by the relative error `noise`."""
        return self._smoothness(noise) + self._routing()

    def _routing(self) -> list[Warned]:
        most, products = self.switched or (0, 0)
        text = "differences count the jump, and their error estimate does not; use an exact product"
        if most:
            found = (
                f"of {self.num_choices} choices, as of a token's experts in a layer, up to {most} change within a step"
            )
            return [Warned("routing", f"{found}, and any in {products} of the products: {text}")]
        if self.switched is None and has_experts(self.risk.model):
            return [Warned("routing", f"a step may send tokens to other experts, which is not counted here: {text}")]
        return []

    def _smoothness(self, noise: float) -> list[Warned]:
        if self.fixed_step is not None:
            return self._misfit(noise, self.fixed_step)
        if self._is_rough:
            text = f"quotients at two steps differ by {self.roughness:.2g} times their errors, and a product's error "
            text += f"is estimated at {self.error_estimate:.2g}: the loss has kinks or jumps there"
            return [Warned("not-smooth", f"{text}, and the figures are not its Hessian's; use an exact product")]
        if self.error_estimate > _BEYOND * noise:
            text = f"a product's error is estimated at {self.error_estimate:.2g}, and intervals allow for {noise:.2g}"
            return [Warned("difference-error", f"{text}; use an exact product")]
        return []

    def _misfit(self, noise: float, step: float) -> list[Warned]:
        """Of one step for every vector: what is seen may be the step's own error, and says nothing of the loss."""
        if self.error_estimate <= max(_ROUGH_ERROR, _BEYOND * noise):
            return []
        text = f"at the fixed step {step:g} a product's error is estimated at {self.error_estimate:.2g}"
        return [Warned("difference-error", f"{text}, and intervals allow for {noise:.2g}; use operator.step auto")]

    @property
    def memory(self) -> dict[str, Any]:
        """What the products so far have left behind, for `recall` in another process."""
        return {
            "step": self._step,
            "steps": self.steps,
            "error_estimate": self.error_estimate,
            "logarithms": [self._logarithms, self._count],
            "roughness": self.roughness,
            "switched": self.switched,
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on as after the products that left this memory; calibrates, as the first product does."""
        self._calibrate_once()
        self._step, self.error_estimate, self.roughness = (memory[k] for k in ("step", "error_estimate", "roughness"))
        self.steps = tuple(memory["steps"])
        self._logarithms, self._count = memory["logarithms"]
        self.switched = None if memory["switched"] is None else tuple(memory["switched"])

    def matvec(self, v: ParameterVector) -> ParameterVector:
        """H v: 2 gradients (forward: 1), and 1 to 4 more where v is of another kind than the vector before it."""
        return self.difference(v).product

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        """H v for each v, one after the other."""
        return [self.matvec(v) for v in vs]

    def difference(self, v: ParameterVector) -> Difference:
        """H v with its step and its estimated error. Zeros give zeros and cost nothing."""
        length = self.space.norm(v)
        if length == 0.0:
            return Difference(self.space.zeros(), 0.0, 0.0)
        if not np.isfinite(length):
            msg = "a vector to be multiplied is not finite"
            raise FloatingPointError(msg)
        self._calibrate_once()
        found = self._central(v, length)[0] if self.scheme == "central" else self._forward(v, length)
        self._note(found, self.space.norm(found.product) / length)
        if found.switched is not None:
            most, products = self.switched or (0, 0)
            self.switched = max(most, found.switched), products + (found.switched > 0)
        return found

    def _central(self, v: ParameterVector, length: float) -> tuple[Difference, Shape]:
        if self.fixed_step is not None:
            return self._at(self.fixed_step, v, length)
        step, ahead = self._reach(v, length, self._calibration.change)
        for trial in range(_TRIALS):
            product, shape = self._complete(v, step / length, ahead)
            better = self._calibration.within(step * shape.best(self._calibration.noise))
            if trial == _TRIALS - 1 or better == step or shape.is_best(self._calibration.noise):
                break
            step, ahead = better, self._gradient.change(v, better / length)
        switched, error = self._switched, shape.error(self._calibration.noise)
        self.space.scale(length / step, product)
        if self._kinked:
            error = max(error, self._kink_error(v, product, step / length))
        return Difference(product, step, error, switched), shape

    def _kink_error(self, v: ParameterVector, product: ParameterVector, alpha: float) -> float:
        """What kinks that the step crosses add, from a quotient at four times the step: 2 gradients.

        It crosses about four times as many, whose jumps add up to two to four times as much. The bend does not show
        them: a jump on one side is in it once, as in the quotient, and not squared.
        """
        size = self.space.norm(product)
        if size == 0.0:
            return 0.0
        other, _ = self._complete(v, _GRID * alpha, self._gradient.change(v, _GRID * alpha))
        self.space.scale(1.0 / (_GRID * alpha), other)
        self.space.axpy(-1.0, product, other)
        return self.space.norm(other) / size / np.sqrt(_GRID)

    def _at(self, step: float, v: ParameterVector, length: float) -> tuple[Difference, Shape]:
        """The central quotient at one step, 2 gradients, with its error estimated as at any other."""
        product, shape = self._complete(v, step / length, self._gradient.change(v, step / length))
        self.space.scale(length / step, product)
        return Difference(product, step, shape.error(self._calibration.noise), self._switched), shape

    def _forward(self, v: ParameterVector, length: float) -> Difference:
        step, product = self._reach(v, length, self._calibration.forward_change)
        error = self._calibration.forward_error(self._gradient.size)
        self.space.scale(length / step, product)
        return Difference(product, step, error, self._gradient.count(self._gradient.switched))

    def _reach(self, v: ParameterVector, length: float, aim: float) -> tuple[float, ParameterVector]:
        """A step on the grid that changes the gradient by about `aim`, and the change; the last one is tried first."""
        for _ in range(_TRIALS):
            ahead = self._gradient.change(v, self._step / length)
            size = self._gradient.size
            wanted = self._calibration.within(self._step * aim / size if size > 0 else np.inf)
            nearest = float(_GRID ** np.round(np.log(wanted) / np.log(_GRID)))
            if aim / _WINDOW <= size <= aim * _WINDOW or nearest == self._step:
                break
            self._step = nearest
        else:
            ahead = self._gradient.change(v, self._step / length)
        return self._step, ahead

    def _complete(self, v: ParameterVector, alpha: float, ahead: ParameterVector) -> tuple[ParameterVector, Shape]:
        """Half the difference of the two sides, in the storage of `ahead`, and what they show."""
        before = self._gradient.switched
        behind = self._gradient.change(v, -alpha)
        after = self._gradient.switched
        self._switched = self._gradient.count(None if before is None or after is None else before | after)
        self.space.axpy(1.0, ahead, behind)
        bend = 0.5 * self.space.norm(behind)
        self.space.axpy(-0.5, behind, ahead)
        return ahead, Shape(self.space.norm(ahead), bend)

    def _note(self, found: Difference, size: float) -> None:
        least, most = self.steps or (found.step, found.step)
        self.steps = min(least, found.step), max(most, found.step)
        if size > 0:
            relative = found.error * size / max(size, self._calibration.typical)
            self.error_estimate = max(self.error_estimate, relative)
            self._logarithms += float(np.log(max(relative, np.finfo(np.float64).tiny)))
            self._count += 1

    def _calibrate_once(self) -> None:
        """Once for these weights."""
        now = fingerprint([*self.risk.model.parameters(), *self.risk.model.buffers()])
        if any(self.space.ranks.each(now != self._made_from)):
            self._calibrate()
            self._made_from = now

    def _calibrate(self) -> None:
        """Rounding and bending on this model, from a random unit vector v and from H v, which is a Krylov vector."""
        space, self._gradient = self.space, DisplacedGradient(self.risk)
        weights = self._gradient.weights_norm
        rounding = self._gradient.rounding * weights
        if self.fixed_step is not None and self.fixed_step < _SHORTEST * rounding:
            what = f"{self.fixed_step:g} is lost in the roundings of weights of length {weights:.3g}"
            raise UsageError("operator.step", what, f"use auto, or {_SHORTEST * rounding:.2g} or more")
        v = space.random("gaussian", seed=0, index=_SAMPLE)
        space.scale(1.0 / space.norm(v), v)
        noise = self._measure_noise(v, _NOISY * weights, _NEAREST * rounding)
        # Until it is known, bending is as if the gradient changed by its own length before it bends.
        bending = 0.7 / max(self._gradient.norm, 1e4 * noise)
        limits = {"longest": _LONGEST * weights, "shortest": _SHORTEST * rounding}
        self._calibration = Calibration(noise, bending, typical=0.0, **limits)
        self._kinked = bool(find_kinks(self.risk))
        self._step = _NOISY * weights
        first, shape = self._central(v, 1.0)
        typical, self.roughness, self.error_estimate = space.norm(first.product), 0.0, 0.0
        self._logarithms, self._count = 0.0, 0
        if typical > 0:
            bending = shape.bending(noise)
            self._calibration = replace(self._calibration, bending=bending, typical=typical)
            self.roughness = self._disagreement(v, first)
            self.error_estimate = first.error * max(1.0, self.roughness)
            self._note(replace(first, error=self.error_estimate), typical)
            space.scale(1.0 / typical, first.product)
            second, shape = self._central(first.product, 1.0)
            self._note(second, space.norm(second.product))
            self._calibration = replace(self._calibration, bending=max(bending, shape.bending(noise)))
            if self.fixed_step is not None:
                self._try_ends(second.product)
        if self.scheme == "forward":  # these were central
            self._logarithms, self._count = 0.0, 0

    def _try_ends(self, v: ParameterVector) -> None:
        """Note a fixed step's error near both ends of the spectrum, where it is largest: 2 gradients a round and end.

        So intervals allow for it from the start. By the power method, first as it is, then with what it found as the
        shift, which leads to the other end. `v` is used up.
        """
        space, shift = self.space, 0.0
        for _ in range(2):
            for _ in range(_ROUNDS):
                space.scale(1.0 / max(space.norm(v), np.finfo(np.float64).tiny), v)
                found = self._central(v, 1.0)[0]
                self._note(found, space.norm(found.product))
                end = space.inner(v, found.product)
                space.axpy(-shift, v, found.product)
                v = found.product
            shift = end

    def _measure_noise(self, v: ParameterVector, step: float, nearest: float) -> float:
        """The bend that does not fall with the step, as rounding: 4 gradients, 2 more for each step nearer."""
        bend = self._complete(v, step, self._gradient.change(v, step))[1].bend
        while step > nearest:
            step /= _NEARER
            nearer = self._complete(v, step, self._gradient.change(v, step))[1].bend
            if nearer > bend / _NEARER or nearer == 0.0:
                break
            bend = nearer
        least = _LEAST_NOISE * self._gradient.rounding * self._gradient.norm
        return float(max(bend / np.sqrt(ROUNDINGS), least, np.finfo(np.float64).tiny ** 0.5))

    def _disagreement(self, v: ParameterVector, found: Difference) -> float:
        """How far the quotient at a quarter of the step is from the one found, over what their errors explain."""
        space, size = self.space, self.space.norm(found.product)
        step = found.step / _GRID
        other, shape = self._complete(v, step, self._gradient.change(v, step))
        space.scale(1.0 / step, other)
        space.axpy(-1.0, found.product, other)
        return space.norm(other) / size / (found.error + shape.error(self._calibration.noise))
