"""Derivatives of the loss along a line from the loss alone: what gradients and products must agree with.

Nothing here is differentiated, so it shares no code with what it is held against.
"""

from dataclasses import dataclass

import numpy as np
import torch

from hesscli.curvature.risk import EmpiricalRisk
from hesscli.linalg.space import ParameterVector

_RISE = 2e-3  # of the loss, by curvature: far above its rounding, and the next orders still small
_ROUNDING = 1.0  # roundings of float32 in a mean loss, over the loss; 0.1 to 0.5 were seen
_LONGEST = 3e-2  # of the weights' length
_HALVINGS = 5
_SETTLED = 0.2  # of a mismatch: two steps that agree as well as this show a derivative


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How far first and second derivative of the loss along a line are from what was predicted; relative."""

    slope: float | None
    curvature: float | None
    """None where it was not predicted, or where rounding or kinks of the loss hide it."""


def mismatch_along(
    risk: EmpiricalRisk,
    u: ParameterVector,
    loss: float,
    *,
    slope: float,
    curvature: float | None,
    scales: tuple[float, float],
    enough: float,
) -> Mismatch:
    """Hold g.u and u.Hu, where it is given, against central differences of the loss along the unit vector u.

    `scales`: the sizes that mismatches are relative to, such as the typical ones of a random vector. Differences are
    extrapolated from a step and its half; one that is no nearer than `enough` is made again with half the step, and
    counts only where it then stays. Costs 2 forward passes, 4 to 6 mostly, at most 12; holds a displaced copy of the
    weights. Weights narrower than float32, selected or not, hide it in rounding: nothing is found.
    """
    if any(p.dtype not in (torch.float32, torch.float64) for p in risk.model.parameters()):
        return Mismatch(None, None)
    size = np.array(scales)
    longest = _LONGEST * risk.weights_norm()
    step = min(longest, float(np.sqrt(2 * _RISE * max(abs(loss), _RISE) / scales[1])))
    predicted = np.array([slope, np.nan if curvature is None else curvature])
    found = np.full(2, np.nan)
    previous = extrapolated = None
    for _ in range(_HALVINGS + 1):
        here, rounding = _differences(risk, u, loss, step)
        better = here if previous is None else here + (here - previous) / 3  # Richardson: errors fall as the square
        wrong = np.abs(better - predicted) / size
        near = wrong + rounding / size <= enough
        stays = np.zeros(2, dtype=bool)
        if extrapolated is not None:
            stays = (np.abs(better - extrapolated) + rounding) / size <= _SETTLED * wrong
        decided = np.isnan(found) & (near | stays)
        found[decided] = wrong[decided]
        if not np.isnan(found[~np.isnan(predicted)]).any():
            break
        extrapolated = None if previous is None else better
        previous, step = here, step / 2
    return Mismatch(*(None if np.isnan(value) else float(value) for value in found))


def _differences(risk: EmpiricalRisk, u: ParameterVector, loss: float, step: float) -> tuple[np.ndarray, np.ndarray]:
    """(first and second derivative by one step, the rounding in each)."""
    ahead, behind = (risk.loss_along(u, sign * step) for sign in (1.0, -1.0))
    rounding = _ROUNDING * float(torch.finfo(torch.float32).eps) * max(abs(loss), abs(ahead), abs(behind))
    values = [(ahead - behind) / (2 * step), (ahead + behind - 2 * loss) / step**2]
    return np.array(values), np.array([rounding / step, 4 * rounding / step**2])
