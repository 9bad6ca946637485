"""Checkpoints are read by one process, layer by layer, and come to all of them as they are in their files."""

import numpy as np
import psutil
import pytest
import torch
from adapters import save_adapter
from peft import LoraConfig
from safetensors.torch import load_file
from spawned import on_ranks
from spawned_loading import loading, write_rows
from tiny import tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

TARGETS = ["q_proj", "v_proj"]
MODELS = {
    "warm": {"model.id": "./qwen3"},
    "deep": {"model.id": "./deep"},
    "tied": {"model.id": "./qwen3", "model.dtype": "float64"},
    "narrow": {"model.id": "./narrow", "model.dtype": "auto"},
    "pickled": {"model.id": "./pickled", "model.allow_pickle": True},
    "experts": {"model.id": "./mixtral"},
    "experts copied": {"model.id": "./mixtral", "model.offload_dir": "copies"},
    "adapter": {"model.id": "./lora", "operator.params": ["**"]},
    "made from its base": {"model.id": "./pissa", "operator.params": ["**"]},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(what each of two ranks found, where the files lie)."""
    place = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    wide = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "vocab_size": 19}
    LlamaForCausalLM(LlamaConfig(**wide, num_hidden_layers=14)).save_pretrained(place / "deep")
    for name in ("qwen3", "mixtral"):
        tiny_model(name).save_pretrained(place / name)
    tiny_model("llama").bfloat16().save_pretrained(place / "narrow")
    pickled = tiny_model("llama")
    pickled.config.save_pretrained(place / "pickled")
    torch.save(pickled.state_dict(), place / "pickled" / "pytorch_model.bin")
    save_adapter(place / "lora", place / "qwen3", LoraConfig(r=2, target_modules=TARGETS))
    save_adapter(place / "pissa", place / "qwen3", LoraConfig(r=2, target_modules=TARGETS, init_lora_weights="pissa"))
    write_rows(place / "rows.jsonl")
    return on_ranks(2, loading, str(place), MODELS), place


@pytest.mark.skipif(not psutil.LINUX, reason="reads the peak of the resident set from /proc")
def test_no_process_holds_a_checkpoint_that_it_is_sent(found):
    both, place = found
    size = (place / "deep" / "model.safetensors").stat().st_size
    assert size > 48 << 20
    for rank in both:
        assert rank["deep"][0] < size  # half of it stays, and a layer at a time


@pytest.mark.parametrize("name", ["deep", "tied", "narrow"])
def test_weights_are_those_of_the_file(name, found):
    both, place = found
    (truth,) = (load_file(f) for f in (place / MODELS[name]["model.id"]).glob("*.safetensors"))
    weights = both[0][name][1]
    assert weights.keys() == truth.keys()
    for key, weight in weights.items():
        assert np.array_equal(weight, truth[key].double().numpy()), key


def test_a_pickled_checkpoint_is_sent_too(found):
    both, place = found
    truth = torch.load(place / "pickled" / "pytorch_model.bin")
    for key, weight in both[0]["pickled"][1].items():
        assert np.array_equal(weight, truth[key].double().numpy()), key


def test_experts_that_are_not_stored_as_they_are_used_come_with_and_without_a_copy(found):
    both, place = found
    truth = dict(tiny_model("mixtral").named_parameters())
    for name in ("experts", "experts copied"):
        weights = both[0][name][1]
        assert weights.keys() == truth.keys()
        for key, weight in weights.items():
            assert np.array_equal(weight, truth[key].detach().double().numpy()), key
    assert list((place / "copies").iterdir()) == []


@pytest.mark.parametrize("name", ["adapter", "made from its base"])
def test_an_adapter_and_its_base_come_as_they_are(name, found):
    both, place = found
    weights = both[0][name][1]
    base = load_file(place / "qwen3" / "model.safetensors")
    for key, truth in base.items():
        inside = next(one for one in (key, key.replace(".weight", ".base_layer.weight")) if one in weights)
        changed = name != "adapter" and inside != key  # what it stands beside loses the part that it began as
        assert np.array_equal(weights[inside], truth.double().numpy()) != changed, key
    (own,) = (load_file(f) for f in (place / MODELS[name]["model.id"]).glob("*.safetensors"))
    for key, truth in own.items():
        inside = key.removeprefix("base_model.model.").replace(".weight", ".adapter.weight")
        (weight,) = (w for n, w in weights.items() if _plain(n) == _plain(inside))
        assert np.array_equal(weight, truth.double().numpy()), key


def _plain(name):
    """A name without what PEFT calls the adapter."""
    return ".".join(part for part in name.split(".") if part not in ("adapter", "default", "hess"))
