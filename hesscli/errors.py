"""Failures that a user can act on: one line each, with the exit code that it ends in."""

import errno
from typing import ClassVar

# What a disk says that takes no more: full, over a quota, above the largest file allowed, or made read-only.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class HessError(Exception):
    """A failure with a field, what is wrong with it, and what to do.

    Printed as `error: field: what; remedy`. The subclass holds the exit code.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, field: str, what: str, remedy: str = "") -> None:
        self.field = field
        self.what = what
        self.remedy = remedy
        super().__init__(f"{field}: {what}; {remedy}" if remedy else f"{field}: {what}")


class UsageError(HessError):
    """An option, a recipe, a data set or a gate is wrong (exit 2)."""

    exit_code = 2


class UntrustworthyError(HessError):
    """The measurement cannot be trusted: not finite, not symmetric (exit 4)."""

    exit_code = 4


class DoesNotFitError(HessError):
    """The work does not fit in memory (exit 5)."""

    exit_code = 5


class UnavailableError(HessError):
    """The checkpoint or data set cannot be had: not found, gated, offline, unsafe (exit 6)."""

    exit_code = 6


class IncompleteError(HessError):
    """A sweep ended with failed or missing cells (exit 7)."""

    exit_code = 7
