"""Where two reports of one measurement differ."""

import pytest

# What depends on where and when a run was made.
OWN = {"cost", "created", "environment", "run_id", "seconds", "placement", "product", "why"}
# Measured roundings, which differ by nature, and bars that are made of them: a test of the products holds them.
NOISE = {"precision", "preflight", "residual", "bar", "numeric", "orthogonality_loss", "product_error"}
NOISE |= {"linearity_residual"}
# Their ends may be small differences of large squares, moved by the noise that is allowed for.
ENDS = {"ci", "band", "unresolved"}


def differences(one, other, path="", rel=2e-4, abs=1e-7):
    """The paths at which two reports differ by more than roundings."""
    given = {"rel": rel, "abs": abs}
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted((one.keys() | other.keys()) - OWN - NOISE)
        wide = {key: {"rel": 1e-2, "abs": 1e-5} if key in ENDS else given for key in keys}
        return [d for key in keys for d in differences(one.get(key), other.get(key), f"{path}.{key}", **wide[key])]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}[{i}]", **given)]
    if isinstance(one, float) and isinstance(other, float):
        return [] if one == pytest.approx(other, **given) else [(path, one, other)]
    return [] if one == other else [(path, one, other)]
