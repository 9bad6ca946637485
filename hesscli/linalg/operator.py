"""Symmetric linear operators: a space and a product."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from hesscli.linalg.space import Space

V = TypeVar("V")


class LinearOperator(Protocol[V]):
    """A symmetric matrix known by its products alone."""

    @property
    def space(self) -> Space[V]:
        """The space that it maps to itself."""

    def matvec(self, v: V) -> V:
        """H v, in storage of its own; v is unchanged."""

    def matvecs(self, vs: Sequence[V]) -> list[V]:
        """H v for each v, sharing what does not depend on v. Holds as many results as vectors."""
