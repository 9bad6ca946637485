"""Layers on disk or on the host beside two accelerators: each runs where the map says, with the host's figures.

Run in a process of its own by `test_second_device.py`.
"""

import gc
import weakref

import pretend
import pytest
import torch
from loading import LOADING
from tiny import CONFIGS, ragged_slice, risk_of
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from hesscli.checkpoint import load_checkpoint
from hesscli.checkpoint.layers import outermost_layers
from hesscli.checkpoint.offload import Arrangement, leave_out
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.layers import staging
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.offloaded import Offloaded
from hesscli.curvature.layers.staging import Staging

pretend.register()
FIRST, SECOND, HOST = torch.device("pretend:0"), torch.device("pretend:1"), torch.device("cpu")
DATA = ragged_slice((6, 4, 7))
# Of a model of four layers: where each part is, and on which device each layer computes.
LLAMA = ["model.embed_tokens", "model.norm", "lm_head", *(f"model.layers.{i}" for i in range(4))]
GPT2 = ["transformer.wte", "transformer.ln_f", "lm_head", *(f"transformer.h.{i}" for i in range(4))]
PLACES = {
    "a layer on disk and one on the host": ["0", "1", "1", "0", "disk", "cpu", "1"],
    "the ends on the second device": ["1", "1", "1", "0", "1", "disk", "0"],
    "all but one layer away": ["0", "1", "0", "disk", "1", "cpu", "disk"],
    "the ends on the host": ["cpu", "0", "disk", "1", "disk", "0", "cpu"],
}


def four_layers(name):
    config = CONFIGS[name]()
    config.num_hidden_layers = 4
    if hasattr(config, "layer_types"):
        config.layer_types = ["full_attention"] * 4
    torch.manual_seed(7)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()


@pytest.fixture
def risks(tmp_path):
    """Of an architecture the risk on the host, and that of the same checkpoint placed elsewhere."""

    def make(name, place):
        model = four_layers(name)
        model.save_pretrained(tmp_path / name)
        homes = [f"pretend:{home}" if home in "01" else home for home in PLACES[place]]
        device_map = dict(zip(GPT2 if name == "gpt2" else LLAMA, homes, strict=True))
        if name == "gpt2":
            device_map["transformer.wpe"] = device_map["transformer.wte"]
        loaded = load_checkpoint(str(tmp_path / name), **LOADING, device_map=device_map, offload_dir=None)
        named = dict(loaded.model.named_parameters())
        names, parameters = list(named), list(named.values())
        placed = LayeredRisk(
            loaded.model,
            list(DATA.batches(2)),
            names=names,
            parameters=parameters,
            input_device=loaded.input_device,
            residence=Offloaded(loaded.model, loaded.reads, names=names, parameters=parameters, folder=None),
        )
        return risk_of(model, DATA, 2), placed

    return make


def relative(found, truth):
    parts = [(a.cpu().double(), b.cpu().double()) for a, b in zip(found, truth, strict=True)]
    return (sum(((a - b) ** 2).sum() for a, b in parts) / sum((b**2).sum() for _, b in parts)).item() ** 0.5


def drawn(risk, count):
    return [risk.space.random("gaussian", seed=0, index=i) for i in range(count)]


def layers_ran_on(model):
    """Where each layer's tensors were when it ran, by its place in the model; filled as it runs."""
    found = {}
    for number, layer in enumerate(outermost_layers(model).values()):

        def note(_layer, args, kwargs, number=number):
            devices = {x.device for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            found.setdefault(number, set()).update(devices)

        layer.register_forward_pre_hook(note, with_kwargs=True)
    return found


@pytest.mark.parametrize(
    ("name", "place"),
    [*(("qwen3", place) for place in PLACES), ("llama", "all but one layer away"), ("gpt2", "the ends on the host")],
)
def test_every_figure_is_the_hosts_and_each_layer_runs_where_the_map_says(risks, name, place):
    host, placed = risks(name, place)
    homes = PLACES[place]
    first = next(home for home in homes if home in "01")
    ran_on = layers_ran_on(placed.model)
    assert placed.loss().value == pytest.approx(host.loss().value, rel=1e-7)
    computing = [torch.device("pretend", int(home if home in "01" else first)) for home in homes[3:]]
    assert ran_on == {number: {device} for number, device in enumerate(computing)}
    assert relative(placed.gradient(), host.gradient()) < 1e-6
    us, vs = drawn(placed, 2), drawn(host, 2)
    everything = name == "qwen3" and place == "all but one layer away"
    for kind in ("hessian", "ggn", "fisher") if everything else ("hessian",):
        truths = choose_operator(host, kind=kind, product="layered", seed=3).operator.matvecs(vs)
        choice = choose_operator(placed, kind=kind, product="auto", seed=3)
        assert choice.product == "layered"
        for found, truth in zip(choice.operator.matvecs(us), truths, strict=True):
            assert relative(found, truth) < 3e-6  # sums are in another order
            assert [part.device for part in found] == list(placed.space.devices)


def test_vectors_lie_on_the_host_and_what_is_outside_of_layers_on_an_accelerator(risks):
    _, placed = risks("llama", "the ends on the host")
    assert set(placed.space.devices) == {HOST}
    for name, p in placed.model.named_parameters():
        assert p.device.type == "pretend", name  # what every product needs is on the first accelerator


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_of_what_lies_outside_of_layers_a_device_holds_the_part_of_one_vector(risks, kind):
    _, placed = risks("qwen3", "a layer on disk and one on the host")  # head and embedding are one weight
    placed.batches = placed.batches[:1]
    vs, count = drawn(placed, 2), 0
    residence, most = placed.residence, []
    bring = residence.whole
    (tied,) = [i for i, name in enumerate(placed.space.names) if "embed" in name]

    def watched(place, part):
        nonlocal count
        found = bring(place, part)
        if place == tied:
            gc.collect()  # the pretended device keeps tensors in cycles
            assert found.device == FIRST
            count += 1
            most.append(count)
            weakref.finalize(found.untyped_storage(), gone)
        return found

    def gone():
        nonlocal count
        count -= 1

    residence.whole = watched
    choose_operator(placed, kind=kind, product="auto", seed=3).operator.matvecs(vs)
    assert len(most) == 2 * len(vs)  # forward from the embedding, and at the head
    assert max(most) == 1


def test_buffers_of_a_layer_that_is_away_are_where_it_computes():
    model = four_layers("llama")
    model.model.layers[1].self_attn.register_buffer("mask", torch.ones(3))
    leave_out(model, {}, Arrangement({}, {"model.layers.1": SECOND}, ("model.layers.1",)))
    found = {name: tensor.device for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    assert found.pop("model.layers.1.self_attn.mask") == SECOND
    assert {name for name, device in found.items() if device == SECOND} == {n for n in found if ".layers.1." in n}


def test_weights_come_through_two_buffers_that_are_used_again(monkeypatch):
    monkeypatch.setattr(staging, "_BUFFER", 64)
    way, made = (
        Staging(),
        [torch.randn(n) for n in (5, 16, 100, 1)] + [torch.randn(7, 3).bfloat16().t(), torch.ones(())],
    )
    coming = way.bring(iter(made), [FIRST, SECOND, FIRST, HOST, FIRST, SECOND])
    assert bool(coming.tensors[2].isnan().any())  # it is on its way, and the host has gone on
    for found, x, device in zip(coming.arrived(), made, (FIRST, SECOND, FIRST, HOST, FIRST, SECOND), strict=True):
        assert found.device == device
        assert torch.equal(found.cpu(), x)
    assert sum(len(each._buffers) for each in way._ways.values()) == 4
