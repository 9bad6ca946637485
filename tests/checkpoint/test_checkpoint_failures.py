# ruff: noqa: E501 - one case, one row
"""Every way that loading fails is one line that says what to do, with its exit code."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hesscli.errors import HessError

WEIGHTS = "model.safetensors"


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def cut(folder, keep):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])


def only(folder, *names):
    for file in folder.iterdir():
        if file.name not in names:
            file.unlink()
    for name in names:
        (folder / name).touch()


def pickled(folder, state):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(state))


def poison(value):
    def change(tensors):
        tensors["model.norm.weight"][3] = value

    return change


def drop(name):
    return lambda tensors: tensors.pop(name)


def store(name, dtype):
    def change(tensors):
        tensors[name] = tensors[name].to(dtype)

    return change


def header(text):
    body = text.encode()
    return struct.pack("<Q", len(body)) + body


def edit_index(folder, change):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))


def rename_in_index(new):
    def change(index):
        index["weight_map"] = dict.fromkeys(index["weight_map"], new)

    return change


class RunsCode:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


# what is done to a sound checkpoint; the checkpoint; words of the line, in order
DAMAGED = {
    "config.json missing": (lambda f: (f / "config.json").unlink(), "plain", ("model", "holds weights but no config.json", "save_pretrained")),
    "config.json not JSON": (lambda f: (f / "config.json").write_text("{model_type"), "plain", ("model", "config.json of 'plain' is not JSON", "again")),
    "config.json a list": (lambda f: (f / "config.json").write_text("[]"), "plain", ("model", "not a JSON object", "again")),
    "config.json not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "plain", ("model", "is not JSON", "again")),
    "model_type missing": (lambda f: (f / "config.json").write_text("{}"), "plain", ("model", "names no model_type", "save_pretrained")),
    "model_type unknown": (lambda f: edit_config(f, model_type="lllama"), "plain", ("model", "transformers 5.", "does not know the architecture 'lllama'", "upgrade transformers")),
    "own code": (lambda f: edit_config(f, model_type="own", auto_map={"AutoModelForCausalLM": "m.M"}), "plain", ("model", "needs its own code", "--trust-remote-code")),
    "config invalid": (lambda f: edit_config(f, hidden_size="wide"), "plain", ("model", "config.json of 'plain' is not a valid config for 'llama'", "mend it")),
    "weights in another file": (lambda f: edit_config(f, transformers_weights="a.safetensors"), "plain", ("weights", "'a.safetensors'", "save_pretrained")),
    "config of another size": (lambda f: edit_config(f, intermediate_size=48), "plain", ("weights", "6 weights of 'plain' of another shape", "(16, 32) in the file and (16, 48) by config.json", "config.json that was saved")),
    "one layer more": (lambda f: edit_config(f, num_hidden_layers=3), "plain", ("weights", "lacks 9 weights (model.layers.2.", "and 6 more", "random numbers", "whole checkpoint")),
    "a weight left out": (lambda f: edit_tensors(f, drop("lm_head.weight")), "plain", ("weights", "lacks 1 weight (lm_head.weight)", "random numbers", "whole checkpoint")),
    "ties broken": (lambda f: edit_config(f, tie_word_embeddings=True), "plain", ("weights", "ties lm_head.weight to model.embed_tokens.weight", "tie_word_embeddings")),
    "NaN": (lambda f: edit_tensors(f, poison(float("nan"))), "plain", ("weights", "1 weight (model.norm.weight) of 'plain' with NaN or Inf", "use")),
    "Inf": (lambda f: edit_tensors(f, poison(float("-inf"))), "plain", ("weights", "1 weight (model.norm.weight) of 'plain' with NaN or Inf", "use")),
    "bitsandbytes": (lambda f: edit_config(f, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), "plain", ("weights", "quantised (bitsandbytes 4bit)", "no exact curvature", "unquantised")),
    "gptq inside": (lambda f: edit_config(f, text_config={"quantization_config": {"quant_method": "gptq", "bits": 8}}), "plain", ("weights", "quantised (gptq 8bit)", "unquantised")),
    "fp8 weights": (lambda f: edit_tensors(f, store("lm_head.weight", torch.float8_e4m3fn)), "plain", ("weights", "quantised: lm_head.weight is stored as F8_E4M3", "unquantised")),
    "int8 weights": (lambda f: edit_tensors(f, store("lm_head.weight", torch.int8)), "plain", ("weights", "quantised: lm_head.weight is stored as I8", "unquantised")),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "plain", ("weights", "holds no weights: no model.safetensors", "save_pretrained")),
    "nothing": (lambda f: only(f), "plain", ("model", "holds no checkpoint", "hub id or demo")),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "plain", ("weights", "model.safetensors of 'plain' is empty", "again")),
    "cut in the data": (lambda f: cut(f, -100), "plain", ("weights", "is cut off", "where its header promises", "again")),
    "cut in the header": (lambda f: cut(f, 60), "plain", ("weights", "cut off inside its header: 60 bytes", "again")),
    "cut in the length": (lambda f: cut(f, 5), "plain", ("weights", "not a safetensors file", "again")),
    "bytes appended": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"xx"), "plain", ("weights", "2 bytes more than its header promises", "again")),
    "header not JSON": (lambda f: (f / WEIGHTS).write_bytes(header("not json at all")), "plain", ("weights", "its header is not JSON", "again")),
    "header without tensors": (lambda f: (f / WEIGHTS).write_bytes(header("{}")), "plain", ("weights", "lists no tensors", "again")),
    "header without shapes": (lambda f: (f / WEIGHTS).write_bytes(header('{"a": {"dtype": "F32"}}')), "plain", ("weights", "no shape, type or place for a", "again")),
    "a web page": (lambda f: (f / WEIGHTS).write_text("<!doctype html><title>404</title>"), "plain", ("weights", "no header length", "again")),
    "git-lfs pointer": (lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid x\n"), "plain", ("weights", "git-lfs pointer", "git lfs pull")),
    "index not JSON": (lambda f: (f / "model.safetensors.index.json").write_text("{"), "sharded", ("weights", "not an index of shards", "again")),
    "index without a map": (lambda f: edit_index(f, lambda index: index.pop("weight_map")), "sharded", ("weights", "not an index of shards", "again")),
    "index names a missing shard": (lambda f: edit_index(f, rename_in_index("model-9.safetensors")), "sharded", ("weights", "model-9.safetensors of 'sharded' is missing", "index.json names it", "again")),
    "index leaves its folder": (lambda f: edit_index(f, rename_in_index("../model.safetensors")), "sharded", ("weights", "outside its folder", "again")),
    "shard missing": (lambda f: sorted(f.glob("model-*"))[1].unlink(), "sharded", ("weights", "is missing, though", "again")),
    "shard cut": (lambda f: sorted(f.glob("model-*"))[1].write_bytes(b"\x10"), "sharded", ("weights", "not a safetensors file", "again")),
    "pickle": (lambda f: pickled(f, {}), "plain", ("weights", "holds only pytorch_model.bin, a pickle", "--allow-pickle")),
    "GGUF": (lambda f: only(f, "config.json", "model.Q4_K_M.gguf"), "plain", ("weights", "GGUF weights only", "safetensors")),
    "GGUF without config": (lambda f: only(f, "model.gguf"), "plain", ("weights", "GGUF weights only", "safetensors")),
    "tensorflow": (lambda f: only(f, "config.json", "tf_model.h5"), "plain", ("weights", "only tf_model.h5", "save_pretrained")),
    "adapter beside a model": (lambda f: (f / "adapter_config.json").write_text("{}"), "plain", ("model", "holds an adapter", "merge")),
    "distributed shards": (lambda f: (f / "shard-00001-model-00001-of-00001.safetensors").touch(), "plain", ("weights", "distributed checkpoint", "save_pretrained")),
}  # fmt: skip


def assert_line(caught, code, words):
    line = str(caught.value)
    assert caught.value.exit_code == code, line
    assert "\n" not in line
    assert line.startswith(f"{words[0]}: ")
    assert len(line.split("; ")) == 2, line  # what; remedy
    place = 0
    for word in words[1:]:
        found = line.find(word, place)
        assert found >= 0, f"no {word!r} (in this order) in {line!r}"
        place = found + len(word)
    assert "please" not in line.lower()
    assert "!" not in line
    assert "://" not in line
    assert "/" not in caught.value.what.replace("model.safetensors", ""), "a path of this machine"


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_refused_in_one_line(load, copy_of, name):
    damage, original, words = DAMAGED[name]
    folder = copy_of(original)
    damage(folder)
    with pytest.raises(HessError) as caught:
        load(folder)
    assert_line(caught, 6, words)


def test_an_architecture_without_a_language_model_is_a_usage_error(load, copy_of):
    folder = copy_of("plain")
    edit_config(folder, model_type="vit", architectures=["ViTModel"])
    with pytest.raises(HessError) as caught:
        load(folder, task="causal-lm")
    assert_line(caught, 2, ("model", "has no causal-lm model for 'vit'", "hess measures causal-lm, masked-lm"))


NAMES = {
    "no such folder": ("./nowhere", {}, 6, ("model", "no such folder", "config.json")),
    "no such deep path": ("a/b/c", {}, 6, ("model", "no such folder", "config.json")),
    "a home that is not there": ("~/nowhere-at-all/x", {}, 6, ("model", "no such folder", "config.json")),
    "spaces": ("my model", {}, 6, ("model", "no such folder", "config.json")),
    "empty": ("", {}, 2, ("model", "empty", "demo")),
    "no revision behind the @": ("org/name@", {}, 2, ("revision", "ends in @", "leave the @ out")),
    "two revisions": ("org/name@a", {"revision": "b"}, 2, ("revision", "names revision 'a', --revision says 'b'", "one of them")),
    "no such demo": ("demo@step7", {}, 6, ("revision", "'step7'", "step50")),
    "not cached": ("org/never-seen", {"offline": True}, 6, ("model", "'org/never-seen' is not in the cache", "run once online")),
    "revision not cached": ("org/never-seen@v2", {"offline": True}, 6, ("model", "at revision 'v2' is not in the cache", "run once online")),
    "not an id": ("a--b/c..d", {"offline": True}, 6, ("model", "", "demo")),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_nowhere_is_refused_in_one_line(load, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, options, code, words = NAMES[name]
    with pytest.raises(HessError) as caught:
        load(model, **options)
    caught.value.what = ""  # names and paths as the user typed them are fine here
    assert_line(caught, code, words)


def test_a_file_is_refused(load, made_once):
    with pytest.raises(HessError, match="is a file; give the folder that holds it") as caught:
        load(made_once / "plain" / WEIGHTS)
    assert caught.value.exit_code == 6


def test_a_revision_of_a_folder_is_refused(load, made_once):
    for model, options in ((f"{made_once / 'plain'}@v1", {}), (made_once / "plain", {"revision": "v1"})):
        with pytest.raises(HessError, match=r"^revision: the folder '.*plain' has no revisions; leave") as caught:
            load(model, **options)
        assert caught.value.exit_code == 2


OPTIONS = {
    "dtype": ({"dtype": "float8"}, 2, ("dtype", "'float8'", "float32, bfloat16, float64, auto")),
    "attention": ({"attention": "fast"}, 2, ("attn", "'fast'", "auto, eager, sdpa")),
    "flash": ({"attention": "flash_attention_2"}, 2, ("attn", "no second derivative", "--attn eager")),
    "flex": ({"attention": "flex_attention"}, 2, ("attn", "no second derivative", "--attn eager")),
    "placement": ({"placement": "sharded"}, 2, ("placement", "'sharded'", "auto, single, layerwise")),
    "fsdp and a device map": (
        {"placement": "fsdp", "device_map": "auto"},
        2,
        ("placement", "a device map or a limit has no meaning", "leave one of them out"),
    ),
    "single and a map": ({"placement": "single", "device_map": "auto"}, 2, ("placement", "contradicts", "leave one")),
    "memory without a map": ({"max_memory": {"0": "1GiB"}}, 2, ("max_memory", "one device", "--device-map auto")),
    "device": ({"device_map": "cuda:99"}, 2, ("device_map", "no device 'cuda:99'", "cpu")),
    "strategy": ({"device_map": "fastest"}, 2, ("device_map", "no device 'fastest'", "balanced")),
    "JSON": ({"device_map": "{model: 0}"}, 2, ("device_map", "not a JSON object", '{"model": 0')),
    "incomplete map": ({"device_map": {"lm_head": "cpu"}}, 2, ("device_map", "leaves out 20 parameters of 'plain' (first: model.embed_tokens.weight)", "--device-map auto")),
    "head on disk": ({"device_map": {"model": "cpu", "lm_head": "disk"}}, 2, ("device_map", "no layer of 'plain'", "'model.layers.0'")),
    "meta": ({"device_map": "meta"}, 5, ("device_map", "'meta' are nowhere", "or to disk")),
    "bound without a folder": ({"device_map": "auto", "max_memory": {"cpu": "12KB"}}, 2, ("max_memory", "a place for what is above it", "--offload-dir")),
    "bound that is no size": ({"max_memory": {"cpu": "much"}, "offload_dir": "."}, 2, ("max_memory", "'much'", "cpu=8GiB")),
    "single and a folder": ({"placement": "single", "offload_dir": "."}, 2, ("offload_dir", "every weight in memory", "leave one")),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_cannot_be_met_is_refused_in_one_line(load, made_once, name):
    options, code, words = OPTIONS[name]
    with pytest.raises(HessError) as caught:
        load(made_once / "plain", **options)
    assert_line(caught, code, words)


@pytest.mark.parametrize("options", [{"device_map": "auto"}, {"device_map": "cpu"}, {"placement": "layerwise"}])
def test_a_device_map_in_many_processes_is_refused(load, made_once, monkeypatch, options):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HessError) as caught:
        load(made_once / "plain", **options)
    assert_line(caught, 2, ("device_map", "2 processes", "without torchrun"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    load(made_once / "plain", **options)


def test_weights_larger_than_free_memory_are_refused_before_they_are_read(load, made_once, monkeypatch):
    monkeypatch.setattr("hesscli.checkpoint.placement.available_bytes", lambda device: 7247 * 4)
    monkeypatch.setattr("hesscli.checkpoint.load._read", lambda *a, **k: pytest.fail("read"))
    with pytest.raises(HessError) as caught:
        load(made_once / "plain")
    assert_line(caught, 5, ("placement", "the weights of 'plain' need", "--dtype bfloat16"))
    monkeypatch.undo()
    monkeypatch.setattr("hesscli.checkpoint.placement.available_bytes", lambda device: 7248 * 4)
    assert load(made_once / "plain").identity.num_parameters == 7248


def test_a_pickle_that_runs_code_is_refused_even_when_pickles_are_allowed(load, copy_of, tmp_path, monkeypatch):
    folder = copy_of("plain")
    monkeypatch.chdir(tmp_path)
    (folder / WEIGHTS).unlink()
    torch.save({"lm_head.weight": RunsCode()}, folder / "pytorch_model.bin")
    with pytest.raises(HessError) as caught:
        load(folder, allow_pickle=True)
    assert_line(caught, 6, ("weights", "holds more than tensors and would run code", "use a safetensors checkpoint"))
    assert not (tmp_path / "ran").exists()


def test_a_pickle_needs_a_torch_that_reads_it_safely(load, copy_of, monkeypatch):
    folder = copy_of("plain")
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    monkeypatch.setattr("hesscli.checkpoint.weights.torch.__version__", "2.9.1+cpu")
    with pytest.raises(HessError) as caught:
        load(folder, allow_pickle=True)
    assert_line(caught, 6, ("weights", "torch 2.9.1+cpu cannot read pickles safely", "torch 2.10"))


def test_a_folder_without_a_checkpoint_does_not_hide_a_hub_id(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt3").mkdir()
    with pytest.raises(HessError, match="'gpt3' is not in the cache"):
        load("gpt3", offline=True)
    (tmp_path / "gpt3" / "config.json").write_text("{}")
    with pytest.raises(HessError, match="'gpt3' holds no weights"):
        load("gpt3", offline=True)
