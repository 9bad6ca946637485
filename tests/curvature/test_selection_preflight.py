"""Which parameters, which blocks, and the self-tests that must catch a broken product."""

import pytest
import torch
from breadth.subjects import SUBJECTS
from tiny import CONFIGS, ragged_slice, risk_of, tiny_model

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import GGNOperator
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.selection import partition, select_parameters
from hesscli.curvature.trust.loss_checks import check_loss
from hesscli.curvature.trust.preflight import check_product
from hesscli.data.slice import Batch
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


def checked(operator, risk, *, semi_definite=False):
    return check_product(
        operator, risk, loss=risk.loss(), gradient=risk.gradient(), semi_definite=semi_definite, seed=0
    )


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
        checked(Broken(operator, fault), risk)


def test_dropout_that_was_left_on_is_caught():
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
            module.train()
    risk = risk_of(model, ragged_slice(), 5)
    with pytest.raises(UntrustworthyError, match="two evaluations"):
        checked(HessianOperator(risk, keep_graph=False), risk)


def test_batch_norm_in_training_mode_is_refused_and_frozen_statistics_are_not():
    subject = SUBJECTS["resnet"]
    model, batch = subject.build(), subject.batch()
    named = dict(model.named_parameters())
    risk = EmpiricalRisk(
        model, [batch], names=list(named), parameters=list(named.values()), input_device=torch.device("cpu")
    )
    check_loss(risk, risk.loss())
    model.train()  # rows see one another, and the loss is still the same twice
    with pytest.raises(UntrustworthyError, match=r"batch norm is in training mode.*call eval\(\)"):
        check_loss(risk, risk.loss())


class Product:
    """A product on the space of another risk."""

    def __init__(self, risk, matvec):
        self.space, self.matvec = risk.space, matvec


def test_a_mean_over_batches_in_place_of_terms_is_caught():
    risk = risk_of(tiny_model("llama"), ragged_slice(), 2)
    parts = [HessianOperator(risk.on([batch]), keep_graph=True) for batch in risk.batches]

    def mean_of_means(v):
        total = risk.space.zeros()
        for part in parts:
            risk.space.axpy(1.0 / len(parts), part.matvec(v), total)
        return total

    with pytest.raises(UntrustworthyError, match="known-answer"):
        checked(Product(risk, mean_of_means), risk)


def test_the_product_of_another_checkpoint_is_caught():
    risk, other = (risk_of(tiny_model("llama"), ragged_slice(), 5) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in other.parameters:
            p.mul_(1 + 0.1 * torch.randn(p.shape, generator=generator))
    with pytest.raises(UntrustworthyError, match="known-answer"):
        checked(HessianOperator(other, keep_graph=True), risk)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_product_of_an_untied_model_is_caught(symmetric):
    model, untied = tiny_model("qwen3"), tiny_model("qwen3")
    head = untied.lm_head.weight.detach().clone()
    untied.lm_head.weight = torch.nn.Parameter(head)
    # Without the layers, whose symmetries would show it, the loss itself does.
    chosen = (lambda n: n != "lm_head.weight") if symmetric else (lambda n: "embed" in n)
    risk, other = risk_of(model, ragged_slice(), 5, only=chosen), risk_of(untied, ragged_slice(), 5, only=chosen)
    assert risk.space.names == other.space.names
    with pytest.raises(UntrustworthyError, match="curvature error of the product"):
        checked(HessianOperator(other, keep_graph=True), risk)


def test_a_gradient_that_leaves_the_pad_token_out_is_caught():
    # torch does so where the embedding has a padding index; the loss reads the row all the same.
    model = tiny_model("llama")
    risk = risk_of(model, ragged_slice(), 5)
    checked(HessianOperator(risk, keep_graph=False), risk)
    model.model.embed_tokens.padding_idx = 0
    with pytest.raises(UntrustworthyError, match="slope error of the gradient"):
        checked(HessianOperator(risk, keep_graph=False), risk)


def test_a_product_that_leaves_the_pad_token_out_is_caught():
    # The gradient is right, the product is not: symmetric, linear, and the known answer does not touch embeddings.
    model, other = tiny_model("llama"), tiny_model("llama")
    risk, wrong = (risk_of(m, ragged_slice(), 5) for m in (model, other))
    other.model.embed_tokens.padding_idx = 0
    with pytest.raises(UntrustworthyError, match="curvature error of the product"):
        checked(HessianOperator(wrong, keep_graph=False), risk)


def encoder_risk(*, masked=True):
    """A small BERT on padded rows, with or without its mask."""
    subject = SUBJECTS["bert"]
    batch = subject.batch()
    if not masked:
        batch = Batch(
            {**batch.inputs, "attention_mask": torch.ones_like(batch.inputs["attention_mask"])}, batch.targets
        )
    model = subject.build()
    named = dict(model.named_parameters())
    return EmpiricalRisk(
        model, [batch], names=list(named), parameters=list(named.values()), input_device=torch.device("cpu")
    )


def test_padding_that_a_product_does_not_mask_is_caught():
    risk = encoder_risk()
    checked(HessianOperator(risk, keep_graph=False), risk)
    with pytest.raises(UntrustworthyError, match="known-answer"):
        checked(HessianOperator(encoder_risk(masked=False), keep_graph=False), risk)


def test_padding_that_the_model_does_not_mask_is_caught():
    # Loss, gradient and product agree with one another: what differs is a row by itself.
    risk = encoder_risk()
    forward = risk.model.forward
    risk.model.forward = lambda attention_mask, **inputs: forward(**inputs)
    with pytest.raises(UntrustworthyError, match="with padding and"):
        checked(HessianOperator(risk, keep_graph=False), risk)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_exact_product_passes_at_rounding(name):
    risk = risk_of(tiny_model(name), ragged_slice(), 5)
    result = checked(HessianOperator(risk, keep_graph=True), risk)
    assert result.repeat < 1e-6
    assert result.symmetry < 1e-4
    assert result.linearity < 1e-5
    assert 0 < result.known_answer < 1e-5
    assert result.slope is None or 0 < result.slope < 0.02
    assert result.curvature is None or 0 < result.curvature < 0.02
    assert result.noise == max(result.repeat, result.symmetry, result.linearity, 2 * result.known_answer)


def test_kinks_in_the_loss_refuse_no_exact_product():
    # Differences of the loss count the kinks that they cross; the Hessian does not.
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.ReLU()
    only = risk_of(model, ragged_slice(), 5, only=lambda n: "embed" in n)  # without a known answer
    assert checked(HessianOperator(only, keep_graph=True), only).known_answer is None
    risk = risk_of(model, ragged_slice(), 5)
    operator = Broken(HessianOperator(risk, keep_graph=True), divided_by_another_number)
    with pytest.raises(UntrustworthyError, match="known-answer"):
        checked(operator, risk)


def test_a_gauss_newton_matrix_is_not_held_against_the_curvature_of_the_loss():
    risk = risk_of(tiny_model("llama"), ragged_slice(), 5)
    result = checked(GGNOperator(risk), risk, semi_definite=True)
    assert result.curvature is None
    assert result.slope < 0.02
    assert result.known_answer < 1e-5


def test_bfloat16_cannot_hold_a_displacement_and_passes_without():
    risk = risk_of(tiny_model("llama").bfloat16(), ragged_slice(), 5)
    result = checked(HessianOperator(risk, keep_graph=True), risk)
    assert (result.slope, result.curvature) == (None, None)
    assert 1e-3 < result.known_answer < 0.05


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
    chosen = select_parameters(model, params=["model.layers.*"], exclude=["*norm*", "*mlp*"], adapter=())
    assert chosen
    assert all("self_attn" in name for name in chosen)


def test_a_tied_embedding_stands_once():
    names = list(select_parameters(tiny_model("qwen3"), params=["*"], exclude=[], adapter=()))
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
        select_parameters(tiny_model("llama"), params=params, exclude=exclude, adapter=())
