"""What Lanczos adds to the products it takes: the time of steps of a full-size state beside that of a product."""

import gc

import torch

from hesscli.curvature.double_backward import HessianOperator
from hesscli.data import IGNORED, Batch
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.storage import BasisStorage

COLUMNS = ["model", "reorthogonalise", "basis", "steps", "Lanczos, s", "products, s", "added"]
LEGEND = [
    "added: seconds of Lanczos outside products over seconds of products, of which one was timed, by double backward "
    "over the default slice, 64 x 512 tokens in batches of 4 rows",
    "Lanczos: a fourth of the steps is timed, evenly over the run; the rest of the basis is filled without a product",
]

_EVERY = 4
_STEPS = (40, 80)
_ROWS, _LENGTH, _TOGETHER = 64, 512, 4  # the default slice, and the rows of it that a graph is held of


def lanczos_rows(subject, *, clock, say):
    """A row for each way to orthogonalise and number of steps."""
    risk, v = subject.risk(), subject.direction()
    space = risk.space
    say(f"{subject.name}: a product on {_ROWS} x {_LENGTH} tokens")
    operator = HessianOperator(risk.on(_default_slice(subject.model.config.vocab_size)), keep_graph=False)
    product = _seconds(lambda: operator.matvec(v), clock)
    rows = []
    for reorthogonalise, dtype in (("full", "float32"), ("full", "bfloat16"), ("full", "int8"), ("none", "")):
        say(f"{subject.name}: Lanczos, reorthogonalise {reorthogonalise} {dtype}")
        space.storage = BasisStorage(dtype=dtype or "float32")
        for steps, seconds in _run(space, v, reorthogonalise == "full", clock).items():
            cells = [f"{steps}", f"{seconds:.2f}", f"{steps * product:.1f}", f"{seconds / (steps * product):.2%}"]
            rows.append([subject.name, reorthogonalise, dtype, *cells])
    return rows


def _default_slice(vocabulary):
    """Random tokens: what they are costs nothing."""
    ids = torch.randint(vocabulary, (_ROWS, _LENGTH), generator=torch.Generator().manual_seed(0))
    targets = torch.cat([ids[:, 1:], torch.full((_ROWS, 1), IGNORED)], dim=1)
    parts = zip(ids.split(_TOGETHER), targets.split(_TOGETHER), strict=True)
    return [Batch({"input_ids": some}, wanted) for some, wanted in parts]


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
