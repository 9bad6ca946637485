"""What Lanczos adds to the products it takes: the time of steps of a full-size state beside that of a product."""

import gc
from statistics import median

from hesscli.curvature.double_backward import HessianOperator
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.storage import BasisStorage

COLUMNS = ["model", "reorthogonalise", "basis", "steps", "Lanczos, s", "products, s", "added", "added, default slice"]
LEGEND = [
    "added: seconds of Lanczos outside products over seconds of products; the graph is kept, so that products are the "
    "cheapest there are. A product's cost goes with the tokens and Lanczos's does not: the default slice, 64 x 512 "
    "tokens, is that many times this batch",
    "Lanczos: a fourth of the steps is timed, evenly over the run; the rest of the basis is filled without a product",
]

_EVERY = 4
_STEPS = (40, 80)
_DEFAULT_TOKENS = 64 * 512
_PRODUCTS = 3


def lanczos_rows(subject, *, clock, say):
    """A row for each way to orthogonalise and number of steps."""
    operator = HessianOperator(subject.risk(), keep_graph=True)
    space, v = operator.space, subject.direction()
    say(f"{subject.name}: a product")
    operator.matvec(v)
    product = median([_seconds(lambda: operator.matvec(v), clock) for _ in range(_PRODUCTS)])
    rows = []
    for reorthogonalise, dtype in (("full", "float32"), ("full", "bfloat16"), ("none", "")):
        say(f"{subject.name}: Lanczos, reorthogonalise {reorthogonalise} {dtype}")
        space.storage = BasisStorage(dtype=dtype or "float32")
        for steps, seconds in _run(space, v, reorthogonalise == "full", clock).items():
            added = seconds / (steps * product)
            times = _DEFAULT_TOKENS / subject.batch.targets.numel()
            cells = [f"{steps}", f"{seconds:.2f}", f"{steps * product:.1f}", f"{added:.1%}", f"{added / times:.2%}"]
            rows.append([subject.name, reorthogonalise, dtype, *cells])
    return rows


def _seconds(function, clock):
    start = clock()
    function()
    return clock() - start


def _run(space, v, reorthogonalise, clock):
    """Seconds outside products of the first steps, by number of steps."""
    gc.collect()
    state, found, total = LanczosState.start(space, v, reorthogonalise=reorthogonalise), {}, 0.0
    for step in range(1, max(_STEPS) + 1):
        if step % _EVERY == _EVERY // 2:  # the mean place of its four, for the cost of a step grows with its number
            product = _rolled(v, -step)
            total += _EVERY * _seconds(lambda w=product: state.absorb(w), clock)
        elif state.basis is not None:
            state.basis.append(_rolled(v, step))
        if step in _STEPS:
            found[step] = total
    return found


def _rolled(v, places):
    """Nearly orthogonal to v, as a basis vector is, and far cheaper than another draw."""
    return [part.flatten().roll(places).view_as(part) for part in v]
