"""A checkpoint of four times the bound is measured within the bound, and exactly."""

import json
import subprocess
import sys

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hesscli.checkpoint.layers import outermost_layers
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data import Sequence, Slice

BOUND = 64 << 20
LAYERS = 64

# Loads a checkpoint under a bound, takes a product, and prints what it held above what it held after the same with a
# model of two layers: libraries, their buffers, and the allocator's arenas. One thread, as each has an arena.
CHILD = """
import json, sys
import torch
from hesscli.checkpoint import load_checkpoint
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.offloaded import Offloaded
from hesscli.data import Sequence, Slice

torch.set_num_threads(1)

def measure(model, bound, folder, out):
    options = dict(revision=None, task="auto", dtype="float32", attention="auto", placement="auto",
                   device_map=None if bound else {"": "disk"}, max_memory={"cpu": bound} if bound else None,
                   offload_dir=folder, trust_remote_code=False, allow_pickle=False,
                   offline=True, on_event=lambda event: None)
    loaded = load_checkpoint(model, **options)
    assert loaded.placement == "offloaded"
    named = dict(loaded.model.named_parameters())
    names, parameters = list(named), list(named.values())
    ids = torch.arange(24) * 7 % 64
    data = Slice((Sequence({"input_ids": ids}, torch.cat([ids[1:], torch.tensor([-100])])),), id="x")
    residence = Offloaded(loaded.model, loaded.reads, names=names, parameters=parameters, folder=loaded.offload_folder)
    risk = LayeredRisk(loaded.model, list(data.batches(1)), names=names, parameters=parameters,
                       input_device=torch.device("cpu"), residence=residence)
    operator = choose_operator(risk, kind="hessian", product="auto", seed=0).operator
    v = risk.space.random("gaussian", seed=0, index=0)
    product = operator.matvec(v)
    found = dict(loss=risk.loss().value, form=risk.space.inner(v, product), norm=risk.space.norm(product))
    if out:
        torch.save([part.clone() for part in product[-14:]], out)
    return found

def status(key):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines[key].split()[0]) * 1024

small, large, bound, folder, out = sys.argv[1:]
measure(small, None, folder, None)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is counted from here
before = status("VmRSS")
found = measure(large, int(bound), folder, out)
print(json.dumps({**found, "above": status("VmHWM") - before, "baseline": before}))
"""


def model_of(layers):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        initializer_range=0.05,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


def product_in_memory(model):
    """Loss, v.Hv, ||Hv|| and the last parts of Hv, with all weights in memory."""
    ids = torch.arange(24) * 7 % 64
    data = Slice((Sequence({"input_ids": ids}, torch.cat([ids[1:], torch.tensor([-100])])),), id="x")
    named = dict(model.named_parameters())
    risk = EmpiricalRisk(
        model,
        list(data.batches(1)),
        names=list(named),
        parameters=list(named.values()),
        input_device=torch.device("cpu"),
    )
    v = risk.space.random("gaussian", seed=0, index=0)
    product = LayeredOperator(risk, find_stack(risk)).matvec(v)
    return risk.loss().value, risk.space.inner(v, product), risk.space.norm(product), product[-14:]


@pytest.mark.skipif(not psutil.LINUX, reason="reads the peak of the resident set from /proc")
def test_a_checkpoint_of_four_times_the_bound_is_measured_within_it_and_exactly(tmp_path):
    large = model_of(LAYERS)
    size = sum(p.nbytes for p in large.parameters())
    assert size >= 4 * BOUND
    assert len(outermost_layers(large)) == LAYERS
    for name, model in (("small", model_of(2)), ("large", large)):
        model.save_pretrained(tmp_path / name)
    out = tmp_path / "last"
    words = [tmp_path / "small", tmp_path / "large", BOUND, tmp_path / "off", out]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, words)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["above"] < BOUND
    loss, form, norm, last = product_in_memory(large)
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["form"] == pytest.approx(form, rel=1e-5)
    assert found["norm"] == pytest.approx(norm, rel=1e-5)
    for part, truth in zip(torch.load(out), last, strict=True):
        assert float((part - truth).norm()) <= 1e-5 * norm
