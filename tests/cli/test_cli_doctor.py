"""`hess doctor` finds a faulty product, a missing derivative and a wrong one, and says what to do."""

import json

import pytest
import torch
from tiny import dense_hessian, flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.double_backward import HessianOperator
from hesscli.run.doctor import derivatives
from hesscli.run.doctor.dense import dense_matrices
from hesscli.run.doctor.document import Device, Examination
from hesscli.run.doctor.machine import extras, settings, troubles

CPU = torch.device("cpu")


def test_all_is_well_here_and_the_json_is_alone_on_stdout(hess):
    ended = hess("doctor", "--json")
    assert (ended.code, ended.err) == (0, "")
    found = Examination.model_validate_json(ended.out)
    assert json.loads(ended.out)["schema"] == "hess.doctor/1"
    assert found.verdict == "ok"
    assert {test.name.split(",")[0] for test in found.self_tests} >= {"hessian", "ggn", "fisher", "empirical fisher"}
    assert all(0 <= test.error <= test.limit for test in found.self_tests)
    exact = [test for test in found.self_tests if test.name.startswith(("hessian", "ggn", "fisher", "empirical"))]
    assert all(test.error > 0 for test in exact)  # float32 against float64 never agrees to the last bit
    answers = {one.operation: (one.double_backward, one.forward_mode) for one in found.derivatives}
    assert answers["attention, eager"] == answers["silu"] == answers["rms norm"] == ("yes", "yes")
    assert found.versions["torch"] == torch.__version__.split("+")[0] or found.versions["torch"] == torch.__version__


def test_a_product_that_is_wrong_is_exit_4_with_a_remedy_below_the_table(hess, monkeypatch):
    matvecs = HessianOperator.matvecs
    monkeypatch.setattr(
        HessianOperator, "matvecs", lambda self, vs: [[1.01 * part for part in p] for p in matvecs(self, vs)]
    )
    ended = hess("doctor")
    assert ended.code == 4
    rows = [line for line in ended.out.splitlines() if line.startswith("hessian, graph kept")]
    assert rows
    assert "1.0e-02" in rows[0]
    assert "FAIL" in rows[0]
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("error: doctor: ")
    assert "; " in last
    assert max(map(len, ended.out.splitlines())) <= 80


def test_the_dense_hessian_is_that_of_other_code():
    data = ragged_slice()
    dense = dense_matrices(risk_of(tiny_model("gpt_neox"), data, 5, only=lambda name: "layers.0" in name), seed=0)
    names = [name for name, _ in tiny_model("gpt_neox").named_parameters()]
    sizes = [p.numel() for p in tiny_model("gpt_neox").parameters()]
    keep = torch.cat([torch.full((n,), "layers.0" in name) for name, n in zip(names, sizes, strict=True)]).numpy()
    truth = torch.tensor(dense_hessian("gpt_neox")[keep][:, keep])
    assert (dense["hessian"] - truth).norm() < 1e-4 * truth.norm()
    assert flat([dense["ggn"] - dense["ggn"].T]) == pytest.approx(0, abs=1e-12)
    assert torch.linalg.eigvalsh(dense["ggn"]).min() > -1e-9


class Halved(torch.autograd.Function):
    """A square whose derivative is right and whose second derivative is half of what it is."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, above):
        (x,) = ctx.saved_tensors
        return above * (x + x.detach())


class Once(Halved):
    """One that torch takes for a constant in the second derivative, and says nothing."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, above):
        return Halved.backward(ctx, above)


class Refused(Halved):
    """One whose backward cannot be differentiated."""

    @staticmethod
    def backward(ctx, above):
        (x,) = ctx.saved_tensors
        return above * Doubled.apply(x)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return 2 * x

    @staticmethod
    def backward(_ctx, _above):
        message = "derivative for square is not implemented"
        raise RuntimeError(message)


@pytest.mark.parametrize(("function", "answer"), [(Halved, "wrong"), (Once, "wrong"), (Refused, "no")])
def test_a_derivative_is_tried_and_not_looked_up(function, answer):
    tried = derivatives._tried(derivatives._Subject("square", function.apply), CPU)
    assert tried.double_backward == answer
    assert tried.forward_mode == "no"
    assert tried.reason
    right = derivatives._tried(derivatives._Subject("square", lambda x: x**2), CPU)
    assert (right.double_backward, right.forward_mode) == ("yes", "yes")


def test_reduced_precision_fails_and_little_memory_and_missing_extras_are_notes_with_remedies():
    device = Device(name="cuda:0", hardware="X", total_bytes=1 << 34, free_bytes=1 << 29, fp32_error=3e-4)
    found = troubles([device], {**extras(), "wandb": None})
    assert [one.failed for one in found if "float32" in one.text] == [True]
    assert [one.failed for one in found if "MiB free" in one.text] == [False]
    assert [one.remedy for one in found if "wandb" in one.text] == ["pip install 'hess[wandb]'"]
    assert all(one.remedy for one in found)


@pytest.mark.parametrize(("value", "word"), [("1", "offline"), ("true", "offline"), ("0", "online")])
def test_the_hub_is_offline_where_its_client_would_say_so(monkeypatch, value, word):
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert settings(["ieee"])["hub"].startswith(word)
