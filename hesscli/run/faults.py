"""What goes wrong below, in words that a user can act on."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from hesscli.errors import NO_ROOM, DoesNotFitError, HessError, UsageError
from hesscli.recipe.schema import DataSection, ModelSection

# Of the host's allocator, of CUDA, and of its libraries, which take memory past torch's allocator.
_NO_MEMORY = ("can't allocate memory", "out of memory", "status_alloc_failed")


@contextmanager
def as_hess_error() -> Iterator[None]:
    """Turn a lack of memory, a full disk, or an operation without a second derivative into one clear line."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise no_memory("the product does not fit") from error
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        what = "the disk is full" if error.errno == errno.ENOSPC else f"cannot be written ({error.strerror})"
        remedy = "give another folder with -o, and with TMPDIR where --basis disk is used"
        raise UsageError("output.dir", what, remedy) from error
    except RuntimeError as error:
        text = str(error)
        if is_out_of_memory(error):
            raise no_memory("the product does not fit") from error
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left: an error of torch's own for CUDA, and words for the rest."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


def no_memory(what: str) -> DoesNotFitError:
    """The error of a run that has no memory to go on; `hess plan` says what there is to choose from."""
    remedy = "lower --max-length or --limit, use --dtype bfloat16 or fewer --params; hess plan says what would fit"
    return DoesNotFitError("memory", what, remedy)
