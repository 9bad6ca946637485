"""The four probes, from the command line to the report, against the dense Hessian of the checkpoint on disk."""

import json

import numpy as np
import pytest
from tiny import dense_hessian, spectrum_of, tiny_model

MEASURED = ["qwen3", "-d", "rows.jsonl", "--limit", "5", "--plots", "none", "--json"]
ROUNDING = 2e-6  # of the spectral radius: the dense Hessian is in float32 too


@pytest.fixture(scope="module")
def eigenvalues():
    return spectrum_of("qwen3")


@pytest.fixture(scope="module")
def dense():
    return dense_hessian("qwen3")


@pytest.fixture(scope="module")
def blocks():
    """Name of each block and the places of its parameters in the dense Hessian."""
    places, start = {}, 0
    for name, parameter in tiny_model("qwen3").named_parameters():
        words = name.split(".")
        block = ".".join(words[:3] if words[1] == "layers" else words[:-1])
        places.setdefault(block, []).extend(range(start, start + parameter.numel()))
        start += parameter.numel()
    return places


@pytest.fixture
def report(hess, checkpoint):
    def measure(probe, *options):
        ended = hess(probe, *MEASURED, *options)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    return measure


def truths(eigenvalues):
    radius = np.abs(eigenvalues).max()
    frobenius = np.sqrt((eigenvalues**2).sum())
    return {
        "lambda_max": eigenvalues[-1],
        "lambda_min": eigenvalues[0],
        "spectral_radius": radius,
        "max_stable_learning_rate": 2 / eigenvalues[-1],
        "trace": eigenvalues.sum(),
        "mean_eigenvalue": eigenvalues.mean(),
        "frobenius_norm": frobenius,
        "effective_rank": (frobenius / radius) ** 2,
    }


def assert_covers(metric, truth, slack):
    low, high = metric["ci"]
    assert low - slack <= truth <= high + slack, (metric, truth)


def assert_within_errors(metric, truth, count=4):
    """For many figures at once, of which a 95 % interval may miss some: a few standard errors."""
    assert abs(metric["value"] - truth) <= count * metric["stderr"] + (metric["errors"]["precision"] or 0), (
        metric,
        truth,
    )


ENDS = {"lambda_max", "lambda_min", "spectral_radius"}
MOMENTS = {"trace", "mean_eigenvalue", "frobenius_norm"}


@pytest.mark.parametrize(
    ("probe", "options", "expected"),
    [
        ("topk", ["--k", "3", "--steps", "400"], {*ENDS, "max_stable_learning_rate"}),
        ("density", ["--probes", "4"], {*ENDS, *MOMENTS, "effective_rank"}),
        ("trace", ["--probes", "16"], MOMENTS),
    ],
)
def test_the_interval_of_each_metric_contains_the_dense_truth(probe, options, expected, report, eigenvalues):
    metrics = report(probe, *options)["metrics"]
    found = {name: truth for name, truth in truths(eigenvalues).items() if name in metrics}
    assert found.keys() == expected
    for name, truth in found.items():
        assert_covers(metrics[name], truth, ROUNDING * abs(truth))


def test_topk_gives_the_dense_eigenvalues_of_both_ends(report, eigenvalues):
    pairs = report("topk", "--k", "4", "--steps", "400")["eigenpairs"]
    assert all(pair["converged"] for pair in pairs)
    truth = [*eigenvalues[::-1][:4], *eigenvalues[:4][::-1]]
    np.testing.assert_allclose([pair["value"] for pair in pairs], truth, rtol=1e-4)
    assert all(
        abs(pair["value"] - t) <= pair["bar"] + ROUNDING * truth[0] for pair, t in zip(pairs, truth, strict=True)
    )


def test_density_bounds_the_share_of_negative_eigenvalues(report, eigenvalues):
    metric = report("density", "--probes", "6")["metrics"]["negative_mass"]
    zero = ROUNDING * eigenvalues[-1]
    low, high = metric["ci"]
    assert low <= (eigenvalues < zero).mean()
    assert high >= (eigenvalues < -zero).mean()


def test_trace_gives_the_trace_of_each_block(report, dense, blocks):
    found = {block["name"]: block for block in report("trace", "--probes", "32")["blocks"]}
    assert found.keys() == blocks.keys()
    for name, places in blocks.items():
        assert found[name]["num_parameters"] == len(places)
        assert_within_errors(found[name]["metrics"]["trace"], np.diag(dense)[places].sum())


def test_blockdiag_gives_the_norms_and_angles_of_the_dense_blocks(report, dense, blocks):
    measured = report("blockdiag", "--probes", "24")
    assert [block["name"] for block in measured["blocks"]] == list(blocks)
    places = list(blocks.values())
    norms = np.array([[np.linalg.norm(dense[np.ix_(a, b)]) for b in places] for a in places])
    coupling = measured["coupling"]
    assert np.all(
        np.abs(np.array(coupling["frobenius"]) - norms) <= 4 * np.array(coupling["stderr"]) + 1e-6 * norms.max()
    )
    outside = 1 - np.trace(norms**2) / (norms**2).sum()
    assert_within_errors(measured["metrics"]["off_block_fraction"], outside)
    shares = np.diag(norms**2) / (norms**2).sum(axis=1)
    relative, cosine = np.sqrt(1 - shares), np.sqrt(shares)
    for i, block in enumerate(measured["blocks"]):
        assert_within_errors(block["metrics"]["relative_error"], relative[i])
        assert_within_errors(block["metrics"]["cosine"], cosine[i])
    assert_within_errors(measured["metrics"]["relative_error"], np.mean(relative))
    assert_within_errors(measured["metrics"]["cosine"], np.mean(cosine))


def test_what_was_measured_stands_in_the_report(report):
    measured = report("topk", "--k", "1")
    assert measured["model"]["class"] == "Qwen3ForCausalLM"
    assert measured["model"]["tied"] is True
    assert measured["model"]["num_parameters"] == sum(p.numel() for p in tiny_model("qwen3").parameters())
    assert measured["data"]["sequences"] == 5
    assert measured["data"]["tokens"] == 35
    assert measured["data"]["loss_terms"] == 35 - 5 - 4  # one row has four labels masked
    assert measured["data"]["packed"] is False
