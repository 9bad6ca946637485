"""What a GPU gives: products of a model of 1.7B parameters, the largest that fits, and weights that are elsewhere."""

import sys
from pathlib import Path

_TESTS = Path(__file__).parent.parent.parent
sys.path[:0] = [str(_TESTS), str(_TESTS / "distributed")]  # what measures, and what starts processes, stands there
