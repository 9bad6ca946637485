"""`unchanged` cries wolf in at most 7 % of 200 pairs of reports of one matrix, and finds a change of 30 % in 90 %.

The real probes with other seeds, and the real figures: no noise is made up.
"""

import numpy as np
import pytest
from simulation import SPECTRA, FastOperator, operator_with
from written_reports import written

from hesscli.probes.topk import topk
from hesscli.probes.trace import trace
from hesscli.report.comparing.measured import measured
from hesscli.report.gating.grammar import parse
from hesscli.report.gating.judge import judge
from hesscli.report.schema import Samples
from hesscli.run.figures.metrics import topk_metrics, trace_metrics

PAIRS = 200
NOISE = 1e-7  # of a product in float32


def quiet(_event):
    pass


def of_trace(operator, seed):
    found = trace(operator, method="krylov", probes=16, steps=16, blocks=[], diagonal=False, seed=seed, on_event=quiet)
    report = written(trace_metrics(found, noise=NOISE), seed=seed)
    report.samples["trace"] = Samples(probe=list(found.trace.draws))
    return measured(report)


def of_topk(operator, seed):
    found = topk(operator, k=2, which="both", max_steps=100, tolerance=1e-3, seed=seed, on_event=quiet)
    return measured(written(topk_metrics(found, noise=NOISE), command="topk", seed=seed))


MEASURED = {"trace": of_trace, "frobenius_norm": of_trace, "lambda_max": of_topk, "lambda_min": of_topk}


def share_of_failures(name, operator, other, *, seeds):
    """How often `unchanged` fails, over pairs of reports of the two."""
    measure, assertion = MEASURED[name], parse(f"unchanged({name})")
    verdicts = [
        judge([assertion], measure(other, new), measure(operator, base), num_unchanged=1)[0].verdict
        for base, new in seeds
    ]
    assert set(verdicts) <= {"pass", "fail"}
    return verdicts.count("fail") / len(verdicts)


@pytest.fixture(scope="module")
def matrix():
    values = np.concatenate([SPECTRA["language model"][:25], SPECTRA["language model"][-95:]])
    return operator_with(values)


@pytest.mark.parametrize("name", ["trace", "frobenius_norm", "lambda_max"])
def test_an_unchanged_figure_of_another_seed_fails_in_at_most_7_of_100(matrix, name):
    assert share_of_failures(name, matrix, matrix, seeds=[(2 * i, 2 * i + 1) for i in range(PAIRS)]) <= 0.07


@pytest.mark.parametrize("name", ["trace", "frobenius_norm", "lambda_max", "lambda_min"])
def test_a_change_of_30_percent_is_found_in_90_of_100(matrix, name):
    larger = FastOperator(1.3 * matrix.matrix, matrix.space.sizes)
    assert share_of_failures(name, matrix, larger, seeds=[(2 * i, 2 * i + 1) for i in range(50)]) >= 0.9


def test_the_same_draws_of_another_matrix_of_the_same_trace_fail_in_at_most_7_of_100(matrix):
    vectors, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((len(matrix.matrix), 2)))
    up, down = (np.outer(v, v) for v in vectors.T)
    turned = FastOperator(matrix.matrix + 25.0 * (up - down), matrix.space.sizes)
    assert share_of_failures("trace", matrix, turned, seeds=[(i, i) for i in range(PAIRS)]) <= 0.07


def test_the_same_draws_find_a_change_of_2_percent_that_other_seeds_do_not(matrix):
    larger = FastOperator(1.02 * matrix.matrix, matrix.space.sizes)
    assert share_of_failures("trace", matrix, larger, seeds=[(i, i) for i in range(50)]) >= 0.9
    assert share_of_failures("trace", matrix, larger, seeds=[(2 * i, 2 * i + 1) for i in range(50)]) <= 0.5
