"""Where two reports of one measurement differ."""

import pytest

# What depends on where and when a run was made, and on roundings that it measures.
OWN = {"cost", "created", "environment", "run_id", "seconds"}
NOISE = {
    "precision",
    "preflight",
    "residual",
    "bar",
    "numeric",
    "orthogonality_loss",
    "why",
    "placement",
    "product",
    "product_error",
}


def differences(one, other, path=""):
    """The paths at which two reports differ by more than roundings."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = (one.keys() | other.keys()) - OWN - NOISE
        return [found for key in sorted(keys) for found in differences(one.get(key), other.get(key), f"{path}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{path}[{i}]")]
    if isinstance(one, float) and isinstance(other, float):
        return [] if one == pytest.approx(other, rel=2e-4, abs=1e-7) else [(path, one, other)]
    return [] if one == other else [(path, one, other)]
