"""Adapters whose base model stays in its files: the same loss, gradient and products as with all of it in memory."""

import copy

import pytest
import torch
from adapters import save_adapter
from live_bytes import LiveBytes
from loading import LOADING
from peft import IA3Config, LNTuningConfig, LoraConfig, get_peft_model
from tiny import deep_llama, flat, ragged_slice, risk_of, tiny_model

from hesscli.checkpoint import load_checkpoint
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.offloaded import Offloaded
from hesscli.errors import UsageError

QV = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
KINDS = {
    "lora": ("qwen3", LoraConfig(**QV, lora_dropout=0.5)),
    "rslora on every linear module": ("llama", LoraConfig(r=3, target_modules="all-linear", use_rslora=True)),
    "biases of the base": ("gpt2", LoraConfig(r=2, target_modules=["c_attn"], bias="all", fan_in_fan_out=True)),
    "embedding": ("qwen3", LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"])),
    "head and norms of its own": ("qwen3", LoraConfig(**QV, modules_to_save=["lm_head", "input_layernorm"])),
    "some tokens, of a tied head too": ("qwen3", LoraConfig(**QV, trainable_token_indices={"embed_tokens": [1, 3]})),
    "stacked experts": ("mixtral", LoraConfig(r=2, target_parameters=["mlp.experts.gate_up_proj"])),
    "layers that run twice": ("llama", LoraConfig(**QV, layer_replication=[[0, 2], [0, 2]])),
    "ia3": ("llama", IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "norms": ("llama", LNTuningConfig(target_modules=["input_layernorm", "norm"])),
}


@pytest.fixture
def saved(tmp_path):
    """The folder of an adapter of a kind."""

    def make(kind, **changes):
        name, config = copy.deepcopy(KINDS[kind])
        for key, value in changes.items():
            setattr(config, key, value)
        tiny_model(name).save_pretrained(tmp_path / "base")
        save_adapter(tmp_path / "adapter", tmp_path / "base", config, name=name)
        return tmp_path / "adapter"

    return make


def load(folder, device_map, offload_dir=None):
    return load_checkpoint(str(folder), **LOADING, device_map=device_map, offload_dir=offload_dir)


def chosen(checkpoint, everything):
    named = dict(checkpoint.model.named_parameters())
    return named if everything else {name: named[name] for name in checkpoint.adapter_parameters}


def fetched_risk(checkpoint, *, everything=False):
    named = chosen(checkpoint, everything)
    names, parameters = list(named), list(named.values())
    folder = checkpoint.offload_folder
    residence = Offloaded(checkpoint.model, checkpoint.reads, names=names, parameters=parameters, folder=folder)
    return LayeredRisk(
        checkpoint.model,
        list(ragged_slice().batches(2)),
        names=names,
        parameters=parameters,
        input_device=torch.device("cpu"),
        residence=residence,
    )


def relative(a, b):
    return float(((flat(a) - flat(b)) ** 2).sum() / (flat(b) ** 2).sum()) ** 0.5


@pytest.mark.parametrize("everything", [False, True], ids=["own", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_measured_is_what_is_measured_in_memory(saved, tmp_path, kind, everything):
    folder = saved(kind)
    resident, left = load(folder, None), load(folder, {"": "disk"}, str(tmp_path / "off"))
    assert left.adapter_parameters == resident.adapter_parameters
    assert left.identity == resident.identity
    named = dict(left.model.named_parameters())
    assert len(left.reads) >= 10
    assert all(named[name].untyped_storage().nbytes() == 4 and named[name].isnan().all() for name in left.reads)
    own = chosen(resident, everything)
    whole = risk_of(resident.model, ragged_slice(), 2, only=lambda name: name in own)
    fetched = fetched_risk(left, everything=everything)
    assert fetched.space.names == whole.space.names
    assert fetched.loss() == whole.loss()
    assert relative(fetched.gradient(), whole.gradient()) < 1e-6
    v = whole.space.random("gaussian", seed=0, index=0)
    truth = HessianOperator(whole, keep_graph=False).matvec(v)
    assert relative(choose_operator(fetched, kind="hessian", product="auto", seed=0).operator.matvec(v), truth) < 1e-6
    for middle in ("ggn", "fisher"):
        truth = choose_operator(whole, kind=middle, product="auto", seed=3).operator.matvec(v)
        assert relative(choose_operator(fetched, kind=middle, product="auto", seed=3).operator.matvec(v), truth) < 1e-6


def test_finite_differences_move_adapters_and_what_is_fetched(saved):
    folder = saved("lora")
    fetched = fetched_risk(load(folder, {"": "disk"}), everything=True)
    whole = risk_of(load(folder, None).model, ragged_slice(), 2)
    v = whole.space.random("gaussian", seed=0, index=0)
    found = choose_operator(fetched, kind="hessian", product="finite-difference", seed=0).operator.difference(v)
    assert relative(found.product, HessianOperator(whole, keep_graph=False).matvec(v)) < 3 * found.error


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_was_made_from_the_weights_is_refused_where_they_are_not_there(saved, start):
    folder = saved("lora", init_lora_weights=start)
    with pytest.raises(
        UsageError, match=r"device_map: 'adapter' needs .* in memory, which began as 'p?[io].*; map every"
    ):
        load(folder, {"": "disk"})


def held_by_a_product(folder, *, layers, everything):
    """Bytes above all weights that are in memory while a product runs, and the bytes of a layer of the base."""
    base = deep_llama(layers)
    base.save_pretrained(folder / f"base{layers}")
    size = sum(p.nbytes for p in base.model.layers[0].parameters())
    adapted = get_peft_model(base, LoraConfig(r=1, target_modules=["q_proj"], init_lora_weights="gaussian"))
    adapted.peft_config["default"].base_model_name_or_path = str(folder / f"base{layers}")
    adapted.save_pretrained(folder / f"lora{layers}")
    risk = fetched_risk(load(folder / f"lora{layers}", {"": "disk"}, str(folder)), everything=everything)
    operator, v = LayeredOperator(risk, risk.stack), risk.space.random("gaussian", seed=0, index=0)
    operator.matvec(v)
    with LiveBytes(risk.model.parameters()) as count:
        operator.matvec(v)
    return count.peak, size


@pytest.mark.parametrize("everything", [False, True], ids=["own", "all"])
def test_what_a_product_holds_does_not_grow_with_the_layers_of_the_base(tmp_path, everything):
    few, layer = held_by_a_product(tmp_path, layers=2, everything=everything)
    many, _ = held_by_a_product(tmp_path, layers=8, everything=everything)
    assert many - few < 0.5 * layer
