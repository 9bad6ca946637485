"""The rules of forward mode are the derivatives, change nothing else, and are the ones that are used."""

import pytest
import torch
from tiny import ragged_slice, risk_of, tiny_model
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import jvp, vmap
from torch.nn import functional
from torch.profiler import profile

from hesscli.curvature.layers.forward_rules import ForwardRules
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import find_stack

C = torch.linspace(0.5, 2.0, 12, dtype=torch.float64).reshape(3, 1, 4)
FUNCTIONS = {
    "product": lambda x: x * C,
    "product on the left": lambda x: C * x,
    "product with a number": lambda x: 3.0 * x,
    "quotient": lambda x: x / C,
    "quotient of a constant": lambda x: 2.0 / x,
    "sum that is larger": lambda x: x + C,
    "sum with a number": lambda x: 1 + x,
    "difference": lambda x: x - C,
    "difference from a constant": lambda x: C - x,
    "sum with a factor": lambda x: x.add(C, alpha=3.0),
    "wider than the value": lambda x: x.float() + C,
    "of two that move": lambda x: (x * x).sub(x.sin()),
    "softmax": lambda x: x.softmax(-1),
    "softmax by columns": lambda x: torch.softmax(x, dim=0),
    "softmax in another dtype": lambda x: functional.softmax(x.float(), dim=-1, dtype=torch.float64),
    "within a vmap": lambda x: vmap(lambda row: (2.0 * row * C[0, 0]).softmax(-1))(x),
    "against what a vmap maps": lambda x: vmap(lambda c: x * c)(C[:, 0]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tangents_are_the_jacobian_times_the_vector(name):
    f = FUNCTIONS[name]
    x, *ts = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).add(0.1)
    jacobian_of = jacobian(f, x)
    truths = [torch.tensordot(jacobian_of, t, dims=2) for t in ts]
    close = {"rtol": 1e-6, "atol": 1e-6} if "float" in f.__code__.co_names else {"rtol": 1e-12, "atol": 1e-12}

    def ruled(x):
        with ForwardRules():
            return f(x)

    with torch.no_grad():
        with forward_ad.dual_level():
            value, tangent = forward_ad.unpack_dual(ruled(forward_ad.make_dual(x, ts[0])))
        assert torch.equal(value, f(x))
        assert value.dtype == tangent.dtype
        torch.testing.assert_close(tangent, truths[0], **close)
        pushed = vmap(lambda t: jvp(ruled, (x,), (t,))[1])(torch.stack(ts))
    torch.testing.assert_close(pushed, torch.stack(truths), **close)


@pytest.mark.parametrize("f", [lambda x: x + 1.0, lambda x: x - C, lambda x: 1.0 - x])
def test_a_value_changed_in_place_leaves_the_tangent_of_what_it_came_from(f):
    with torch.no_grad(), forward_ad.dual_level():
        x = forward_ad.make_dual(torch.ones(2, 4), torch.ones(2, 4))
        with ForwardRules():
            f(x).mul_(5.0)
        assert torch.equal(forward_ad.unpack_dual(x).tangent, torch.ones(2, 4))


@pytest.mark.parametrize("num_vectors", [1, 2])
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_the_layers_of_a_product_make_no_zeros_for_constants_and_no_exponentials_anew(name, num_vectors):
    risk = risk_of(tiny_model(name), ragged_slice(), 5)
    operator = LayeredOperator(risk, find_stack(risk.first_row()))
    vs = [risk.space.random("gaussian", seed=0, index=i) for i in range(num_vectors)]
    with profile() as seen:
        operator.matvecs(vs)
    counts = {event.key: event.count for event in seen.key_averages()}
    assert "aten::_efficientzerotensor" not in counts
    assert counts["aten::_softmax"] == 4  # of two layers, each run twice
    assert counts["aten::exp"] == 2 * num_vectors  # of the head's logarithm of softmax
