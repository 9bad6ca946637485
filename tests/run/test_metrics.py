"""From estimates to a report's metrics: what the product's own error does to them."""

import numpy as np
import pytest

from hesscli.linalg.statistics import Estimate
from hesscli.run.figures.metrics import moments

SPECTRA = {
    "one sign": np.full(50, 2.0),
    "both signs": np.array([3.0, -3.0] * 25),
    "an outlier": np.array([9.0] + [0.1] * 49),
}


def known(value):
    return Estimate(value, 0.0, (value, value), 2)


@pytest.mark.parametrize("name", SPECTRA)
def test_an_error_that_all_products_share_is_in_the_interval_of_the_trace(name):
    truth, relative_error = SPECTRA[name], 0.02
    measured = truth * (1 + relative_error)  # weights that were rounded enlarge every eigenvalue alike
    found = moments(known(measured.sum()), known((measured**2).sum()), dimension=50, noise=relative_error)
    low, high = found["trace"].ci
    assert low <= truth.sum() <= high
    low, high = found["frobenius_norm"].ci
    assert low <= np.linalg.norm(truth) <= high
