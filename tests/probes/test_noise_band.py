"""A density from a noisy product: the bounds of the distribution, widened by what noise does, hold it."""

import numpy as np
import pytest
from minimal import DiagonalOperator, language_model_spectrum

from hesscli.events import ignore
from hesscli.probes import density as module
from hesscli.probes.density import density

POINTS = np.array([-30.0, -10, -3, -1, -0.3, -0.1, 0.0, 0.1, 0.3, 1, 3, 10, 30, 100])


@pytest.mark.parametrize("window", [None, 0])
@pytest.mark.parametrize("deflate", [True, False])
@pytest.mark.parametrize("noise", [1e-3, 1e-2])
def test_bounds_hold_the_distribution_under_noise(noise, deflate, window, monkeypatch):
    monkeypatch.setattr(module, "band_points", lambda _quadratures: POINTS)
    held = []
    for seed in range(20):
        spectrum = language_model_spectrum(1500, seed=seed)
        below = (spectrum <= POINTS[:, None]).mean(axis=1)
        result = density(
            DiagonalOperator(spectrum, relative=noise, seed=seed),
            probes=2,
            steps=30,
            deflate=deflate,
            window=window,
            semi_definite=False,
            noise=noise,
            seed=seed,
            on_event=ignore,
        )
        held.append((result.band.low <= below + 1e-9) & (below - 1e-9 <= result.band.high))
        low, high = result.negative_mass_bounds
        held[-1] = np.append(held[-1], low <= (spectrum < 0).mean() <= high)
    assert np.mean(held) >= 0.95


def test_bounds_that_noise_does_not_widen_fail_to_hold(monkeypatch):
    monkeypatch.setattr(module, "band_points", lambda _quadratures: POINTS)
    held = []
    for seed in range(10):
        spectrum = language_model_spectrum(1500, seed=seed)
        below = (spectrum <= POINTS[:, None]).mean(axis=1)
        operator = DiagonalOperator(spectrum, eta=2.0, seed=seed)
        options = {"probes": 2, "steps": 30, "deflate": False, "window": 0, "semi_definite": False}
        result = density(operator, noise=0.0, seed=seed, on_event=ignore, **options)
        held.append((result.band.low <= below + 1e-9) & (below - 1e-9 <= result.band.high))
    assert np.mean(held) < 0.9
