"""Which parameters, which blocks, and the self-tests that must catch a broken product."""

import pytest
import torch
from tiny import ragged_slice, risk_of, tiny_model

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.preflight import check_product
from hesscli.curvature.selection import partition, select_parameters
from hesscli.errors import UntrustworthyError, UsageError


class Broken:
    """A product with a planted fault."""

    def __init__(self, operator, fault):
        self.space, self._operator, self._fault = operator.space, operator, fault

    def matvec(self, v):
        return self._fault(self.space, v, self._operator.matvec(v))


def skewed(space, v, product):
    place = max(range(len(v)), key=lambda i: v[i].numel())  # linear and repeatable: only symmetry is broken
    product[place] = product[place] + 100.0 * torch.roll(v[place].flatten(), 1).view_as(v[place])
    return product


def noisy(space, v, product):
    return [p + torch.randn_like(p) * p.std() for p in product]


def bent(space, v, product):
    return [p + p.abs() * 0.5 for p in product]


def shifted(space, v, product):
    product[place_of(space, "up_proj")] += 30.0 * v[place_of(space, "up_proj")]
    return product


def divided_by_another_number(space, v, product):
    return [1.5 * p for p in product]  # as a mean over batches would be: symmetric and linear, and wrong


def place_of(space, word):
    return next(i for i, name in enumerate(space.names) if word in name)


def infinite(space, v, product):
    product[0].view(-1)[0] = float("nan")
    return product


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (skewed, "symmetry"),
        (noisy, "repeat"),
        (bent, "linearity"),
        (infinite, "NaN"),
        (shifted, "known-answer"),
        (divided_by_another_number, "known-answer"),
    ],
)
def test_a_planted_fault_is_caught_and_named(fault, word):
    risk = risk_of(tiny_model("llama"), ragged_slice(), 5)
    operator = HessianOperator(risk, keep_graph=True)
    with pytest.raises(UntrustworthyError, match=word):
        check_product(Broken(operator, fault), risk, semi_definite=False, seed=0)


def test_dropout_that_was_left_on_is_caught():
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
            module.train()
    risk = risk_of(model, ragged_slice(), 5)
    with pytest.raises(UntrustworthyError, match="two evaluations"):
        check_product(HessianOperator(risk, keep_graph=False), risk, semi_definite=False, seed=0)


def test_an_exact_product_passes_at_rounding():
    risk = risk_of(tiny_model("llama"), ragged_slice(), 5)
    result = check_product(HessianOperator(risk, keep_graph=True), risk, semi_definite=False, seed=0)
    assert result.repeat < 1e-6
    assert result.symmetry < 1e-4
    assert result.linearity < 1e-5
    assert 0 < result.known_answer < 1e-5
    assert result.noise == max(result.repeat, result.symmetry, result.linearity, result.known_answer)


NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up.weight",
    "model.layers.0.mlp.experts.3.weight",
    "model.layers.10.norm.weight",
    "model.norm.weight",
    "lm_head.weight",
]


def test_partition_by_layer_names_embeddings_and_head():
    blocks = partition(NAMES, by="layer")
    assert [b.name for b in blocks] == [
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.10",
        "model.norm",
        "lm_head",
    ]
    assert blocks[1].parts == {1, 2}


def test_partition_by_module_and_by_parameter_covers_everything_once():
    assert [b.name for b in partition(NAMES, by="module")][1] == "model.layers.0.mlp.up"
    for by in ("layer", "module", "parameter"):
        parts = [p for b in partition(NAMES, by=by) for p in b.parts]
        assert sorted(parts) == list(range(len(NAMES)))
    assert len(partition(NAMES, by="parameter")) == len(NAMES)


def test_globs_take_and_leave():
    model = tiny_model("llama")
    chosen = select_parameters(model, params=["model.layers.*"], exclude=["*norm*", "*mlp*"])
    assert chosen
    assert all("self_attn" in name for name in chosen)


def test_a_tied_embedding_stands_once():
    names = list(select_parameters(tiny_model("qwen3"), params=["*"], exclude=[]))
    assert names.count("model.embed_tokens.weight") == 1
    assert "lm_head.weight" not in names


@pytest.mark.parametrize(
    ("params", "exclude", "word"),
    [
        (["model.layers.0.mlp.up_prj.weight"], [], "nearest"),
        (["*"], ["nothing*"], "matches no"),
        (["*"], ["*"], "is left"),
    ],
)
def test_globs_that_match_nothing_are_refused(params, exclude, word):
    with pytest.raises(UsageError, match=word):
        select_parameters(tiny_model("llama"), params=params, exclude=exclude)
