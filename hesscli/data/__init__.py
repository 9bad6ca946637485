"""From a data set to a slice: a fixed, ordered list of token sequences with counts."""

from hesscli.data.load import load_slice
from hesscli.data.slice import IGNORED, Batch, Sequence, Slice

__all__ = ["IGNORED", "Batch", "Sequence", "Slice", "load_slice"]
