"""Lanczos as resumable data: H V = V G + beta v e^T, grown one product at a time.

With full reorthogonalisation a product is first made orthogonal to the last two vectors, which is nearly all that an
exact one needs, then to the whole basis by classical Gram-Schmidt: three reductions a step whatever the basis's length,
and two passes over it. Where that still shortens it to less than sqrt(1/2) it is done twice, which is enough (Kahan, in
Parlett 1980, section 6.9; Giraud, Langou, Rozloznik and van den Eshof 2005). All coefficients are kept: G is symmetric,
and tridiagonal until a restart, up to the product's own error.
Without, three vectors are held; the quadrature stays right (Greenbaum 1989), single Ritz values may repeat.
"""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from hesscli.linalg.basis import Basis, project_out
from hesscli.linalg.krylov.reach import ResidualPolynomial, spectrum_edge
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import Space
from hesscli.linalg.tridiagonal import ritz_decomposition

V = TypeVar("V")

# A residual this many rounding errors of ||H|| long is nothing but rounding: the Krylov space is invariant.
# sqrt(eps) would lie inside genuine float32 betas.
_BREAKDOWN = 10.0
_TWICE = 0.5  # of ||w||^2: where Gram-Schmidt takes away more, rounding of it is no longer small beside what is left
# A product shorter or longer than this is brought to unit length, by a power of two, before Gram-Schmidt:
# of denormal numbers, those below 1e-38 in float32, what is left would be no more orthogonal than they have digits.
_SHORT, _LONG = 1e-25, 1e25
_METER_FLOOR = 10.0  # times sqrt(eps): below it the noise meter reads rounding


@dataclass(frozen=True, slots=True)
class Ritz:
    """Ritz values in rising order with what the small problem knows of them, each (m,)."""

    values: np.ndarray
    residual_norms: np.ndarray
    """||H y - value y|| as beta_m |s_mi|: right for an exact product, blind to noise in it."""
    weights: np.ndarray
    """Squared first components: the quadrature's weights; they sum to 1. A restart ends their meaning."""
    vectors: np.ndarray
    """(m, m): columns are coordinates in the basis."""


@dataclass(frozen=True, slots=True)
class Restarted:
    """What a restart left: l basis vectors Y with H Y = Y `leading` + v `coupling`^T, and what went before."""

    leading: np.ndarray
    """(l, l)."""
    coupling: np.ndarray
    """(l,)."""
    num_matvecs: int
    dropped: np.ndarray
    """Ritz values that restarts have dropped."""
    log_betas: float
    """The sum of the logarithms of the betas before."""


_NEVER = Restarted(np.zeros((0, 0)), np.zeros(0), 0, np.zeros(0), 0.0)


@dataclass
class LanczosState(Generic[V]):
    """A Krylov run between two products.

    `current` is the next vector to be multiplied, of unit length. Vectors held: two, and the basis if there
    is one; the product makes a third. Beside a basis that is not rounded the second is not held. `alphas`,
    `betas` and `coefficients` are of the steps since the last restart.
    """

    space: Space[V]
    current: V
    basis: Basis[V] | None
    alphas: list[float] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)
    previous: V | None = None
    start_norm: float = 1.0
    exhausted: bool = False
    """The Krylov space is invariant, to rounding: T is complete and no step can follow."""
    coefficients: list[np.ndarray] = field(default_factory=list)
    """The column V^T H v_j of the whole Gram-Schmidt matrix for each step, where there is a basis."""
    restarted: Restarted = _NEVER
    meter: list[tuple[float, float]] = field(default_factory=list)
    """beta_{j-1} and v_{j-1}.H v_j of each pair of steps: see `noise`."""
    slip: float = 0.0
    """The most that a rounded basis has put into a product of a unit vector, in length: what it does to T is noise
    of this size."""
    outside: Basis[V] | None = None
    """Orthonormal vectors U that are deflated: the run is one of P H P, P = I - U U^T, on the range of P."""

    @classmethod
    def start(
        cls, space: Space[V], v: V, *, reorthogonalise: bool, outside: Basis[V] | None = None
    ) -> "LanczosState[V]":
        """A run from v, or what `outside` leaves of it, which is copied and normalised."""
        current = space.copy(v)
        if outside is not None:
            project_out(outside, current)
        norm = space.norm(current)
        space.scale(1.0 / norm, current)
        return cls(space, current, space.basis() if reorthogonalise else None, start_norm=norm, outside=outside)

    @property
    def dimension(self) -> int:
        """Of the space that the run is in."""
        return self.space.dimension - (0 if self.outside is None else len(self.outside))

    @property
    def num_matvecs(self) -> int:
        """Products taken in so far."""
        return self.restarted.num_matvecs + len(self.alphas)

    @property
    def scale(self) -> float:
        """A lower estimate of ||H|| from the entries of T."""
        sizes = [abs(a) + b for a, b in zip(self.alphas, self.betas, strict=True)]
        return max([*sizes, *np.abs(np.diag(self.restarted.leading))], default=0.0)

    def expand(self, operator: LinearOperator[V]) -> None:
        """One more step: one product."""
        self.absorb(operator.matvec(self.current))

    def absorb(self, w: V) -> None:
        """Take in `w = H current`, which is overwritten. Raises FloatingPointError if w is not finite."""
        space = self.space
        norm_in = space.norm(w)
        if not np.isfinite(norm_in):
            msg = "a product is not finite"
            raise FloatingPointError(msg)
        unit = 2.0 ** round(float(np.log2(norm_in))) if 0 < norm_in < _SHORT or norm_in > _LONG else 1.0
        if unit != 1.0:
            space.scale(1.0 / unit, w)
        alpha = unit * (self._three_term(w, unit) if self.basis is None else self._orthogonalise(w, self.basis, unit))
        length = space.norm(w)
        beta = unit * length
        self.alphas.append(alpha)
        self.betas.append(beta)
        full = self.basis is not None and len(self.basis) >= self.dimension
        if full or beta <= _BREAKDOWN * space.epsilon * max(self.scale, norm_in):
            self.betas[-1] = 0.0
            self.exhausted = True
            return
        space.scale(1.0 / length, w)
        near = self.basis is None or self.basis.rounding > 0
        self.previous, self.current = (self.current if near else None), w

    def store(self) -> V:
        """Put the current vector into the basis before its product, and go on from what the basis keeps of it."""
        assert self.basis is not None
        self.basis.append(self.current)
        if self.basis.rounding:
            self.current = self.basis.vector(len(self.basis) - 1)
        return self.current

    def _orthogonalise(self, w: V, basis: Basis[V], unit: float) -> float:
        """Make w orthogonal to the basis, and return the last coefficient, both in this unit."""
        if len(basis) == len(self.restarted.coupling) + len(self.alphas):
            basis.append(self.current)
        if basis.rounding:
            near = self._nearest(w)
        else:
            first = max(0, len(basis) - 2)
            near = basis.inner(w, first=first)
            basis.subtract(near, w, first=first)
        self._project(w)
        column = self._far(w, basis)
        if basis.rounding and len(near) == min(2, len(column)):
            self.slip = max(self.slip, unit * float(np.linalg.norm(column)))
        column[-len(near) :] += near
        column *= unit
        if self.betas and self.betas[-1] > 0:
            self.meter.append((self.betas[-1], float(column[-2])))
        self.coefficients.append(column)
        return float(column[-1]) / unit

    def _far(self, w: V, basis: Basis[V]) -> np.ndarray:
        """Make w orthogonal to the whole basis, and return what was taken away."""
        length = self.space.norm(w)
        column = basis.inner(w)
        if float(column @ column) <= _TWICE * length**2:
            basis.subtract(column, w)
            return column
        again = basis.subtract_then_inner(column, w)
        basis.subtract(again, w)
        return column + again

    def _nearest(self, w: V) -> np.ndarray:
        """Take the previous vector and the current one out of w at their full width, and return their coefficients.

        They are nearly all that a product has inside the basis: of what is rounded only rounding is left to remove.
        """
        near = [v for v in (self.previous, self.current) if v is not None]
        coefficients = []
        for v in near:
            coefficients.append(self.space.inner(v, w))
            self.space.axpy(-coefficients[-1], v, w)
        return np.array(coefficients)

    def _three_term(self, w: V, unit: float) -> float:
        if self.previous is not None:
            self.space.axpy(-self.betas[-1] / unit, self.previous, w)
        alpha = self.space.inner(self.current, w)
        self.space.axpy(-alpha, self.current, w)
        self._project(w)
        return alpha

    def _project(self, w: V) -> None:
        """Take what is deflated out of the next vector.

        Out of the product alone it would not do: what rounding leaves of U in v_j comes back as -alpha v_j, larger by
        alpha / beta, until the zero that P H P has on U is a Ritz value.
        """
        if self.outside is not None:
            project_out(self.outside, w)

    def restart_with(self, v: V) -> bool:
        """After exhaustion, go on from a new direction; T falls apart into blocks.

        Finds further copies of a multiple eigenvalue, of which one Krylov space shows one. False if v has
        nothing outside the basis.
        """
        if self.basis is None or len(self.basis) >= self.dimension:
            return False
        current = self.space.copy(v)
        norm = self.space.norm(current)
        self._project(current)
        project_out(self.basis, current)
        left = self.space.norm(current)
        if left <= 1e3 * self.space.epsilon * norm:
            return False
        self.space.scale(1.0 / left, current)
        self.current, self.previous, self.exhausted = current, None, False
        return True

    def projection(self) -> tuple[np.ndarray, np.ndarray]:
        """G = V^T H V as Gram-Schmidt gave it, (m, m), and b with H V = V G + v b^T, (m,)."""
        kept, steps = len(self.restarted.coupling), len(self.alphas)
        if not steps:
            return self.restarted.leading, self.restarted.coupling
        g = np.zeros((kept + steps, kept + steps))
        g[:kept, :kept] = self.restarted.leading
        g[kept, :kept] = self.restarted.coupling
        for j, column in enumerate(self.coefficients, start=kept):
            g[: len(column), j] = column
        inner = np.arange(kept, kept + steps - 1)
        g[inner + 1, inner] = self.betas[:-1]
        last = np.zeros(kept + steps)
        last[-1] = self.betas[-1]
        return g, last

    def ritz(self) -> Ritz:
        """Ritz values of the run so far."""
        if not len(self.restarted.coupling):
            values, vectors = ritz_decomposition(np.array(self.alphas), np.array(self.betas[:-1]))
            return Ritz(values, self.betas[-1] * np.abs(vectors[-1]), vectors[0] ** 2, vectors)
        g, last = self.projection()
        values, vectors = np.linalg.eigh(g, UPLO="L")  # below the diagonal stands what a symmetric product gives
        return Ritz(values, np.abs(last @ vectors), np.full(len(values), np.nan), vectors)

    def last_step(self, ritz: Ritz) -> dict[str, float]:
        """What the last step came to, given its Ritz values: beta, and the pair with the largest value. 0 products."""
        leading, residual = float(ritz.values[-1]), float(ritz.residual_norms[-1])
        return {"beta": self.betas[-1], "leading_value": leading, "leading_residual": residual}

    def polynomial(self) -> ResidualPolynomial:
        """The polynomial in H that takes the first vector to the current one."""
        with np.errstate(divide="ignore"):
            log_betas = self.restarted.log_betas + float(np.log(self.betas).sum())
        return ResidualPolynomial(np.concatenate([self.restarted.dropped, self.ritz().values]), log_betas)

    def reach(self, signs: tuple[int, ...] = (1, -1)) -> float | None:
        """How far the spectrum may go beyond the outermost Ritz values, above (1) and below (-1).

        0 once the Krylov space is invariant, None where the steps say too little.
        """
        polynomial, values = self.polynomial(), self.ritz().values
        found = []
        for sign in signs:
            edge = spectrum_edge([polynomial], dimension=self.space.dimension, sign=sign)
            if edge is None:
                return None
            found.append(sign * (edge - float(values[-1 if sign > 0 else 0])))
        return max(0.0, *found)

    def noise(self) -> float:
        """The length of the product's error on a unit vector, as the recurrence itself shows it; 0 without a basis.

        An exact symmetric product has v_{j-1}.H v_j = beta_{j-1}; an error e makes it fall short by |e|^2 / beta,
        since beta has the error's length in it. Rounding of an exact product alone reads as sqrt(eps): what is not
        well above that, or above what a rounded basis does, is given as 0.
        """
        if not self.meter:
            return 0.0
        betas, gammas = np.array(self.meter).T
        # The error's component along v weighs with beta: so each pair weighs with 1 / beta^2.
        square = float(((betas - gammas) / betas).sum() / (betas**-2.0).sum())
        eta = float(np.sqrt(max(0.0, square)))
        return eta if eta > max(_METER_FLOOR * np.sqrt(self.space.epsilon) * self.scale, self.slip) else 0.0

    def orthogonality_loss(self) -> float:
        """The largest |v_i . v_m| for the last basis vector; 0 without a basis."""
        if self.basis is None or len(self.basis) < 2:
            return 0.0
        last = len(self.basis) - 1
        return float(np.abs(self.basis.inner(self.basis.vector(last))[:last]).max())
