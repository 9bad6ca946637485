"""The draws that a report keeps are those behind its figures: their mean is the value, their jackknife the error."""

import json

import pytest

MEASURED = ["qwen3", "-d", "rows.jsonl", "--limit", "5", "--plots", "none", "--json"]
EXPECTED = {
    "trace": {"trace", "mean_eigenvalue", "blocks.model.layers.1.trace"},
    "density": {"trace", "mean_eigenvalue"},
    "blockdiag": {"cosine", "relative_error", "blocks.model.layers.0.cosine"},
    "topk": {"lambda_max", "lambda_min"},
}


@pytest.mark.parametrize("probe", EXPECTED)
def test_draws_belong_to_their_figures(hess, checkpoint, probe):
    ended = hess(probe, *MEASURED, "--preset", "quick")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    blocks = {f"blocks.{b['name']}.{name}": m for b in report["blocks"] for name, m in b["metrics"].items()}
    figures = report["metrics"] | blocks
    assert EXPECTED[probe] <= set(report["samples"]) <= set(figures)
    for name, samples in report["samples"].items():
        assert samples["probe"] or samples["data"], name
        if samples["probe"]:
            assert len(samples["probe"]) == figures[name]["n"]["probes"]
            mean = sum(samples["probe"]) / len(samples["probe"])
            assert mean == pytest.approx(figures[name]["value"], rel=1e-9), name
        if samples["data"]:
            count = len(samples["data"])
            mean = sum(samples["data"]) / count
            error = ((count - 1) / count * sum((x - mean) ** 2 for x in samples["data"])) ** 0.5
            assert error == pytest.approx(figures[name]["errors"]["data"], rel=1e-6), name


def test_xtrace_keeps_no_draws_for_they_depend_on_each_other(hess, checkpoint):
    report = json.loads(hess("trace", *MEASURED, "--method", "xtrace", "--preset", "quick").out)
    assert not any(samples["probe"] for samples in report["samples"].values())


def test_the_same_weights_with_the_same_seed_are_compared_draw_by_draw(hess, checkpoint, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    words = [word for word in MEASURED if word != "--json"]
    first = hess("trace", *words, "-q").out.strip()
    file = checkpoint / "model.safetensors"
    weights = {name: tensor * (1 + 1e-4 * torch.sign(tensor)) for name, tensor in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    second = hess("trace", *words, "-q").out.strip()
    third = hess("trace", *words, "-q", "--seed", "1").out.strip()
    paired, welch = (
        next(
            row
            for row in json.loads(hess("compare", first, other, "--json").out)["news"][0]["rows"]
            if row["metric"] == "trace"
        )
        for other in (second, third)
    )
    assert (paired["method"], welch["method"]) == ("paired", "welch")
    assert paired["ci"][1] - paired["ci"][0] < 0.1 * (welch["ci"][1] - welch["ci"][0])
    assert paired["data"] is not None
