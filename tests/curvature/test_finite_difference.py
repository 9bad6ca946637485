"""Differences of gradients: as near to the Hessian as they say, and the weights are never touched."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tiny import VOCAB, dense_hessian, flat, ragged_slice, risk_of, tiny_model, unflat
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, OPTForCausalLM

from hesscli.curvature.choice import choose_operator, choose_product
from hesscli.curvature.differences.displaced import DisplacedGradient
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.differences.kinks import find_kinks
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data import IGNORED, Sequence, Slice
from hesscli.demo import checkpoint_folder, slice_file
from hesscli.errors import UsageError
from hesscli.linalg.krylov.lanczos import LanczosState

GOAL = {"central": 1e-3, "forward": 1e-2}


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def random(space, index=0):
    return space.random("gaussian", seed=0, index=index)


def operator_of(name="llama", scheme="central", model=None):
    risk = risk_of(model or tiny_model(name), ragged_slice(), 3)
    return FiniteDifferenceOperator(risk, scheme=scheme)


@cache
def extreme_vectors(name):
    """A few random vectors and the eigenvectors at both ends of the dense Hessian, float64."""
    dense = dense_hessian(name)
    _, vectors = np.linalg.eigh((dense + dense.T) / 2)
    rng = np.random.default_rng(0)
    return [*rng.standard_normal((2, len(dense))), *vectors.T[[-1, -2, 0]]]


@pytest.mark.parametrize("scheme", GOAL)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_product_is_the_dense_hessian_times_the_vector_within_what_it_says(name, scheme):
    operator, dense = operator_of(name, scheme), dense_hessian(name)
    for v in extreme_vectors(name):
        found = operator.difference(unflat(v, operator.space))
        error = relative(flat(found.product), dense @ v)
        assert error <= GOAL[scheme]
        assert error <= 3 * found.error
        assert scheme == "forward" or found.error <= 3 * error + 1e-5  # the dense Hessian is in float32 too


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "olmo2", "mixtral"])
def test_a_product_is_as_good_on_other_architectures(name):
    operator = operator_of(name)
    v = random(operator.space)
    truth = HessianOperator(operator.risk, keep_graph=False).matvec(v)
    found = operator.difference(v)
    error = relative(flat(found.product), flat(truth))
    assert error <= 1e-3
    assert error / 3 <= found.error <= 3 * error


def test_in_float64_the_error_falls_to_what_float64_allows():
    operator = operator_of(model=tiny_model("gpt2").double())
    exact = HessianOperator(operator.risk, keep_graph=False)
    v = random(operator.space)
    found = operator.difference(v)
    error = relative(flat(found.product), flat(exact.matvec(v)))
    assert error <= 1e-8
    assert error / 3 <= found.error <= 3 * error


def test_selected_parameters_give_the_diagonal_block():
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 2, only=lambda n: ".mlp." in n)
    v = random(risk.space)
    truth = HessianOperator(risk, keep_graph=False).matvec(v)
    assert relative(flat(FiniteDifferenceOperator(risk, scheme="central").matvec(v)), flat(truth)) <= 1e-3


@pytest.mark.parametrize("scheme", GOAL)
def test_a_longer_vector_gives_a_longer_product(scheme):
    operator = operator_of("llama", scheme)
    v = random(operator.space)
    product = flat(operator.matvec(v))
    assert np.array_equal(flat(operator.matvec([1024 * part for part in v])), 1024 * product)
    assert np.array_equal(flat(operator.matvec([2.0**-20 * part for part in v])), 2.0**-20 * product)
    assert relative(flat(operator.matvec([-3 * part for part in v])), -3 * product) < GOAL[scheme]


def test_zeros_give_zeros_and_no_gradient_is_taken(monkeypatch):
    operator = operator_of()
    monkeypatch.setattr(EmpiricalRisk, "terms", lambda *_: pytest.fail("a gradient was taken"))
    assert not any(part.any() for part in operator.matvec(operator.space.zeros()))


@pytest.mark.parametrize("scheme", GOAL)
def test_along_a_weight_that_the_loss_does_not_reach_the_product_is_zero(scheme):
    model = tiny_model("gpt2")
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    operator = operator_of(scheme=scheme, model=model)
    operator.matvec(random(operator.space))
    before = operator.error_estimate
    v = operator.space.restrict(random(operator.space), {operator.space.names.index("unused")})
    assert not flat(operator.matvec(v)).any()
    assert operator.error_estimate == before
    assert operator.warnings(noise=operator.relative_error) == []


@pytest.mark.parametrize("scheme", GOAL)
def test_a_loss_that_does_not_change_at_all_gives_zeros(scheme):
    model = tiny_model("gpt2")
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
    forward = model.transformer.ln_f.forward
    model.transformer.ln_f.forward = lambda h: forward(h) + 0.0 * model.idle.sum()
    operator = FiniteDifferenceOperator(risk_of(model, ragged_slice(), 3, lambda n: n == "idle"), scheme=scheme)
    assert not flat(operator.matvec(random(operator.space))).any()
    assert operator.error_estimate == 0.0


@pytest.mark.parametrize("failure", [KeyboardInterrupt, torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("calls", [1, 4, 30])
def test_weights_are_the_same_bit_for_bit_after_a_failure(monkeypatch, failure, calls):
    operator = operator_of()
    model, terms, left = operator.risk.model, EmpiricalRisk.terms, [calls]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    versions = [p._version for p in model.parameters()]
    fused = torch.backends.cuda.cudnn_sdp_enabled()

    def failing(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise failure
        return terms(*arguments)

    monkeypatch.setattr(EmpiricalRisk, "terms", failing)
    with pytest.raises(failure):
        operator.matvecs([random(operator.space, i) for i in range(20)])
    assert left[0] == -1
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [p._version for p in model.parameters()] == versions
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.backends.cuda.cudnn_sdp_enabled() == fused
    monkeypatch.undo()
    v = random(operator.space)
    assert relative(flat(operator.matvec(v)), dense_hessian("llama") @ flat(v)) < 1e-3


def test_bfloat16_weights_are_moved_in_a_float32_copy():
    model = tiny_model("llama").bfloat16()
    for only in (None, lambda n: "layers.1" in n):
        risk = risk_of(model, ragged_slice(), 3, only)
        truth = HessianOperator(
            risk_of(tiny_model("llama").bfloat16().float(), ragged_slice(), 3, only), keep_graph=False
        )
        v = random(risk.space)
        found = FiniteDifferenceOperator(risk, scheme="central").difference(v)
        error = relative(flat(found.product), flat(truth.matvec(v)))
        assert error <= 1e-3
        assert error <= 3 * found.error
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_weight_that_was_changed_is_seen():
    operator = operator_of("gpt2")
    v = random(operator.space)
    operator.matvec(v)
    with torch.no_grad():
        for p in operator.risk.parameters:
            p.mul_(1.1)
    truth = HessianOperator(operator.risk, keep_graph=False).matvec(v)
    assert relative(flat(operator.matvec(v)), flat(truth)) < 1e-3


def test_a_weight_without_data_is_refused_by_name():
    model = tiny_model("llama")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().to("meta"))
    with pytest.raises(UsageError, match=r"'lm_head\.weight' is not in memory"):
        operator_of(model=model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value):
    operator = operator_of()
    v = random(operator.space)
    v[0].view(-1)[0] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        operator.matvec(v)
    with torch.no_grad():
        operator.risk.parameters[-1].view(-1)[0] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        operator.matvec(random(operator.space))


class Called(TorchDispatchMode):
    """The names of operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function._schema.name)
        return function(*args, **(kwargs or {}))


def test_fused_attention_is_used_and_right():
    operator = operator_of(model=tiny_model("llama", attention="sdpa"))
    v = random(operator.space)
    with Called() as called:
        product = operator.matvec(v)
    assert any("_flash_attention" in name and name.endswith("_backward") for name in called.names)
    assert relative(flat(product), dense_hessian("llama") @ flat(v)) < 1e-3


def rows_of(ids):
    rows = [Sequence({"input_ids": row}, torch.cat([row[1:], torch.tensor([IGNORED])])) for row in ids]
    return Slice(tuple(rows), id="rows")


def opt(activation):
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        activation_function=activation,
        init_std=0.3,
        pad_token_id=0,
    )
    model = OPTForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCAB, (8, 48), generator=generator)
    return risk_of(model, rows_of(ids), 8)


@pytest.mark.parametrize(("activation", "codes"), [("relu", ["not-smooth"]), ("gelu", [])])
def test_kinks_show_in_the_numbers(activation, codes):
    operator = FiniteDifferenceOperator(opt(activation), scheme="central")
    operator.matvecs([random(operator.space, i) for i in range(3)])
    assert [w.code for w in operator.warnings(noise=operator.relative_error)] == codes


def test_an_error_beyond_what_intervals_allow_for_is_said():
    operator = operator_of()
    operator.matvec(random(operator.space))
    assert operator.warnings(noise=operator.relative_error) == []
    (warning,) = operator.warnings(noise=operator.error_estimate / 10)
    assert warning.code == "difference-error"
    assert "exact product" in warning.text


def test_kinks_are_found_by_module_and_by_config():
    assert [w.code for w in find_kinks(opt("relu").model)] == ["kinks"]
    assert "ReLU" in find_kinks(opt("relu").model)[0].text
    assert find_kinks(opt("gelu").model) == []
    called_without_a_module = opt("gelu").model
    called_without_a_module.config.activation_function = "relu"
    assert [w.code for w in find_kinks(called_without_a_module)] == ["kinks"]
    assert [w.code for w in find_kinks(tiny_model("mixtral"))] == ["routing"]
    assert find_kinks(tiny_model("llama")) == []
    assert [w.code for w in find_kinks(torch.nn.Sequential(torch.nn.LeakyReLU()))] == ["kinks"]


class Once(torch.autograd.Function):
    """The identity, with a backward that has no derivative; torch says so only where all of a graph is followed."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g.clone()


def mixed(h):
    """Attention by a kernel whose backward has no derivative."""
    h = h.unsqueeze(1)
    return (h + torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(h, h, h)[0]).squeeze(1)


def mixed_from_primitives(h):
    return h + torch.softmax(h @ h.mT / h.shape[-1] ** 0.5, dim=-1) @ h


def with_norm_behind(function):
    model = tiny_model("llama")
    forward = model.model.norm.forward
    model.model.norm.forward = lambda h: function(forward(h))
    return risk_of(model, ragged_slice(), 3)


@pytest.mark.parametrize(
    ("function", "twin", "reason"),
    [(mixed, mixed_from_primitives, "derivative for aten::"), (Once.apply, torch.clone, "once_differentiable")],
)
def test_auto_takes_differences_only_where_nothing_is_exact(function, twin, reason):
    assert choose_product(with_norm_behind(twin), product="auto").product == "double-backward"
    choice = choose_product(with_norm_behind(function), product="auto")
    assert choice.product == "finite-difference"
    assert "last resort" in choice.why
    assert reason in choice.why
    v = random(choice.operator.space)
    truth = HessianOperator(with_norm_behind(twin), keep_graph=False).matvec(v)
    assert relative(flat(choice.operator.matvec(v)), flat(truth)) < 1e-3


def test_an_exact_product_that_was_asked_for_is_not_replaced():
    with pytest.raises(RuntimeError, match="derivative for aten::"):
        choose_product(with_norm_behind(mixed), product="double-backward")


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical-fisher"])
def test_it_is_for_the_hessian_alone(kind):
    risk = risk_of(tiny_model("llama"), ragged_slice(), 3)
    assert choose_operator(risk, kind="hessian", product="finite-difference", seed=0).product == "finite-difference"
    with pytest.raises(UsageError, match="is for the Hessian"):
        choose_operator(risk, kind=kind, product="finite-difference", seed=0)


@pytest.fixture(scope="module")
def demo():
    """The embedded checkpoint's risk on two rows, and vectors of every kind with their exact products, by name."""
    folder = checkpoint_folder("final")
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    lines = slice_file().read_text(encoding="utf-8").splitlines()
    tokens = [t for line in lines for t in tokenizer(json.loads(line)["text"])["input_ids"]]
    ids = torch.tensor(tokens[:256]).view(2, 128)
    risk = risk_of(model, rows_of(ids), 2)
    exact = HessianOperator(risk, keep_graph=True)
    state = LanczosState.start(risk.space, random(risk.space), reorthogonalise=True)
    while state.num_matvecs < 25:
        state.expand(exact)
    ritz = state.ritz()
    assert (ritz.residual_norms[[-1, -2, 0]] < 1e-2 * np.abs(ritz.values[[-1, -2, 0]])).all()
    top, second, lowest = state.basis.combine(ritz.vectors[:, [-1, -2, 0]])
    vectors = {"random": random(risk.space, 1), "signs": risk.space.random("rademacher", seed=0, index=2)}
    vectors |= {"top": top, "second": second, "lowest": lowest, "krylov": state.basis.vector(8)}
    return risk, {name: (v, flat(exact.matvec(v))) for name, v in vectors.items()}


def test_central_differences_on_a_trained_model(demo):
    risk, vectors = demo
    operator, worst = FiniteDifferenceOperator(risk, scheme="central"), 0.0
    for name, (v, truth) in vectors.items():
        found = operator.difference(v)
        error = relative(flat(found.product), truth)
        assert error <= 1e-3, name
        assert error / 3 <= found.error <= 3 * error, name
        worst = max(worst, error)
    assert worst / 3 <= operator.error_estimate <= 3 * worst
    assert operator.steps[1] > 50 * operator.steps[0]


@pytest.mark.parametrize("scheme", GOAL)
def test_a_product_does_not_depend_on_the_vectors_before_it(demo, scheme):
    risk, vectors = demo
    random, top = vectors["random"][0], vectors["top"][0]
    operator, other = (FiniteDifferenceOperator(risk, scheme=scheme) for _ in range(2))
    alone = operator.difference(random)
    first = other.difference(top)
    after = other.difference(random)
    assert after.step == alone.step > 10 * first.step
    assert np.array_equal(flat(after.product), flat(alone.product))


@pytest.mark.parametrize("wrong", [1e-2, 1e2])
def test_a_step_that_proves_too_long_or_too_short_is_made_again(demo, wrong):
    risk, vectors = demo
    operator = FiniteDifferenceOperator(risk, scheme="central")
    v, truth = vectors["top"]
    right = operator.difference(v).step
    operator._calibration = replace(operator._calibration, bending=wrong * operator._calibration.bending)
    found = operator.difference(v)
    assert 1 / 6 <= found.step / right <= 6
    assert relative(flat(found.product), truth) <= 1e-3


def test_forward_differences_on_a_trained_model(demo):
    risk, vectors = demo
    operator = FiniteDifferenceOperator(risk, scheme="forward")
    for name in ("random", "signs", "top", "second", "krylov"):
        v, truth = vectors[name]
        assert relative(flat(operator.matvec(v)), truth) <= 1e-2, name


def test_a_fixed_step_is_wrong_for_one_vector_or_the_other(demo):
    risk, vectors = demo
    gradient = DisplacedGradient(risk)
    for step in (1e-1, 1e-2, 1e-3):
        worst = 0.0
        for name in ("random", "top"):
            v, truth = vectors[name]
            alpha = step / risk.space.norm(v)
            ahead, behind = (flat(gradient.change(v, sign * alpha)) for sign in (1, -1))
            worst = max(worst, relative((ahead - behind) / (2 * alpha), truth))
        assert worst >= 3e-3  # three times what a step of its own gives at the worst
