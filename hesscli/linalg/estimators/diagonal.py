"""The diagonal of a matrix from products: an exact part, and a mean over probes of independent signs.

E z * (Bz) = diag B entry by entry (Bekas, Kokiopoulou and Saad 2007); an entry's variance is the sum of squares
of the rest of its row, so few entries of a dense matrix are ever resolved. Sums of entries are.
"""

from typing import Generic, TypeVar

from hesscli.linalg.space import Space

V = TypeVar("V")


class DiagonalSums(Generic[V]):
    """Running mean and squares of the draws of every entry (Welford 1962). Holds 3 vectors."""

    def __init__(self, space: Space[V]) -> None:
        self.space = space
        self.count = 0
        self.known: V = space.zeros()
        """The part that is not sampled."""
        self.mean: V = space.zeros()
        self.squares: V = space.zeros()
        """Squared deviations from the mean, summed over draws."""

    def know(self, u: V, v: V, factor: float) -> None:
        """Add factor u * v to the exact part."""
        self.space.axpy(factor, self.space.multiply(u, v), self.known)

    def draw(self, z: V, product: V) -> None:
        """Take in one draw z * product."""
        space = self.space
        self.count += 1
        deviation = space.multiply(z, product)
        space.axpy(-1.0, self.mean, deviation)
        space.axpy(1.0 / self.count, deviation, self.mean)
        space.axpy(1.0 - 1.0 / self.count, space.multiply(deviation, deviation), self.squares)
