"""How far the spectrum may go beyond the outermost Ritz values of a run from a random start."""

import numpy as np

from hesscli.linalg.statistics import LEVEL


def hidden_reach(lowest: float, highest: float, *, dimension: int, num_steps: int) -> float | None:
    """A distance beyond either outermost Ritz value that no eigenvalue exceeds, with 95 % chance for both ends.

    Kuczynski and Wozniakowski 1992, theorem 3.2: after m steps from a vector uniform on the sphere, lambda_max
    exceeds the largest Ritz value by more than eps (lambda_max - lambda_min) with a chance of at most
    1.648 sqrt(n) exp(-sqrt(eps) (2m - 1)). It needs no gap, and is wide for that. None where steps are too few.
    """
    chance = (1.0 - LEVEL) / 2
    eps = (np.log(1.648 * np.sqrt(dimension) / chance) / (2 * num_steps - 1)) ** 2
    if 2 * eps >= 1:
        return None
    # The true span is at most the Ritz values' own and this distance at both ends.
    return float(eps * (highest - lowest) / (1 - 2 * eps))
