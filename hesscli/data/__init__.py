"""From a data set to a slice: a fixed, ordered list of rows for the model's task, with counts."""

from hesscli.data.load import load_slice
from hesscli.data.slice import IGNORED, Batch, Sequence, Slice
from hesscli.data.task import Requirements, check_read

__all__ = ["IGNORED", "Batch", "Requirements", "Sequence", "Slice", "check_read", "load_slice"]
