"""hess solve from end to end: what is solved is what was asked for, and what cannot be is refused in one line."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny import dense_hessian, flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.gauss_newton import GGNOperator
from hesscli.report.schema import Report
from hesscli.run.storage.tensor_file import write_tensors

MLP = "model.layers.1.mlp.down_proj.weight"
TINY = ["solve", "qwen3", "-d", "rows.jsonl", "--limit", "5", "--params", MLP]
NO_FIGURE = ["--plots", "none"]


def solved(hess, *words, code=0):
    ended = hess(*TINY, *NO_FIGURE, "--json", *words)
    assert ended.code == code, ended.err
    return Report.model_validate_json(ended.out)


def solution(folder, file="solution.safetensors"):
    """The tensor of the one parameter, and the file's metadata."""
    path = next(folder.rglob(file))
    with safe_open(path, framework="np") as tensors:
        assert list(tensors.keys()) == [MLP]
        return tensors.get_tensor(MLP).reshape(-1).astype(float), tensors.metadata()


@pytest.fixture(scope="module")
def truth():
    """The risk over the one parameter, and its dense Gauss-Newton matrix and Hessian."""
    model = tiny_model("qwen3")
    risk = risk_of(model, ragged_slice(), 5, only=lambda name: name == MLP)
    n = risk.space.dimension
    operator = GGNOperator(risk)
    ggn = np.array([flat(operator.matvec([row.reshape(risk.space.shapes[0])])) for row in torch.eye(n)])
    kept = np.concatenate([np.full(p.numel(), name == MLP) for name, p in model.named_parameters()])
    hessian = dense_hessian("qwen3")[np.ix_(kept, kept)]
    return risk, {"ggn": (ggn + ggn.T) / 2, "hessian": (hessian + hessian.T) / 2}


@pytest.mark.parametrize(("kind", "solver"), [("ggn", "cg"), ("hessian", "minres")])
def test_the_saved_solution_is_the_dense_one(hess, checkpoint, tmp_path, truth, kind, solver):
    risk, dense = truth
    report = solved(hess, "--operator", kind, "--damping", "0.05", "--tolerance", "1e-5")
    x, metadata = solution(tmp_path)
    gradient = flat(risk.gradient())
    expected = np.linalg.solve(dense[kind] + 0.05 * np.eye(len(gradient)), gradient)
    assert x == pytest.approx(expected, abs=1e-3 * np.linalg.norm(expected))
    assert report.solve.solver == solver
    assert report.status == "ok"
    assert report.artifacts == ["solution.safetensors"]
    assert metadata["damping"] == "0.05"
    assert metadata["kind"] == kind
    assert metadata["run_id"] == report.run_id
    (system,) = report.solve.systems
    assert system.converged
    assert report.metrics == system.metrics
    assert report.metrics["relative_residual"].value == system.true_residuals[-1][1] <= 1e-5
    assert report.metrics["solution_norm"].value == pytest.approx(np.linalg.norm(x), rel=1e-5)
    assert report.metrics[f"{solver}_iterations"].value == len(system.residuals) - 1
    assert report.metrics["quadratic_form"].value == pytest.approx(gradient @ expected, rel=1e-4)


def test_figures_have_intervals_that_hold_the_dense_truth(hess, checkpoint, truth):
    risk, dense = truth
    gradient = flat(risk.gradient())
    for steps in (2, 4, 40):
        report = solved(hess, "--operator", "ggn", "--damping", "0.02", "--damping", "1", "--steps", steps)
        for system in report.solve.systems:
            matrix = dense["ggn"] + system.damping * np.eye(len(gradient))
            x = np.linalg.solve(matrix, gradient)
            for name, true in (("quadratic_form", gradient @ x), ("solution_norm", np.linalg.norm(x))):
                low, high = system.metrics[name].ci
                assert low <= true <= high, (steps, name)
                assert low < high < 100 * true
            condition = system.metrics["condition_number"]
            assert condition.ci is None
            assert 1 <= condition.value <= np.linalg.cond(matrix) * (1 + 1e-4)


def test_what_is_solved_for_may_be_a_row_or_random(hess, checkpoint, tmp_path, truth):
    risk, dense = truth
    matrix = dense["ggn"] + 0.5 * np.eye(risk.space.dimension)
    rows = ragged_slice().sequences
    for number in (0, 3):
        alone = risk_of(tiny_model("qwen3"), type(ragged_slice())((rows[number],), id="one"), 1, lambda n: n == MLP)
        words = ("--operator", "ggn", "--damping", "0.5", "--rhs", f"row:{number}", "-b", "2", "-o", f"row{number}")
        report = solved(hess, *words, "--tolerance", "1e-5")
        expected = np.linalg.solve(matrix, flat(alone.gradient()))
        x, _ = solution(tmp_path / f"row{number}")
        assert x == pytest.approx(expected, abs=1e-4 * np.linalg.norm(expected))
        assert report.solve.rhs == f"row:{number}"
    first, again, other = (
        solved(hess, "--operator", "ggn", "--damping", "0.5", "--rhs", "random", "--seed", seed, "--force")
        for seed in (0, 0, 1)
    )
    assert first.solve.rhs_norm == pytest.approx(1)
    assert first.metrics == again.metrics
    assert first.metrics["solution_norm"].value != other.metrics["solution_norm"].value


def test_several_dampings_stand_side_by_side_and_share_their_products(hess, checkpoint, tmp_path):
    report = solved(hess, "--operator", "ggn", "--damping", "1", "--damping", "0.02", "--damping", "1")
    assert [s.damping for s in report.solve.systems] == [0.02, 1.0]
    assert report.artifacts == ["solution-0.02.safetensors", "solution-1.0.safetensors"]
    assert [s.file for s in report.solve.systems] == report.artifacts
    assert report.metrics == report.solve.systems[0].metrics
    alone = solved(hess, "--operator", "ggn", "--damping", "0.02", "-o", "alone")
    one, _ = solution(tmp_path / "outputs", "solution-0.02.safetensors")
    other, _ = solution(tmp_path / "alone")
    assert one == pytest.approx(other, abs=1e-4 * np.linalg.norm(other))
    spent = len(report.solve.systems[1].true_residuals)
    assert report.cost.matvecs <= alone.cost.matvecs + spent + 1
    text = hess(*TINY, *NO_FIGURE, "--operator", "ggn", "--damping", "1", "--damping", "0.02").out
    assert "conjugate gradients" in text
    assert "2 of 2 dampings converged" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80 or "report" in text


@pytest.mark.parametrize("name", ["low-rank", "diagonal"])
def test_a_preconditioner_gives_the_same_solution_and_its_products_are_counted(hess, checkpoint, tmp_path, name):
    words = ["--operator", "ggn", "--damping", "0.01", "--tolerance", "1e-5"]
    plain = solved(hess, *words, "-o", "plain")
    report = solved(hess, *words, "--preconditioner", name, "-o", "made")
    one, _ = solution(tmp_path / "plain")
    other, _ = solution(tmp_path / "made")
    assert one == pytest.approx(other, abs=1e-3 * np.linalg.norm(one))
    assert report.solve.preconditioner == name
    assert report.solve.preconditioner_matvecs >= 8
    own = report.metrics["cg_iterations"].value + report.solve.preconditioner_matvecs
    assert report.cost.matvecs >= own
    assert "preconditioned" in report.metrics["condition_number"].reason
    if name == "low-rank":
        assert report.solve.preconditioner_rank > 3
        assert report.metrics["cg_iterations"].value <= 0.6 * plain.metrics["cg_iterations"].value


def test_negative_curvature_is_a_finding_with_its_direction_in_a_file(hess, checkpoint, tmp_path, truth):
    _, dense = truth
    words = ["--operator", "hessian", "--solver", "cg", "--damping", "0.001"]
    report = solved(hess, *words)
    (system,) = report.solve.systems
    assert report.status == "not_converged"
    assert system.ending == "negative_curvature"
    p, metadata = solution(tmp_path, "negative-curvature.safetensors")
    quotient = p @ dense["hessian"] @ p / (p @ p)
    assert system.negative_curvature.rayleigh_quotient == pytest.approx(quotient, rel=1e-3)
    assert quotient < -0.001
    assert float(metadata["rayleigh_quotient"]) == system.negative_curvature.rayleigh_quotient
    assert [w.code for w in report.warnings if w.code != "packed"] == ["negative-curvature"]
    assert report.metrics["condition_number"].value is None
    ended = hess(*TINY, *NO_FIGURE, *words, "--strict")
    assert ended.code == 4
    assert "negative curvature" in ended.err
    assert "negative curvature" in ended.out


def test_an_indefinite_matrix_is_said_to_be_one(hess, checkpoint):
    report = solved(hess, "--operator", "hessian", "--damping", "0.01", "--steps", "30")
    assert "indefinite" in {w.code for w in report.warnings}
    for name in ("quadratic_form", "solution_norm"):
        assert report.metrics[name].ci is None
        assert report.metrics[name].reason


def test_a_solve_that_ran_out_of_steps_is_written_and_strict_ends_in_4(hess, checkpoint):
    words = ["--operator", "ggn", "--damping", "0.001", "--steps", "2"]
    report = solved(hess, *words)
    assert report.status == "not_converged"
    assert report.metrics["cg_iterations"].value == 2
    ended = hess(*TINY, *NO_FIGURE, *words, "--strict")
    assert ended.code == 4
    assert "the budget of products was spent" in ended.err
    assert "Not converged" in ended.out


def test_the_figure_has_a_table_of_both_residuals(hess, checkpoint, tmp_path):
    ended = hess(*TINY, "--operator", "ggn", "--damping", "0.05", "--damping", "1", "-q", "--plots", "svg")
    folder = (tmp_path / ended.out.strip()).parent
    assert {path.name for path in folder.iterdir()} >= {"solve.svg", "solve.csv"}
    header, *rows = (folder / "solve.csv").read_text().splitlines()
    assert header == "damping,iteration,recursive_residual,true_residual"
    systems = json.loads((folder / "report.json").read_text())["solve"]["systems"]
    assert len(rows) == sum(len(s["residuals"]) for s in systems)
    last = next(row for row in reversed(rows) if row.startswith("0.05,")).split(",")
    assert float(last[3]) == systems[0]["true_residuals"][-1][1]


# fmt: off
REFUSED = {
    "no damping for cg": ("--operator ggn --damping 0", ("estimator.damping", "0 is not for cg", "minres")),
    "damping below zero": ("--damping -1", ("estimator.damping", "'-1'", "greater than or equal to 0")),
    "damping no number": ("--damping much", ("estimator.damping", "'much'", "a number")),
    "damping infinite": ("--damping inf", ("estimator.damping", "'inf'", "finite")),
    "preconditioner of minres": ("--preconditioner diagonal", ("'diagonal' is for cg", "--operator ggn")),
    "preconditioner unknown": ("--preconditioner diag", ("'diag'", "allowed: none, low-rank, diagonal")),
    "solver unknown": ("--solver gmres", ("estimator.solver", "'gmres'", "allowed: auto, cg, minres")),
    "right-hand side unknown": ("--rhs loss", ("estimator.rhs", "'loss'", "gradient, random, or row:N")),
    "row without its number": ("--rhs row:", ("estimator.rhs", "'row:'", "gradient, random, or row:N")),
    "row below zero": ("--rhs row:-1", ("estimator.rhs", "'row:-1'", "gradient, random, or row:N")),
    "row beyond the slice": ("--rhs row:5", ("estimator.rhs", "'row:5' is not in the slice of 5", "at most row:4")),
    "option of another probe": ("--probes 3", ("--probes", "hess solve", "leave it out")),
}
# fmt: on


@pytest.mark.parametrize("case", REFUSED)
def test_bad_words_are_refused_in_one_line(hess, checkpoint, tmp_path, case):
    words, said = REFUSED[case]
    ended = hess(*TINY, *words.split())
    assert ended.code == 2
    assert ended.out == ""
    error = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    for word in said:
        assert word in error[0]
    assert not [*tmp_path.rglob("report.json")]


def test_a_parameter_that_the_loss_does_not_reach_gives_zero_and_says_so(hess, checkpoint, monkeypatch):
    from hesscli.curvature.risk import EmpiricalRisk

    monkeypatch.setattr(EmpiricalRisk, "gradient", lambda risk: risk.space.zeros())
    report = solved(hess, "--operator", "ggn")
    assert report.status == "ok"
    assert report.solve.systems[0].ending == "zero"
    assert report.metrics["solution_norm"].value == 0
    assert report.metrics["relative_residual"].value is None
    assert "zero-right-hand-side" in {w.code for w in report.warnings}
    assert "right-hand side is zero" in hess(*TINY, *NO_FIGURE, "--operator", "ggn", "--force").out


def test_a_right_hand_side_that_is_not_finite_is_not_trusted(hess, checkpoint, monkeypatch):
    from hesscli.run.figures import measure

    def broken(_rhs, risk, *, seed):
        return [torch.full_like(part, float("nan")) for part in risk.space.zeros()]

    monkeypatch.setattr(measure, "right_hand_side", broken)
    ended = hess(*TINY, *NO_FIGURE, "--operator", "ggn")
    assert ended.code == 4
    assert "the right-hand side is not finite" in ended.err


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_read_back_as_they_were_written(tmp_path, dtype):
    tensors = {
        "b.é": torch.randn(3, 5, dtype=dtype).T,
        "a": torch.randn(7, dtype=dtype),
        "s": torch.ones((), dtype=dtype),
    }
    write_tensors(tmp_path / "t.safetensors", tensors, {"damping": "0.1"})
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        assert file.metadata() == {"damping": "0.1"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert file.get_tensor(name).dtype == dtype
            assert torch.equal(file.get_tensor(name), tensor)
