"""A loss with kinks and jumps is not smooth: differences say so, by name before and by their numbers after."""

import pytest
import torch
from breadth.subjects import SUBJECTS
from breadth.test_breadth import risk_on
from tiny import VOCAB, ragged_slice, risk_of, rows_of, tiny_model, tiny_opt

from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.differences.kinks import find_kinks, has_experts, kinks_by_name


def opt(activation):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCAB, (8, 48), generator=generator)
    return risk_of(tiny_opt(activation), rows_of(ids), 8)


@pytest.mark.parametrize(("activation", "codes"), [("relu", ["not-smooth"]), ("gelu", [])])
def test_kinks_show_in_the_numbers(activation, codes):
    operator = FiniteDifferenceOperator(opt(activation), scheme="central")
    operator.matvecs([operator.space.random("gaussian", seed=0, index=i) for i in range(3)])
    assert [w.code for w in operator.warnings(noise=operator.relative_error)] == codes


def test_kinks_are_found_by_module_and_by_config():
    assert [w.code for w in find_kinks(opt("relu"))] == ["kinks"]
    assert "ReLU" in find_kinks(opt("relu"))[0].text
    assert find_kinks(opt("gelu")) == []
    called_without_a_module = opt("gelu").model
    called_without_a_module.config.activation_function = "relu"
    assert [w.code for w in kinks_by_name(called_without_a_module)] == ["kinks"]
    for name in ("mixtral", "llama"):
        assert find_kinks(risk_of(tiny_model(name), ragged_slice(), 2)) == []
    assert [w.code for w in kinks_by_name(torch.nn.Sequential(torch.nn.LeakyReLU()))] == ["kinks"]


def test_kinks_that_nothing_names_are_found_where_they_run():
    # RWKV squares torch.relu: no module, and no word of it in the config.
    model, batch = SUBJECTS["rwkv"].build(), SUBJECTS["rwkv"].batch()
    assert kinks_by_name(model) == []
    (warning,) = find_kinks(risk_on(model, batch))
    assert warning.text.startswith("relu: ")


def test_experts_are_found_by_the_config_and_by_the_name_of_a_module():
    class LocalRouter(torch.nn.Linear):
        pass

    assert has_experts(tiny_model("mixtral"))
    assert has_experts(torch.nn.Sequential(LocalRouter(2, 2)))
    assert not has_experts(tiny_model("llama"))
