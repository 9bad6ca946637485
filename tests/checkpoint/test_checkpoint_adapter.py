"""Adapters of PEFT: put into the base model that they name, measured on their own parameters, or refused in a line."""

# ruff: noqa: E501 - a table of refusals, one a line

import hashlib
import importlib.util
import json
import shutil
import threading

import numpy as np
import pytest
import torch
from adapters import CONFIG, WEIGHTS, edit, restore, save_adapter
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from test_checkpoint_hub import COMMIT, Hub, start
from tiny import flat, plain_loss, ragged_slice, risk_of, tiny_model
from torch.func import functional_call

from hesscli.cli.app import _exit_code
from hesscli.curvature.choice import choose_product
from hesscli.curvature.double_backward import HessianOperator
from hesscli.errors import HessError

SCALE = 6 / 2  # lora_alpha / r


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """`base` and, of it, `lora` with dropout and `ia3`; not to be changed."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny_model("qwen3").save_pretrained(folder / "base")
    lora = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.5}
    save_adapter(folder / "lora", folder / "base", LoraConfig(task_type="CAUSAL_LM", **lora))
    save_adapter(folder / "ia3", folder / "base", IA3Config(target_modules=["v_proj"], feedforward_modules=[]))
    save_adapter(folder / "dora", folder / "base", LoraConfig(use_dora=True, **lora))
    save_adapter(folder / "prefix", folder / "base", PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    save_adapter(folder / "prompt", folder / "base", PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    return folder


@pytest.fixture
def adapter(adapters, tmp_path):
    """A copy of `lora` that a test may damage."""
    return shutil.copytree(adapters / "lora", tmp_path / "lora")


def factors(adapters):
    """The LoRA matrices by the name of the weight that they stand beside: {name: (A, B)}, as they are in the file."""
    stored = load_file(adapters / "lora" / WEIGHTS)
    names = sorted(key.removeprefix("base_model.model.").split(".lora_A")[0] for key in stored if "lora_A" in key)
    return {
        f"{name}.weight": tuple(stored[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        for name in names
    }


def merged(model, pairs):
    """W + scale B A in the place of each W."""
    own = dict(model.named_parameters())
    return {name: own[name].detach() + SCALE * b @ a for name, (a, b) in pairs.items()}


def chosen_risk(checkpoint):
    return risk_of(checkpoint.model, ragged_slice(), 2, only=lambda name: name in checkpoint.adapter_parameters)


def test_an_adapter_is_the_base_model_with_low_rank_terms_added(load, adapters):
    checkpoint = load(adapters / "lora")
    base, ids = tiny_model("qwen3"), torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        truth = functional_call(base, merged(base, factors(adapters)), kwargs={"input_ids": ids}).logits
        found = checkpoint.model(input_ids=ids).logits
        assert torch.equal(found, checkpoint.model(input_ids=ids).logits)  # its dropout is off
    assert torch.allclose(found, truth, atol=1e-5)
    assert not torch.allclose(truth, base(input_ids=ids).logits, atol=1e-2)


def test_the_hessian_over_an_adapter_is_the_dense_one_by_other_code(load, adapters):
    base, pairs = tiny_model("qwen3"), factors(adapters)
    parts = [part.clone().requires_grad_() for pair in pairs.values() for part in pair]

    def model(ids, use_cache):
        now = dict(zip(pairs, zip(parts[::2], parts[1::2], strict=True), strict=True))
        return functional_call(base, merged(base, now), args=(ids,), kwargs={"use_cache": use_cache})

    gradient = torch.autograd.grad(plain_loss(model, ragged_slice()), parts, create_graph=True)
    entries = torch.cat([part.reshape(-1) for part in gradient])
    rows = torch.autograd.grad(entries, parts, torch.eye(len(entries)), is_grads_batched=True)
    dense = torch.cat([row.reshape(len(entries), -1) for row in rows], dim=1).double().numpy()

    risk = chosen_risk(load(adapters / "lora"))
    assert list(risk.space.names) == [
        f"{name.removesuffix('.weight')}.lora_{part}.default.weight" for name in pairs for part in "AB"
    ]
    v = risk.space.random("gaussian", seed=0, index=0)
    found = flat(HessianOperator(risk, keep_graph=False).matvec(v))
    assert np.linalg.norm(found - dense @ flat(v)) < 1e-5 * np.linalg.norm(found)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_the_layered_product_takes_adapters_too(load, adapters, kind):
    risk = chosen_risk(load(adapters / kind))
    choice = choose_product(risk, product="layered")
    assert choice.product == "layered", choice.why
    v = risk.space.random("gaussian", seed=0, index=0)
    truth = flat(HessianOperator(risk, keep_graph=False).matvec(v))
    assert np.linalg.norm(flat(choice.operator.matvec(v)) - truth) < 1e-5 * np.linalg.norm(truth)


def test_the_identity_names_the_base_and_hashes_the_files_of_both(load, adapters, adapter):
    checkpoint = load(adapters / "lora")
    files = (adapters / "lora" / WEIGHTS, adapters / "base" / "model.safetensors")
    assert checkpoint.identity.id == "lora"
    assert checkpoint.identity.base == "base"
    assert checkpoint.identity.class_name == "Qwen3ForCausalLM"
    both = b"".join(file.read_bytes() for file in files)
    assert checkpoint.identity.weights_sha256 == hashlib.sha256(both).hexdigest()
    assert load(adapters / "base").identity.base is None
    stored = {name: value + 1 for name, value in load_file(adapter / WEIGHTS).items()}
    save_file(stored, adapter / WEIGHTS)
    assert load(adapter).identity.weights_sha256 != checkpoint.identity.weights_sha256


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_an_adapter_has_the_dtype_that_was_asked_for(load, adapters, dtype):
    model = load(adapters / "lora", dtype=dtype).model
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


@pytest.fixture
def measured(adapters, tmp_path, monkeypatch, capfd):
    """The report of `hess topk` on the adapter."""
    monkeypatch.chdir(tmp_path)
    rows = [{"input_ids": row.inputs["input_ids"].tolist()} for row in ragged_slice().sequences]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*words):
        command = ["topk", str(adapters / "lora"), "-d", "rows.jsonl", "--k", "1", "--json", *words]
        assert _exit_code(command) == 0, capfd.readouterr().err
        return json.loads(capfd.readouterr().out)

    return run


def test_a_run_is_over_the_adapter_and_params_widen_it(measured, adapters):
    own = sum(part.numel() for pair in factors(adapters).values() for part in pair)
    base = sum(p.numel() for p in tiny_model("qwen3").parameters())
    report = measured()
    assert report["model"]["num_selected"] == own
    assert report["model"]["num_parameters"] == base + own
    assert report["model"]["base"] == "base"
    assert report["operator"]["preflight"]["symmetry"] < 1e-4
    assert measured("--params", "**")["model"]["num_selected"] == base + own
    assert measured("--params", "*.lora_B.*")["model"]["num_selected"] == own - sum(
        a.numel() for a, _ in factors(adapters).values()
    )


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
# What is done to the adapter -> the field, and words of the line in their order.
REFUSED = {
    "pickle": (pickled, ("weights", "holds only adapter_model.bin, a pickle", "--allow-pickle")),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), ("weights", "but no adapter_model.safetensors", "again")),
    "cut weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), ("weights", "is cut off", "again")),
    "config not JSON": (lambda f: (f / CONFIG).write_text("{"), ("model", "adapter_config.json of 'lora' cannot be read", "again")),
    "no config": (lambda f: (f / CONFIG).unlink(), ("model", "an adapter without adapter_config.json", "its base model")),
    "no base named": (lambda f: edit(f, base_model_name_or_path=None), ("model", "names no base model", "base_model_name_or_path")),
    "no base there": (lambda f: edit(f, base_model_name_or_path="./nowhere"), ("model", "the base model of 'lora' cannot be had: no such folder", "adapter_config.json")),
    "base is an adapter": (lambda f: edit(f, base_model_name_or_path=str(f)), ("model", "the base model of 'lora', 'lora', is an adapter too", "merge")),
    "a whole model beside it": (lambda f: (f / "model.safetensors").touch(), ("model", "an adapter and a whole model", "folder of its own")),
    "a weight missing": (lambda f: restore(f, lambda s: s.pop(FIRST)), ("weights", "no weight for model.layers.0.self_attn.q_proj.lora_A", "base model")),
    "a weight too many": (lambda f: restore(f, lambda s: s.update({FIRST.replace("0", "7"): torch.ones(2, 8)})), ("weights", "no place for", "layers.7", "base model")),
    "a weight of another shape": (lambda f: restore(f, lambda s: s.update({FIRST: torch.ones(2, 9)})), ("model", "does not go into Qwen3ForCausalLM", "base model")),
    "NaN": (lambda f: restore(f, lambda s: s[FIRST].fill_(float("nan"))), ("weights", "lora_A", "NaN", "use")),
    "a gradient that is not derived": (lambda f: edit(f, velora_config={"num_groups": 4}), ("model", "VeLoRA", "not the derivative", "merge")),
    "a sparse tensor": (lambda f: edit(f, peft_type="SHIRA"), ("model", "'lora' is an adapter of SHiRA", "derived twice", "merge")),
    "an input that is taken for a constant": (lambda f: edit(f, peft_type="C3A"), ("model", "adapter of C3A", "derived twice", "merge")),
    "some tokens alone": (lambda f: edit(f, alora_invocation_tokens=[1, 2]), ("model", "'lora' is an adapter of aLoRA", "PEFT's own wrapper", "such as LoRA")),
    "what is shared": (lambda f: edit(f, peft_type="VERA"), ("model", "'lora' is an adapter of VeRA, whose layers share", "merge")),
    "tasks that it is told": (lambda f: edit(f, peft_type="POLY"), ("model", "adapter of Poly", "PEFT's own wrapper")),
    "a gradient that is projected": (lambda f: edit(f, peft_type="OSF"), ("model", "adapter of OSF", "not the derivative", "merge")),
    "a head that the base has not": (lambda f: edit(f, task_type="SEQ_CLS"), ("weights", "'lora' does not bring score.weight", "base model 'base' has none", "give the base")),
    "a head of another task": (lambda f: edit(f, task_type="TOKEN_CLS"), ("model", "trained for token-classification", "hess measures causal-lm")),
    "a random base": (lambda f: edit(f, init_lora_weights="pissa_niter_4"), ("model", "a random part of its base model", "cannot be made again", "merge it")),
    "other modules": (lambda f: edit(f, target_modules=["c_attn"]), ("model", "does not go into Qwen3ForCausalLM", "base model")),
    "an unknown kind": (lambda f: edit(f, peft_type="LORA9"), ("model", "does not go into Qwen3ForCausalLM", "base model")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(load, adapter, name):
    damage, words = REFUSED[name]
    damage(adapter)
    assert_refused(lambda: load(adapter), words)


def assert_refused(call, words):
    with pytest.raises(HessError) as caught:
        call()
    line = str(caught.value)
    assert caught.value.exit_code == 6
    assert "\n" not in line
    assert line.startswith(f"{words[0]}: ")
    place = 0
    for word in words[1:]:
        assert word in line[place:], f"no {word!r} (in this order) in {line!r}"
        place = line.index(word, place)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dora", ("model", "DoRA", "not the derivative of the loss", "merge")),
        ("prefix", ("model", "'prefix' is an adapter for prefix tuning", "in no layer", "such as LoRA")),
        ("prompt", ("model", "'prompt' is an adapter for prompt tuning", "in no layer", "such as LoRA")),
    ],
)
def test_kinds_without_a_hessian_of_their_own_are_refused(load, adapters, kind, words):
    assert_refused(lambda: load(adapters / kind), words)


def test_without_peft_the_line_says_how_to_install_it(load, adapters, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    assert_refused(lambda: load(adapters / "lora"), ("model", "peft is not installed", "pip install 'hess[peft]'"))


def test_a_pickle_that_is_trusted_gives_the_same_model(load, adapters, adapter):
    pickled(adapter)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    ours = load(adapter, allow_pickle=True).model(input_ids=ids).logits
    assert torch.equal(ours, load(adapters / "lora").model(input_ids=ids).logits)


def test_a_pickle_that_is_none_is_refused_in_one_line(load, adapter):
    pickled(adapter)
    (adapter / "adapter_model.bin").write_bytes(b"no pickle")
    assert_refused(
        lambda: load(adapter, allow_pickle=True), ("weights", "adapter_model.bin of 'lora' is damaged", "safetensors")
    )


def test_adapter_and_base_on_the_hub_are_fetched_and_then_cached(adapters, adapter, made_once, tmp_path):
    edit(adapter, base_model_name_or_path="org/base")
    for file in ("adapter_model.bin", "optimizer.pt"):
        (adapter / file).write_bytes(b"never fetched")
    shutil.copytree(adapters / "base", tmp_path / "base")
    for file in (made_once / "tokenized").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "base")
    (empty := tmp_path / "empty").mkdir()
    head = shutil.copytree(adapter, tmp_path / "head")
    edit(head, task_type="SEQ_CLS")
    restore(head, lambda s: s.update({"base_model.model.score.weight": torch.ones(5, 8)}))
    folders = {"lora": adapter, "head": head, "base": tmp_path / "base", "neither": empty}
    server = Hub({f"org/{name}": {COMMIT: folder} for name, folder in folders.items()})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "home").mkdir()
    child = start(f"http://127.0.0.1:{server.server_address[1]}", tmp_path / "home")
    child.stdin.write(json.dumps({"model": "org/lora", "bare": True}) + "\n")
    child.stdin.flush()
    planned = json.loads(child.stdout.readline())
    assert set(server.fetched) == {CONFIG, "config.json"}, planned
    child.stdin.write(json.dumps({"model": "org/head", "bare": True}) + "\n")
    child.stdin.flush()
    with_head = json.loads(child.stdout.readline())["own"]
    assert with_head.pop("score.modules_to_save.default.weight") == 5 * 8
    assert with_head == planned["own"]
    child.stdin.write(json.dumps({"model": "org/neither", "bare": True}) + "\n")
    child.stdin.flush()
    assert "holds neither config.json nor adapter_config.json" in json.loads(child.stdout.readline())["line"]
    for request in ({"model": "org/lora"}, {"model": "org/lora", "offline": True}):
        child.stdin.write(json.dumps(request) + "\n")
    child.stdin.close()
    first, again = [json.loads(line) for line in child.stdout]
    child.wait(timeout=60)
    server.shutdown()
    server.server_close()
    assert (first["id"], first["commit"]) == ("org/lora", COMMIT), first
    assert {CONFIG, WEIGHTS, "config.json", "model.safetensors"} <= set(server.fetched)
    assert not {"adapter_model.bin", "optimizer.pt"} & set(server.fetched)
    assert first["tokens"] == [3, 5]  # by the tokenizer of the base
    assert again["sha256"] == first["sha256"]
    own = sum(part.numel() for pair in factors(adapters).values() for part in pair)
    assert sum(planned["own"].values()) == own
    assert planned["all"] == own + sum(p.numel() for p in tiny_model("qwen3").parameters())
    assert "Warned" not in str(again["events"])
