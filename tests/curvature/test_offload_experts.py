"""Experts that are fetched a portion at a time: products are double backward's, and no more than a portion is held."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from tiny import CONFIGS, VOCAB, flat, ragged_slice, risk_of, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, DeepseekV3Config, GptOssConfig

from hesscli.checkpoint.stored import stored_weight
from hesscli.checkpoint.weights import stored_tensors
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers import offloaded
from hesscli.curvature.layers.divided import Divided, divided_in, parts_of
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.offloaded import Offloaded
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.run.planning.counting.elsewhere import fetched_set

SMALL = {"vocab_size": VOCAB, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


class Mixture(nn.Module):
    """Experts as a list of modules, as remote code has them: one call for each that a token goes to."""

    def __init__(self, count=3, width=8):
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(width, 6), nn.Tanh()) for _ in range(count)])
        self.out = nn.Linear(6, width, bias=False)

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        shares, chosen = self.router(tokens).softmax(dim=-1).topk(2)
        total = tokens.new_zeros((len(tokens), 6))
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            if len(row):
                total = total.index_add(0, row, expert(tokens[row]) * shares[row, place, None])
        return self.out(total).view_as(x)


def model_of(kind):
    torch.manual_seed(5)
    if kind == "list of modules":
        model = tiny_model("llama")
        for layer in model.model.layers:
            layer.mlp = Mixture()
        return model
    if kind == "stacked":
        return tiny_model("mixtral")
    config = DeepseekV3Config(
        **SMALL, intermediate_size=8, moe_intermediate_size=6, n_routed_experts=5, n_shared_experts=1, n_group=1,
        topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, q_lora_rank=4, kv_lora_rank=4,
        qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    given = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return AutoModelForCausalLM.from_config(config, **given).float().eval()


@pytest.fixture
def risks(monkeypatch):
    """Of a kind the risk in memory, and that of the same whose layers are fetched and experts come in portions."""

    def make(kind, only=lambda name: True, *, batch_size=2, portion=1600):
        monkeypatch.setattr(offloaded, "_WHOLE", 0)
        monkeypatch.setattr(offloaded, "_PORTION", portion)
        model = model_of(kind)
        away = copy.deepcopy(model)
        reads = {}
        for name, p in away.named_parameters():
            if ".layers." in name:
                reads[name] = p.detach().clone().clone
                p.data = torch.full((1,), torch.nan).expand(p.shape)
        named = {name: p for name, p in away.named_parameters() if only(name)}
        given = {"names": list(named), "parameters": list(named.values())}
        residence = Offloaded(away, reads, **given, folder=None)
        batches = list(ragged_slice().batches(batch_size))
        fetched = LayeredRisk(away, batches, **given, input_device=torch.device("cpu"), residence=residence)
        return risk_of(model, ragged_slice(), batch_size, only), fetched

    return make


def relative(a, b):
    return float(((flat(a) - flat(b)) ** 2).sum() / (flat(b) ** 2).sum()) ** 0.5


KINDS = {"stacked": 2, "beside an expert for all": 3, "list of modules": 3}  # and portions of a layer


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_experts_in_portions_are_double_backwards(risks, kind):
    whole, fetched = risks(kind)
    divided = [d for layer in fetched.residence._layers for d in divided_in(layer).values()]
    assert sum(len(d._portions) for d in divided) == (1 if "beside" in kind else 2) * KINDS[kind]
    assert fetched.loss().value == pytest.approx(whole.loss().value, rel=1e-6)
    assert relative(fetched.gradient(), whole.gradient()) < 1e-6
    vs = [whole.space.random("gaussian", seed=0, index=i) for i in range(2)]
    # The first moves all; others the experts alone, all but them, and one matrix of them.
    inside = [i for i, name in enumerate(whole.space.names) if "experts" in name and "shared" not in name]
    vs += [whole.space.restrict(vs[0], some) for some in (inside, [i for i in range(len(vs[0])) if i not in inside])]
    vs.append(whole.space.restrict(vs[1], inside[:1]))
    truth = HessianOperator(whole, keep_graph=False).matvecs(vs)
    for forward_mode in (True, False):
        operator = LayeredOperator(fetched, fetched.stack, forward_mode=forward_mode)
        for product, exact in zip(operator.matvecs(vs), truth, strict=True):
            assert relative(product, exact) < 1e-6


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical-fisher"])
def test_gauss_newton_products_of_experts_in_portions_are_those_in_memory(risks, kind):
    whole, fetched = risks("stacked")
    v = whole.space.random("gaussian", seed=0, index=0)
    found, truth = (choose_operator(r, kind=kind, product="auto", seed=3).operator.matvec(v) for r in (fetched, whole))
    assert relative(found, truth) < 1e-6


@pytest.mark.parametrize("only", ["gate_up_proj", "self_attn", "embed_tokens"])
def test_frozen_experts_have_no_part_in_products(risks, only):
    whole, fetched = risks("stacked", lambda name: only in name)
    v = whole.space.random("gaussian", seed=0, index=0)
    truth = HessianOperator(whole, keep_graph=False).matvec(v)
    assert relative(LayeredOperator(fetched, fetched.stack).matvec(v), truth) < 1e-6


def test_differences_and_steps_along_a_line_move_experts_in_portions(risks):
    whole, fetched = risks("stacked")
    v = whole.space.random("gaussian", seed=0, index=0)
    assert fetched.loss_along(v, 1e-2) == pytest.approx(whole.loss_along(v, 1e-2), rel=1e-6)
    found = choose_operator(fetched, kind="hessian", product="finite-difference", seed=0).operator.difference(v)
    assert relative(found.product, HessianOperator(whole, keep_graph=False).matvec(v)) < 3 * found.error


def test_a_portion_computes_with_its_own_weights_alone(risks):
    _, fetched = risks("stacked", portion=1)  # one expert each
    v, held = fetched.space.random("gaussian", seed=0, index=0), []
    operator = LayeredOperator(fetched, fetched.stack)
    operator.matvec(v)
    one = next(d for layer in fetched.residence._layers for d in divided_in(layer).values())
    run = one._run

    def watched(portion, call, values, weights):
        held.append([w.shape[0] for w in weights.values()])
        return run(portion, call, values, weights)

    one._run = watched
    operator.matvec(v)
    assert held
    assert all(rows == [1, 1] for rows in held)


def test_a_module_that_does_not_pass_over_others_is_left_whole():
    config = GptOssConfig(**SMALL, intermediate_size=8, num_key_value_heads=1, head_dim=4, num_local_experts=4)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    assert parts_of(model.model.layers[0], most=1) == {}
    assert list(parts_of(model_of("stacked").model.layers[0], most=1)) == ["mlp.experts"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_weight_are_read_from_its_file(tmp_path, dtype):
    weights = {"before": torch.randn(5), "stacked": torch.randn(4, 3, 2).to(dtype)}
    save_file(weights, tmp_path / "w.safetensors")
    entry = stored_tensors(tmp_path / "w.safetensors")["stacked"]
    found = stored_weight(tmp_path / "w.safetensors", entry, dtype=torch.float32)
    assert torch.equal(found.read_rows(slice(1, 3)), weights["stacked"][1:3].float())
    assert torch.equal(found.read(), weights["stacked"].float())


def test_small_layers_are_fetched_whole():
    model = model_of("stacked")
    reads = {name: p.detach().clone for name, p in model.named_parameters() if ".layers." in name}
    named = dict(model.named_parameters())
    Offloaded(model, reads, names=list(named), parameters=list(named.values()), folder=None)
    assert not any(isinstance(m.__dict__.get("forward"), Divided) for m in model.modules())


def test_a_plan_counts_one_portion_of_experts(risks):
    config = CONFIGS["mixtral"]()
    config.num_local_experts, config.intermediate_size = 32, 64
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    risk = risk_of(bare.eval(), ragged_slice(), 1)
    shadow = EmpiricalRisk(bare, risk.batches, names=risk.space.names, parameters=risk.parameters,
                           input_device=torch.device("meta"))  # fmt: skip
    given = {"num_experts": 32, "kinds": {"layered"}, "vectors": 1, "in_files": True}
    layer = sum(p.nbytes for p in bare.model.layers[0].parameters())
    whole = fetched_set(shadow, **given)["layered", 1]
    risks("stacked", portion=layer // 16)  # which sets what is large
    portions = fetched_set(shadow, **given)["layered", 1]
    assert whole.total > 5 * layer
    assert 0.3 * layer < portions.total < layer
