"""The measurements on 2 and 4 processes that several files look at: made once, in two starts."""

import pytest
from spawned import on_ranks
from spawned_measurements import CASES, everything


@pytest.fixture(scope="session")
def over_ranks():
    """By number of ranks, what each found: {"cases": [...], "traffic": ...}."""
    return {size: on_ranks(size, everything, size) for size in CASES}
