"""What is asked of weights that are fetched layer by layer before a product of theirs is taken."""

import pytest
import torch
from once import Once
from test_offload import pair  # noqa: F401 - a fixture
from tiny import flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.choice import choose_operator
from hesscli.curvature.differences.displaced import DisplacedGradient
from hesscli.curvature.trust.float64 import Float64Errors
from hesscli.curvature.trust.rounding import Float32Errors
from hesscli.curvature.trust.soundness import fetched_stack
from hesscli.errors import UsageError


@pytest.mark.parametrize("place", ["model.layers.1.mlp", "model.embed_tokens", "model.norm"])
def test_a_function_that_is_differentiable_once_has_no_product_on_fetched_weights(pair, place):  # noqa: F811
    _, fetched = pair("llama")
    module = fetched.model.get_submodule(place)
    module.register_forward_hook(lambda _module, _args, out: out + 0.03 * Once.apply(out))
    with pytest.raises(UsageError, match="once_differentiable"):
        choose_operator(fetched, kind="hessian", product="auto", seed=0)


def test_the_checks_read_each_layer_three_times(pair):  # noqa: F811
    _, fetched = pair("llama")
    layers, reads = list(fetched.residence._layers.values()), []
    for layer in layers:
        layer.reads = [lambda read=read, layer=layer: reads.append(layer) or read() for read in layer.reads]
    fetched_stack(fetched)
    weights = sum(len(layer.reads) for layer in layers)
    # The last layer is read ahead once too often: what comes after it is not known in advance.
    assert 3 * weights <= len(reads) <= 4 * weights


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher", "empirical-fisher"])
def test_what_narrow_weights_do_is_measured_where_they_are_fetched_as_in_memory(pair, kind):  # noqa: F811
    _, fetched = pair("qwen3", dtype="bfloat16")
    whole = risk_of(tiny_model("qwen3").bfloat16(), ragged_slice(), 2)
    found = []
    for risk in (fetched, whole):
        operator = choose_operator(risk, kind=kind, product="layered", seed=0).operator
        found.append(Float32Errors(operator, risk, kind, 0).sampled().largest)
    assert found[0] == pytest.approx(found[1], rel=0.3)
    v = whole.space.random("gaussian", seed=1, index=0)
    narrow = choose_operator(fetched, kind=kind, product="layered", seed=0).operator.matvec(v)
    again = choose_operator(whole, kind=kind, product="layered", seed=0).operator.matvec(v)
    assert (flat(narrow) == flat(again)).all()  # and the weights are as narrow as they were


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher", "empirical-fisher"])
def test_float64_is_asked_of_fetched_weights_one_layer_at_a_time(pair, kind):  # noqa: F811
    whole, fetched = pair("qwen3")
    vectors, found = [whole.space.random("gaussian", seed=1, index=i) for i in range(2)], []
    for risk in (fetched, whole):
        operator = choose_operator(risk, kind=kind, product="layered", seed=0).operator
        found += Float64Errors(operator, risk, kind, 0).along(vectors)
        assert {p.dtype for p in risk.model.parameters()} == {torch.float32}
    assert found[:2] == pytest.approx(found[2:], rel=0.3)
    assert min(found) > 3e-8
    assert max(found) < 3e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_are_not_widened_beyond_what_the_user_gave(pair, dtype):  # noqa: F811
    _, fetched = pair("qwen3", dtype=dtype)
    operator = choose_operator(fetched, kind="hessian", product="layered", seed=0).operator
    errors = Float64Errors if dtype == "float32" else Float32Errors
    v = fetched.space.random("gaussian", seed=1, index=0)
    for limit, measured in ((1 << 30, True), (1 << 10, False)):
        asked = errors(operator, fetched, "hessian", 0, {torch.device("cpu"): limit})
        assert (asked.along([v]) is not None) == measured


def test_choices_of_experts_are_counted_on_fetched_weights_as_in_memory(pair):  # noqa: F811
    whole, fetched = pair("mixtral")
    v, found = whole.space.random("gaussian", seed=0, index=0), []
    for risk in (whole, fetched):
        gradient = DisplacedGradient(risk)
        for alpha in (1e-3, 0.1):
            gradient.change(v, alpha)
            found.append((gradient.num_choices, gradient.count(gradient.switched)))
    assert found[:2] == found[2:]
    assert found[0][0] == 70
    assert found[1][1] > found[0][1]
