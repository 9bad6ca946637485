"""What a probe asks for: products, and the vectors that it holds while they are made."""

from dataclasses import dataclass, replace

from hesscli.linalg.krylov.completeness import PROBES as SEARCH_PROBES
from hesscli.linalg.krylov.completeness import STEPS as SEARCH_STEPS
from hesscli.linalg.krylov.extremes import GUARDS, smallest_capacity
from hesscli.linalg.storage import ROWS, BasisStorage
from hesscli.probes.top_curvature import MOST_STEPS
from hesscli.probes.trace import Method, basis_length
from hesscli.recipe import Recipe
from hesscli.run.figures.data_error import FEWEST, GROUPS
from hesscli.run.figures.data_error import PROBES as DATA_PROBES
from hesscli.run.figures.solve import DIAGONAL_PROBES, LOW_RANK_STEPS, solver_of

_TOGETHER = 4  # vectors that certificates, blocks and the data's error multiply at once
_SELF_TEST, _OF_NARROW = 5, 6  # products of the self-test, and those that narrow weights are held against float32 by
_MOST_FOUND = SEARCH_PROBES * SEARCH_STEPS  # products that a search for missed eigenvalues takes where it finds none


@dataclass(frozen=True, slots=True)
class Phase:
    """A stage of a run: what it holds at its worst moment, a product's own memory not counted."""

    name: str
    vectors: int
    """Beside the basis and the results of a product; what goes into it is among them."""
    together: int = 1
    """Vectors that are multiplied at once, each with a result."""
    runs: tuple[int, ...] = ()
    """The lengths of its bases."""
    capacity: int | None = None
    """That of the storage: see `BasisStorage`."""
    of_groups: int = 0
    """Rows of a group that products are made of too, beside those of the slice and what is kept for them."""
    by_turns: int = 0
    """Vectors that are held for each of those multiplied at once, and let go of with it; 0 where all wait for all."""

    def held(self, at_once: int) -> int:
        """Vectors beside the basis where at most so many are multiplied at once."""
        if self.by_turns:
            return self.vectors + self.by_turns * min(at_once, self.together)
        return self.vectors + self.together

    @property
    def basis(self) -> int:
        """Vectors of the bases as they are allocated: by blocks of rows, the last of them up to the capacity."""
        storage = BasisStorage(capacity=self.capacity)
        return sum(storage.rows_after(start) for length in self.runs for start in range(0, length, ROWS))


@dataclass(frozen=True, slots=True)
class Demand:
    """A probe in one of the ways that it may run; it takes the first that there is room for."""

    words: str
    phases: tuple[Phase, ...]
    matvecs: int
    """At most, the self-test's and those that certify with them; a solve or a run of pairs may end sooner.

    A run that finds eigenvalues which it had missed takes more.
    """
    by_differences: int
    """The same where products are differences of gradients."""

    @property
    def by_turns(self) -> bool:
        """Whether fewer vectors at once are fewer vectors held."""
        return any(phase.by_turns for phase in self.phases)

    @property
    def together(self) -> int:
        """The most vectors that are multiplied at once."""
        return max(phase.together for phase in self.phases)


def demands(recipe: Recipe, *, dimension: int, num_blocks: int, narrow: bool) -> list[Demand]:
    """The ways in which the recipe's probe may run, from the one that needs most memory to the leanest.

    `narrow`: a weight has fewer digits than float32.
    """
    test = Phase("self-test", vectors=5)  # two vectors, their products, and the gradient
    by_probe = {"topk": _topk, "density": _density, "trace": _trace, "solve": _solve}
    if recipe.probe == "blockdiag":
        found = [_blockdiag(recipe, test, num_blocks)]
    else:
        found = by_probe[recipe.probe](recipe, test, dimension)
    along = _num_pairs(recipe) if recipe.probe == "topk" else 0  # vectors that the product's error is asked for along
    exact, other = (_OF_NARROW + along) * narrow, 2 * along
    return [replace(d, matvecs=d.matvecs + exact, by_differences=d.matvecs + other) for d in found]


def _num_pairs(recipe: Recipe) -> int:
    return recipe.estimator.k * (2 if recipe.estimator.which == "both" else 1)


def _of_the_data(recipe: Recipe, products: int, *, asked: bool = False) -> int:
    """Products that the data's error takes, where it is measured; one that costs much is to be `asked` for."""
    wanted = recipe.estimator.data_error == "on" or (recipe.estimator.data_error == "auto" and not asked)
    return products if wanted and recipe.data.limit >= FEWEST else 0


def _data_error(recipe: Recipe, *, beside: int) -> list[Phase]:
    """Vectors, what they give on the slice, and on one group of rows after the other."""
    groups = _rows_of_a_group(recipe)
    return [Phase("data error", beside, together=DATA_PROBES, of_groups=groups, by_turns=3)] if groups else []


def _rows_of_a_group(recipe: Recipe, *, asked: bool = False) -> int:
    return _of_the_data(recipe, -(-recipe.data.limit // GROUPS), asked=asked)


def _topk(recipe: Recipe, test: Phase, dimension: int) -> list[Demand]:
    estimator = recipe.estimator
    ends = 2 if estimator.which == "both" else 1
    pairs, steps = (estimator.k + GUARDS) * ends, min(recipe.budget("steps"), dimension)
    together = min(_TOGETHER, pairs)
    held_out = _num_pairs(recipe) if estimator.held_out else 0
    forms = _of_the_data(recipe, _num_pairs(recipe))
    matvecs = _SELF_TEST + steps + min(pairs, dimension) + _MOST_FOUND + forms + held_out
    groups = _rows_of_a_group(recipe)
    least = min(steps, smallest_capacity(estimator.k, estimator.which))
    dims = [estimator.krylov_dim] if estimator.krylov_dim is not None else [None, least]
    out = []
    for capacity in dims:
        length = steps if capacity is None else min(capacity, steps)
        phases = (
            Phase("krylov", vectors=2, runs=(length,)),
            Phase("certificates", vectors=together + 1, together=together, runs=(pairs,), of_groups=groups),
            Phase("completeness", vectors=2, runs=(pairs, SEARCH_STEPS)),
        )
        words = f"basis of {length}" if length >= steps else f"basis of {length}, restarted"
        held = tuple(replace(phase, capacity=capacity) for phase in phases)
        out.append(Demand(words, (test, *held), matvecs, matvecs))
    return [d for i, d in enumerate(out) if d.words not in [other.words for other in out[:i]]]


def _density(recipe: Recipe, test: Phase, dimension: int) -> list[Demand]:
    probes, steps = recipe.budget("probes"), min(recipe.budget("steps"), dimension)
    words = recipe.estimator.reorthogonalise
    window = int(words.removeprefix("window:")) if words.startswith("window:") else 0
    found = min(steps, ROWS)  # pairs that converge, a dozen or so in a language model, beside what they are made from
    outliers = Phase("outliers", vectors=2, runs=(steps, found))
    data = _data_error(recipe, beside=0)
    moments, ends = _of_the_data(recipe, 2 * DATA_PROBES), _of_the_data(recipe, 2)
    matvecs = _SELF_TEST + probes * steps + moments
    held = matvecs + steps + ends

    def sampled(runs: tuple[int, ...], held: int) -> Phase:
        return Phase("probes", vectors=held * probes + 1, together=probes, runs=runs)

    full = sampled((*[steps] * probes, found), 1)
    latest = max(2, 1 + window)  # the current vector and the latest ones, of which the one before is the first
    lean = sampled((found,), latest)
    out = [Demand(f"{probes + 1} bases of {steps}", (test, outliers, full, *data), held, held)]
    out = out if words in ("auto", "full") else []
    out.append(Demand(f"basis of {steps} for outliers", (test, outliers, lean, *data), held, held))
    bare = (test, sampled((), latest), *data)
    return [*out, Demand("no basis", bare, matvecs, matvecs)]


def _trace(recipe: Recipe, test: Phase, dimension: int) -> list[Demand]:
    asked, probes = recipe.estimator.method, recipe.budget("probes")
    steps = min(recipe.budget("steps"), dimension)
    methods: list[Method] = ["krylov", "hutchinson"] if asked == "auto" else [asked]
    diagonal = 5 if recipe.estimator.diagonal else 0
    data = _data_error(recipe, beside=diagonal)
    further = _SELF_TEST + _of_the_data(recipe, 2 * DATA_PROBES)
    out = []
    for method in methods:
        length = basis_length(method, probes=probes, steps=steps)
        runs = (length // 2, length // 2) if method == "xtrace" else (length,) if length else ()
        phase = Phase("estimate", vectors=3 + diagonal, runs=runs)  # the last draw's go when the next one's are there
        words = f"{method}, {f'basis of {length}' if length else 'no basis'}"
        # Of all the budget, but for an odd product that pairs of them do not use.
        matvecs = further + (2 * max(1, (probes + steps) // 2) if method == "xtrace" else probes + steps)
        out.append(Demand(words, (test, phase, *data), matvecs, matvecs))
    return out


def _blockdiag(recipe: Recipe, test: Phase, num_blocks: int) -> Demand:
    probes, top = recipe.budget("probes"), recipe.estimator.top
    together = min(_TOGETHER, num_blocks)
    phases = [test, Phase("blocks", vectors=3 + together, together=together)]
    if _of_the_data(recipe, 1, asked=True):  # a vector, parts of it, what they give on the slice, and on a group
        groups = _rows_of_a_group(recipe, asked=True)
        phases.append(Phase("data error", vectors=1 + 2 * together, together=together, of_groups=groups))
    if top:
        phases.append(Phase("top curvature", vectors=2, runs=(MOST_STEPS,)))
    matvecs = _SELF_TEST + probes * (num_blocks + 1) + (MOST_STEPS + top * num_blocks if top else 0)
    matvecs += _of_the_data(recipe, 2 * num_blocks, asked=True)
    return Demand("no basis" if not top else f"basis of {MOST_STEPS}", tuple(phases), matvecs, matvecs)


def _solve(recipe: Recipe, test: Phase, dimension: int) -> list[Demand]:
    steps, dampings = recipe.budget("steps"), len(set(recipe.estimator.damping))
    low_rank = recipe.estimator.preconditioner == "low-rank"
    length = min(LOW_RANK_STEPS, dimension) if low_rank else 0
    # The right-hand side, and a residual or two vectors of the Lanczos run; for each damping its iterate and a
    # direction or two. What a preconditioner makes of the residual.
    each = 2 * dampings + 2 if solver_of(recipe) == "cg" else 3 * dampings + 3
    further = recipe.estimator.preconditioner != "none"
    phases = [test, Phase("iterations", vectors=each + further, runs=(length,) if length else ())]
    if length:
        phases.append(Phase("precondition", vectors=2, runs=(length, length)))
    # One run serves every damping, but for a preconditioner, which each has a run of its own with; the true residual is
    # a product of its own at every tenth step and at the end.
    iterations = steps * (dampings if further else 1) + dampings * (steps // 10 + 1)
    matvecs = _SELF_TEST + length + iterations + _of_the_data(recipe, dampings)
    matvecs += DIAGONAL_PROBES if recipe.estimator.preconditioner == "diagonal" else 0
    words = f"basis of {length}" if length else "no basis"
    return [Demand(words, tuple(phases), matvecs, matvecs)]
