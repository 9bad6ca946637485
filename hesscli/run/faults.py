"""What goes wrong below, in words that a user can act on."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from hesscli.errors import DoesNotFitError, HessError, UsageError
from hesscli.recipe.schema import DataSection, ModelSection


@contextmanager
def as_hess_error() -> Iterator[None]:
    """Turn a lack of memory, a full disk, or an operation without a second derivative into one clear line."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _no_memory() from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UsageError("output.dir", "the disk is full", "give another folder with -o") from error
        raise
    except RuntimeError as error:
        text = str(error)
        if "can't allocate memory" in text or "out of memory" in text.lower():
            raise _no_memory() from error
        if "is not implemented" in text and "derivative for" in text:
            operation = text.partition("derivative for ")[2].split(" ")[0]
            raise UsageError(
                "operator.product", f"{operation} has no second derivative in this torch", "use --attn eager"
            ) from error
        raise


@contextmanager
def in_section(section: Literal["model", "data"]) -> Iterator[None]:
    """Name a key of a recipe in an error as the recipe's own errors do: `data.column` for `column`."""
    keys = (ModelSection if section == "model" else DataSection).model_fields
    try:
        yield
    except HessError as error:
        if error.field not in keys:
            raise
        field = f"{section}.{error.field}"
        raise type(error)(field, error.what, error.remedy) from error


def _no_memory() -> DoesNotFitError:
    return DoesNotFitError(
        "memory", "the product does not fit", "lower --batch-size, --max-length or --limit, or use --dtype bfloat16"
    )
