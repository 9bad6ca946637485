"""Values of a row: integers as a tensor, or a word for what they are instead."""

from typing import Any

import torch

from hesscli.errors import UsageError


def integers(field: str, value: object, row: int) -> torch.Tensor:
    """A flat list of integers as (length,) int64.

    Raises:
        UsageError: anything else, in the words of `describe`.
    """
    if value == []:
        return torch.zeros(0, dtype=torch.int64)
    try:
        tensor = torch.tensor(value)
    except (TypeError, ValueError, RuntimeError):
        tensor = None
    if tensor is None or tensor.dim() != 1 or tensor.dtype != torch.int64:
        raise UsageError(field, f"row {row} holds {_odd_one(value)}", "give a flat list of integers in each row")
    return tensor


def describe(value: object) -> str:
    """What a value of the wrong type is, in a word or two."""
    if value is None:
        return "nulls"
    if isinstance(value, list | tuple):
        return f"lists of {describe(value[0])}" if value else "empty lists"
    if type(value) is int and not -(2**63) <= value < 2**63:
        return "integers beyond 64 bits"
    words = {str: "strings", bool: "booleans", int: "integers", float: "floats", dict: "objects", bytes: "bytes"}
    return words.get(type(value), f"{type(value).__name__} values")


def _odd_one(value: object) -> str:
    if not isinstance(value, list):
        return describe(value)
    odd = [v for v in value if type(v) is not int or describe(v) != "integers"]
    return describe(odd[0] if odd else value[0])


def text_of(field: str, row: dict[str, Any], column: str, number: int) -> str:
    """The text of one column of a row.

    Raises:
        UsageError: it is absent or something else than text.
    """
    value = row.get(column)
    if not isinstance(value, str):
        chat = isinstance(value, list) and value and isinstance(value[0], dict)
        remedy = "apply the chat template and give its text" if chat else "name a column of text"
        raise UsageError(field, f"{column!r} holds {describe(value)} in row {number}, not text", remedy)
    return value
