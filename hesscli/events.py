"""What the numerics say while they work. Progress, journal and report listen; nothing here prints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Started:
    """A stage begins; `total` counts its steps, None where that is not known."""

    stage: str
    total: int | None
    unit: str = "products"


@dataclass(frozen=True, slots=True)
class Advanced:
    """`done` steps of a stage are behind us; `detail` is a few words for the eye, `values` are for the journal.

    By name: `beta` of a Krylov step (`betas` of several runs), `leading_value` and `leading_residual` of the Ritz pair
    with the largest value, the relative `residual` of a solve.
    """

    stage: str
    done: int
    detail: str = ""
    values: Mapping[str, float | Sequence[float]] = field(default_factory=dict)


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
