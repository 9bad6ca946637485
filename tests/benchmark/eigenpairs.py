"""The five largest eigenpairs to one accuracy, beside the peers: seconds and products of one run each.

What a peer returns is measured here: the residual of its vectors by hess's exact product.
"""

import gc
import warnings
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from unittest.mock import patch

import numpy as np
import torch
from measuring import in_short
from products import Logits, mean_loss, tensors
from torch import nn

from hesscli.curvature.double_backward import HessianOperator
from hesscli.data import IGNORED
from hesscli.events import ignore
from hesscli.probes.topk import topk
from hesscli.run.observed import ObservedOperator

COLUMNS = ["model", "method", "products", "seconds", "worst relative residual", "verdict"]

_K, _ACCURACY, _BUDGET = 5, 1e-3, 400
_ROWS = 4  # of the subject's batch: power iteration spends the whole budget
LEGEND = [
    f"on the first {_ROWS} rows of the batch that is named below",
    f"the {_K} eigenvalues of largest size to ||Hv - (v.Hv) v|| <= {_ACCURACY:g} |v.Hv|, within {_BUDGET} products; "
    "a peer's residuals are measured by hess's exact product on its vectors, and are not in its seconds",
    "hess counts what its bars cost: a product for each pair and two guards, and a search for what was missed; "
    "it says itself when to stop. The peers' settings: the fewest steps of 20, 30, .. that suffice for Lanczos; "
    f"tolerances of {_ACCURACY:g}, then an eighth of it, for hessian-eigenthings' power iteration; 1e-3, then none, "
    "for PyHessian, whose tolerance is of a value's change. They are chosen knowing the answer",
]


@dataclass(frozen=True)
class Found:
    values: np.ndarray
    vectors: list | None
    """None where residuals come with the values."""
    residuals: np.ndarray | None
    products: int
    converged: int | None
    """How many of them the method itself says have converged; None where it says nothing."""


def eigenpair_rows(subject, *, clock, say):
    """A row for each method, hess first: its values, to a hundredth of the accuracy, are what others are held to."""
    batch = subject.batch
    inputs = {name: tensor[:_ROWS] for name, tensor in batch.inputs.items()}
    subject = replace(subject, batch=replace(batch, inputs=inputs, targets=batch.targets[:_ROWS]))
    operator = HessianOperator(subject.risk(), keep_graph=True)
    say(f"{subject.name}: reference")
    truth = np.array([p.value for p in _topk(operator, _ACCURACY / 100).pairs])
    truth = truth[np.argsort(-np.abs(truth))][:_K]
    rows = []
    for name, (package, runs) in _METHODS.items():
        say(f"{subject.name}: {name}")
        if find_spec(package) is None:
            rows.append([subject.name, name, "", "", "", "not installed"])
            continue
        for run in runs:
            gc.collect()
            try:
                search = run(subject)
                start = clock()
                found = search()
                seconds = clock() - start
            except Exception as error:  # whatever a peer raises is its row
                if package == "hesscli":
                    raise
                row = ["", "", "", in_short(error)]
                break
            row, good = _judged(operator, found, truth, seconds)
            if good:
                break
        rows.append([subject.name, name, *row])
    return rows


def _judged(operator, found, truth, seconds):
    values, residuals = found.values, found.residuals
    if residuals is None:
        values, residuals = np.array([_rayleigh(operator, v) for v in found.vectors]).T
    order = np.argsort(-np.abs(values))
    relative = residuals[order] / np.abs(values[order])
    worst, missed = float(relative.max()), [f"{t:.4g}" for t in truth if not _held(t, values, residuals)]
    told = np.sort(found.values)
    wrong = float(np.abs(told / np.sort(values) - 1).max())
    verdict = []
    if missed:
        verdict.append(f"misses {', '.join(missed)} of {', '.join(f'{t:.4g}' for t in truth)}")
    if worst > _ACCURACY:
        said = "" if found.converged is None else f", {found.converged} by its own account"
        verdict.append(f"{int((relative <= _ACCURACY).sum())} of {_K} within the accuracy{said}")
    if wrong > _ACCURACY:
        verdict.append(f"a value it returns is off its own vector's by {wrong:.1e}")
    cells = [f"{found.products}", f"{seconds:.2f}", f"{worst:.1e}", "; ".join(verdict) or "all five"]
    return cells, not verdict


def _held(value, values, residuals):
    """Whether one of the values is this eigenvalue, to its residual or the accuracy."""
    return bool((np.abs(values - value) <= np.maximum(residuals, _ACCURACY * abs(value))).any())


def _rayleigh(operator, v):
    space = operator.space
    v = space.copy(v)
    space.scale(1.0 / space.norm(v), v)
    w = operator.matvec(v)
    value = space.inner(v, w)
    space.axpy(-value, v, w)
    return value, space.norm(w)


def _topk(operator, tolerance, which="both"):
    return topk(operator, k=_K, which=which, max_steps=_BUDGET, tolerance=tolerance, seed=0, on_event=ignore)


def _hess(subject, *, keep_graph):
    plain = HessianOperator(subject.risk(), keep_graph=keep_graph)
    operator = ObservedOperator(plain, plain.space, log=None)

    def search():
        pairs = _topk(operator, _ACCURACY, "largest").pairs
        converged = sum(p.converged for p in pairs)
        values, residuals = (np.array(x) for x in zip(*((p.value, p.residual_norm) for p in pairs), strict=True))
        return Found(values, None, residuals, operator.num_matvecs, converged)

    return search


def _eigenthings(subject, *, algorithm, **settings):
    from hessian_eigenthings.algorithms.lanczos import lanczos
    from hessian_eigenthings.algorithms.power_iteration import deflated_power_iteration
    from hessian_eigenthings.operators.hessian import HessianOperator as Peer

    run = {"lanczos": lanczos, "power": deflated_power_iteration}[algorithm]
    model = subject.own_model()
    operator = Peer(Logits(model), [tensors(subject)], mean_loss, method="autograd")
    shapes = [p.shape for p in model.parameters()]

    def search():
        result = run(operator, k=_K, seed=0, **settings)
        vectors = [_parts(row, shapes) for row in result.eigenvectors]
        return Found(result.eigenvalues.double().numpy(), vectors, None, result.iterations, int(result.converged.sum()))

    return search


def _parts(flat, shapes):
    return [part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]


def _pyhessian(subject, *, tol):
    from pyhessian import hessian

    module = __import__("pyhessian.hessian", fromlist=["hessian_vector_product"])
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORED)
    model = Logits(subject.own_model())

    def search():
        torch.manual_seed(0)
        with (
            warnings.catch_warnings(),
            patch.object(module, "hessian_vector_product", wraps=module.hessian_vector_product) as product,
        ):
            warnings.simplefilter("ignore")  # backward(create_graph=True) is warned of
            kept = hessian(model, criterion, data=tensors(subject), cuda=False)
            values, vectors = kept.eigenvalues(maxIter=_BUDGET // _K, tol=tol, top_n=_K)
        return Found(np.array(values), vectors, None, product.call_count, None)

    return search


# name: (the package it needs, its runs: the first that gives all five is shown, else the last)
_METHODS = {
    "hess topk, graph kept": ("hesscli", [partial(_hess, keep_graph=True)]),
    "hess topk, double backward": ("hesscli", [partial(_hess, keep_graph=False)]),
    "hessian-eigenthings, Lanczos, as it comes": (
        "hessian_eigenthings",
        [partial(_eigenthings, algorithm="lanczos", tol=_ACCURACY)],
    ),
    "hessian-eigenthings, Lanczos, steps chosen": (
        "hessian_eigenthings",
        [partial(_eigenthings, algorithm="lanczos", tol=_ACCURACY, max_iter=m) for m in range(20, 51, 10)],
    ),
    "hessian-eigenthings, power iteration": (
        "hessian_eigenthings",
        [
            partial(_eigenthings, algorithm="power", tol=tol, max_iter=_BUDGET // _K)
            for tol in (_ACCURACY, _ACCURACY / 8)
        ],
    ),
    "PyHessian, as it comes": ("pyhessian", [partial(_pyhessian, tol=1e-3)]),
    "PyHessian, to the budget": ("pyhessian", [partial(_pyhessian, tol=0.0)]),
}
