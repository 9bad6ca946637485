"""What the numerics say while they work. Progress, journal and report listen; nothing here prints."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """A stage begins; `total` counts its steps, None where that is not known."""

    stage: str
    total: int | None
    unit: str = "products"


@dataclass(frozen=True, slots=True)
class Advanced:
    """`done` steps of a stage are behind us; `detail` is a few words for the eye."""

    stage: str
    done: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """A stage has ended."""

    stage: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something a reader of the figures must know; it goes to stderr and into the report."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Noted:
    """A fact worth one line on stderr (which product was chosen and why); no warning."""

    text: str


Event = Started | Advanced | Finished | Warned | Noted
OnEvent = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Listen to nothing."""
