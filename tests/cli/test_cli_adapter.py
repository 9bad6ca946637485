"""An adapter's folder from the command line: measured on its own parameters as the dense matrix is, and planned."""

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from adapted import KINDS, Dense
from adapters import save_adapter
from loading import LOADING
from tiny import tiny_model

from hesscli.checkpoint import load_checkpoint

DATA = ["-d", "rows.jsonl", "--plots", "none", "--seed", "1", "--json"]


@pytest.fixture
def adapter(hess, checkpoint):
    """The dense Hessian over an adapter of a kind, by the names of its parameters; the adapter is in `lora`."""

    def make(kind):
        save_adapter("lora", "./qwen3", copy.deepcopy(KINDS[kind]))
        loaded = load_checkpoint("lora", **LOADING, device_map=None, offload_dir=None)
        named = dict(loaded.model.named_parameters())
        own = {name: named[name].detach() for name in loaded.adapter_parameters}
        return own, Dense(kind, own).hessian.numpy()

    return make


def measured(hess, *words):
    ended = hess(*words, *DATA)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def assert_near(metric, truth):
    """Within four standard errors, and the standard error is no excuse for any value."""
    assert abs(metric["value"] - truth) < 4 * metric["stderr"]
    assert metric["stderr"] < 0.2 * abs(truth)


def test_what_is_measured_is_the_dense_hessian_over_the_adapter(hess, adapter):
    _, dense = adapter("single tokens")
    values = np.linalg.eigvalsh(dense)
    top = measured(hess, "topk", "lora", "--k", "2", "--which", "largest")
    assert [pair["value"] for pair in top["eigenpairs"]] == pytest.approx(values[:-3:-1], rel=1e-3)
    assert top["model"]["num_selected"] == len(values)
    assert top["model"]["id"] == "lora"
    assert top["model"]["base"] == "qwen3"
    files = ("lora/adapter_model.safetensors", "qwen3/model.safetensors")
    both = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
    assert top["model"]["weights_sha256"] == both
    assert top["operator"]["preflight"]["known_answer"] < 1e-4
    assert_near(measured(hess, "trace", "lora", "--probes", "8", "--steps", "10")["metrics"]["trace"], values.sum())
    density = measured(hess, "density", "lora", "--probes", "2", "--steps", "30")["metrics"]
    assert density["lambda_max"]["value"] == pytest.approx(values[-1], rel=1e-3)


@pytest.mark.parametrize(("by", "part"), [("module", ".lora_"), ("layer", ".self_attn")])
def test_blocks_of_an_adapter_are_those_of_the_dense_hessian(hess, adapter, by, part):
    own, dense = adapter("queries and values")
    report = measured(hess, "blockdiag", "lora", "--by", by, "--probes", "16", "--top", "0")
    places = np.concatenate([np.full(p.numel(), i) for i, p in enumerate(own.values())])
    names = [name.removesuffix(".weight") if by == "module" else name.split(part)[0] for name in own]
    assert [block["name"] for block in report["blocks"]] == list(dict.fromkeys(names))
    outside = (dense**2).sum()
    for block in report["blocks"]:
        chosen = np.isin(places, [i for i, name in enumerate(names) if name == block["name"]])
        assert block["num_parameters"] == chosen.sum()
        outside -= (dense[np.ix_(chosen, chosen)] ** 2).sum()
    assert_near(report["metrics"]["off_block_fraction"], outside / (dense**2).sum())


def test_the_base_is_named_where_people_look(hess, adapter):
    adapter("of rank one")
    ended = hess("trace", "lora", "-d", "rows.jsonl", "--plots", "none", "--probes", "2", "--steps", "2")
    assert ended.out.startswith("lora on qwen3  Qwen3ForCausalLM\n")


def test_an_adapter_is_planned_without_its_weights_or_those_of_its_base(hess, adapter, checkpoint):
    own, _ = adapter("single tokens")
    for file in ("lora/adapter_model.safetensors", "qwen3/model.safetensors"):
        (checkpoint.parent / file).unlink()
    small = ("--devices", "1GiB", "-L", 4, "--max-length", 24, "--json")
    plans = [json.loads(hess("plan", "lora", *small, "--params", params).out) for params in ("*", "**")]
    size = sum(part.numel() for part in own.values())
    base = sum(p.numel() for p in tiny_model("qwen3").parameters())
    assert [plan["model"]["num_selected"] for plan in plans] == [size, base + size]
    assert {plan["model"]["num_parameters"] for plan in plans} == {base + size}
    assert sum(block["num_parameters"] for block in plans[0]["blocks"]) == size
    product = {way["product"]: way["product_bytes"] for way in plans[0]["ways"] if way["fits"]}
    assert 0 < product["layered"] < 1 << 20
