"""The vectors and bases of each probe as a plan counts them, against what the probe holds, within 20 %."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from live_bytes import peak_of

from hesscli.events import ignore
from hesscli.linalg.solvers.preconditioner import low_rank
from hesscli.linalg.space import ParameterSpace
from hesscli.linalg.storage import BasisStorage
from hesscli.probes.blockdiag import blockdiag
from hesscli.probes.density import density
from hesscli.probes.solve import solve
from hesscli.probes.topk import topk
from hesscli.probes.trace import trace
from hesscli.recipe.document import resolve
from hesscli.run.figures.data_error import PROBES, Groups, add_to_moments
from hesscli.run.figures.solve import LOW_RANK_STEPS
from hesscli.run.observed import ObservedOperator
from hesscli.run.planning.probe_cost import demands

PARTS, ENTRIES = 20, 1000
BLOCKS = [frozenset({i, i + 1}) for i in range(0, PARTS, 2)]


class DiagonalOperator:
    """Eight outliers above a bulk over many small parts; its product holds its result and nothing besides."""

    def __init__(self, *, capacity=None):
        self.space = ParameterSpace([str(i) for i in range(PARTS)], [torch.empty(ENTRIES) for _ in range(PARTS)])
        self.space.storage = BasisStorage(capacity=capacity)
        count = PARTS * ENTRIES - 8
        self._diagonal = torch.cat([8 * 1.4 ** torch.arange(8.0), torch.linspace(0.1, 1, count)]).split(ENTRIES)

    def matvec(self, v):
        return self.space.multiply(self._diagonal, v)

    def matvecs(self, vs):
        return [self.matvec(v) for v in vs]


def _topk(operator, **given):
    options = {"which": "largest", "max_steps": 32, "tolerance": 1e-3, "krylov_dim": None, "k": 2}
    topk(operator, **options | given, seed=0, on_event=ignore)


def _density(operator, **given):
    options = {"probes": 4, "steps": 30, "deflate": True, "window": None, "semi_definite": False, "noise": 0.0}
    density(operator, **options | given, seed=0, on_event=ignore)


def _trace(operator, **given):
    options = {"probes": 6, "steps": 34, "blocks": BLOCKS, "diagonal": False}
    trace(operator, **options | given, seed=0, on_event=ignore)


def _blockdiag(operator):
    blockdiag(operator, blocks=BLOCKS, probes=2, seed=0, on_event=ignore)


def _solve(operator, *, solver, low_rank_first=False):
    space = operator.space
    prepared = low_rank(operator, steps=LOW_RANK_STEPS, seed=0, on_event=ignore) if low_rank_first else None
    rhs = space.random("gaussian", seed=0, index=0)
    solve(
        operator,
        rhs,
        dampings=[0.01] if low_rank_first else [0.01, 0.1],
        solver=solver,
        preconditioner=prepared,
        floor=0.0,
        tolerance=1e-4,
        max_steps=30,
        on_event=ignore,
    )


TOPK = {"estimator.k": 2, "estimator.which": "largest", "estimator.steps": 32}
DENSITY = {"estimator.probes": 4, "estimator.steps": 30}
TRACE = {"estimator.probes": 6, "estimator.steps": 34}
SOLVE = {"operator.kind": "ggn", "estimator.damping": [0.01, 0.1]}
CASES = {
    "topk": ("topk", TOPK, _topk, 0),
    "topk restarted in fewer than a block of rows": (
        "topk",
        {**TOPK, "estimator.krylov_dim": 11},
        partial(_topk, krylov_dim=11, max_steps=60),
        0,
    ),
    "topk restarted": ("topk", {**TOPK, "estimator.krylov_dim": 24}, partial(_topk, krylov_dim=24), 0),
    "density with bases": ("density", {**DENSITY, "estimator.reorthogonalise": "full"}, _density, 0),
    "density with a basis for outliers": (
        "density",
        {**DENSITY, "estimator.reorthogonalise": "none"},
        partial(_density, window=0),
        0,
    ),
    "density without a basis": (
        "density",
        {**DENSITY, "estimator.reorthogonalise": "none"},
        partial(_density, window=0, deflate=False),
        1,
    ),
    "density with a window": (
        "density",
        {**DENSITY, "estimator.reorthogonalise": "window:3"},
        partial(_density, window=3, deflate=False),
        1,
    ),
    "trace, krylov": ("trace", {**TRACE, "estimator.method": "krylov"}, partial(_trace, method="krylov"), 0),
    "trace, krylov, diagonal": (
        "trace",
        {**TRACE, "estimator.method": "krylov", "estimator.diagonal": True},
        partial(_trace, method="krylov", diagonal=True),
        0,
    ),
    "trace, hutchinson": (
        "trace",
        {**TRACE, "estimator.method": "hutchinson"},
        partial(_trace, method="hutchinson"),
        0,
    ),
    "trace, hutch++": ("trace", {**TRACE, "estimator.method": "hutch++"}, partial(_trace, method="hutch++"), 0),
    "trace, xtrace": ("trace", {**TRACE, "estimator.method": "xtrace"}, partial(_trace, method="xtrace"), 0),
    "blockdiag": ("blockdiag", {"estimator.top": 0}, _blockdiag, 0),
    "solve, cg": ("solve", SOLVE, partial(_solve, solver="cg"), 0),
    "solve, minres": ("solve", {**SOLVE, "estimator.solver": "minres"}, partial(_solve, solver="minres"), 0),
    "solve, cg, low rank": (
        "solve",
        {**SOLVE, "estimator.damping": [0.01], "estimator.preconditioner": "low-rank"},
        partial(_solve, solver="cg", low_rank_first=True),
        0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_vectors_of_a_probe_are_predicted(case, monkeypatch):
    # What is read of a basis and drawn of a vector at a time is bounded: beside so small a space as small.
    monkeypatch.setattr("hesscli.linalg.basis._COLUMNS", 512)
    monkeypatch.setattr("hesscli.linalg.random._CHUNK", 512)
    probe, values, work, place = CASES[case]
    recipe, _ = resolve([("test", {"probe": probe, **values})])
    operator = DiagonalOperator(capacity=recipe.estimator.krylov_dim)
    demand = demands(recipe, dimension=operator.space.dimension, num_blocks=len(BLOCKS), narrow=False)[place]
    phases = [phase for phase in demand.phases if phase.name not in ("self-test", "data error")]
    predicted = max(phase.held(phase.together) + phase.basis for phase in phases)
    assert predicted == pytest.approx(peak_of(lambda: work(operator)) / operator.space.vector_bytes(), rel=0.2)


@pytest.mark.parametrize("at_once", [PROBES, 1])
def test_the_vectors_of_the_data_s_error_are_predicted_and_are_fewer_where_all_do_not_fit(at_once, monkeypatch):
    monkeypatch.setattr("hesscli.linalg.random._CHUNK", 512)
    operator = DiagonalOperator()
    size = operator.space.vector_bytes()
    free = 3 * at_once * size / 0.4  # of which that share is for vectors
    monkeypatch.setattr("hesscli.run.figures.basis.available_bytes", lambda _: free)
    risk = SimpleNamespace(space=operator.space, on=lambda _: None)
    groups = Groups(SimpleNamespace(risk=risk), range(4), np.arange(1.0, 5.0))
    observed = ObservedOperator(operator, operator.space, log=None)
    found = peak_of(lambda: add_to_moments({}, {}, groups, observed, seed=0, on_event=ignore)) / size
    recipe, _ = resolve([("test", {"probe": "trace", **TRACE})])
    demand = demands(recipe, dimension=operator.space.dimension, num_blocks=1, narrow=False)[-1]
    (phase,) = [phase for phase in demand.phases if phase.name == "data error"]
    assert phase.held(at_once) == 3 * at_once == pytest.approx(found, rel=0.2)
    assert observed.num_matvecs == 2 * PROBES
