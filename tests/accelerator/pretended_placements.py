"""Models over two devices, over a device and the host, and over a device and files: the host's figures from each.

Run in a process of its own by `test_second_device.py`.
"""

import pretend
import pytest
import torch
from loading import LOADING
from tiny import VOCAB, ragged_slice, risk_of, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from hesscli.checkpoint import load_checkpoint
from hesscli.checkpoint.layers import outermost_layers
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.offloaded import Offloaded
from hesscli.curvature.layers.stack import first_tensor
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.symmetries import find_symmetry
from hesscli.curvature.trust.preflight import check_product
from hesscli.events import Warned
from hesscli.recipe.document import resolve
from hesscli.run.retreat import RetreatingOperator

pretend.register()
FIRST, SECOND, HOST = torch.device("pretend:0"), torch.device("pretend:1"), torch.device("cpu")
DATA = ragged_slice((6, 4, 7))
LLAMA = ["model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]
GPT2 = ["transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1", "transformer.ln_f", "lm_head"]
PARTS = {"wide": LLAMA, "llama": LLAMA, "qwen3": LLAMA, "mixtral": LLAMA, "gpt2": GPT2}
PLACES = {
    "over two devices": [FIRST, FIRST, FIRST, SECOND, SECOND, SECOND],
    "the first layer on the second device": [FIRST, SECOND, SECOND, FIRST, FIRST, FIRST],
    "a layer on the host": [SECOND, SECOND, SECOND, HOST, SECOND, SECOND],
    "a layer on disk": [SECOND, SECOND, "disk", SECOND, SECOND, SECOND],
    "all layers on disk": [SECOND, SECOND, "disk", "disk", SECOND, SECOND],
    "a layer on the host, one on disk": [SECOND, SECOND, HOST, "disk", SECOND, SECOND],
}
AWAY = [name for name in PLACES if "host" in name or "disk" in name]
_made = {}


def wide_llama():
    """Layers that are large beside whatever depends on the data."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def risks(tmp_path_factory):
    """Of an architecture the risk on the host, and that of the same checkpoint placed elsewhere."""

    def make(name, place, *, folder=False):
        if (name, place, folder) not in _made:
            model, home = wide_llama() if name == "wide" else tiny_model(name), tmp_path_factory.mktemp("placed")
            model.save_pretrained(home / name)
            device_map = dict(zip(PARTS[name], map(str, PLACES[place]), strict=True))
            needs_folder = folder or (name == "mixtral" and "disk" in place)  # it is not stored as it is used
            where = str(home / "offloaded") if needs_folder else None
            loaded = load_checkpoint(str(home / name), device_map=device_map, offload_dir=where, **LOADING)
            named = dict(loaded.model.named_parameters())
            given = {"names": list(named), "parameters": list(named.values()), "input_device": loaded.input_device}
            kind, batches = EmpiricalRisk, list(DATA.batches(2))
            if loaded.reads:
                residence = Offloaded(
                    loaded.model,
                    loaded.reads,
                    names=given["names"],
                    parameters=given["parameters"],
                    folder=loaded.offload_folder,
                )
                given["residence"], kind = residence, LayeredRisk
            risk = kind(loaded.model, batches, **given)
            risk.loaded = loaded  # its copies of weights live as long as it
            _made[name, place, folder] = risk_of(model, DATA, 2), risk
        return _made[name, place, folder]

    return make


def relative(found, truth):
    parts = [(a.cpu().double(), b.cpu().double()) for a, b in zip(found, truth, strict=True)]
    return (sum(((a - b) ** 2).sum() for a, b in parts) / sum((b**2).sum() for _, b in parts)).item() ** 0.5


def drawn(risk, count=1):
    return [risk.space.random("gaussian", seed=0, index=i) for i in range(count)]


def operator(risk, kind="hessian", product="auto"):
    return choose_operator(risk, kind=kind, product=product, seed=3).operator


@pytest.mark.parametrize(
    ("name", "place"),
    [
        *(("llama", place) for place in PLACES),
        ("gpt2", "over two devices"),
        ("gpt2", "a layer on the host, one on disk"),
    ],
)
def test_loss_gradient_and_products_are_the_hosts(risks, name, place):
    host, placed = risks(name, place)
    assert placed.space.names == host.space.names  # gpt2 is tied, and over two devices in one place all the same
    assert placed.loss().value == pytest.approx(host.loss().value, rel=1e-7)
    assert relative(placed.gradient(), host.gradient()) < 1e-6
    us, vs = drawn(placed, 2), drawn(host, 2)
    products = operator(placed, product="layered").matvecs(us)
    for u, v, found, truth in zip(us, vs, products, operator(host, product="layered").matvecs(vs), strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(u, v, strict=True))
        assert relative(found, truth) < 1e-6
        assert [part.device for part in found] == list(placed.space.devices)


@pytest.mark.parametrize(
    ("name", "place"), [("qwen3", "over two devices"), ("mixtral", "the first layer on the second device")]
)
def test_graphs_go_over_two_devices(risks, name, place):
    host, placed = risks(name, place)
    assert {FIRST, SECOND} == set(placed.space.devices)
    truth = HessianOperator(host, keep_graph=False).matvec(*drawn(host))
    for keep_graph in (False, True):
        assert relative(HessianOperator(placed, keep_graph=keep_graph).matvec(*drawn(placed)), truth) < 1e-6
    for kind in ("ggn", "fisher"):
        found, truth = (operator(risk, kind).matvec(*drawn(risk)) for risk in (placed, host))
        assert relative(found, truth) < 1e-6


@pytest.mark.parametrize("place", ["over two devices", "a layer on the host, one on disk"])
@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical-fisher"])
def test_gauss_newton_products_layer_by_layer(risks, place, kind):
    found, truth = (operator(risk, kind, "layered").matvec(*drawn(risk)) for risk in risks("qwen3", place)[::-1])
    assert relative(found, truth) < 1e-6


@pytest.mark.parametrize("place", ["over two devices", "a layer on the host, one on disk"])
def test_differences_are_within_the_error_that_they_report(risks, place):
    host, placed = risks("llama", place)
    found = operator(placed, product="finite-difference").difference(*drawn(placed))
    assert relative(found.product, HessianOperator(host, keep_graph=False).matvec(*drawn(host))) < 3 * found.error


@pytest.mark.parametrize("place", ["over two devices", *AWAY])
def test_the_known_answer_is_found_wherever_weights_are(risks, place):
    host, placed = risks("qwen3", place)
    directions = [find_symmetry(risk, risk.gradient(), seed=0).direction(risk) for risk in (placed, host)]
    assert relative(*directions) < 1e-5
    u = drawn(placed)[0]
    assert placed.loss_along(u, 1e-2) == pytest.approx(host.loss_along(drawn(host)[0], 1e-2), rel=1e-6)
    assert placed.weights_norm() == pytest.approx(host.weights_norm(), rel=1e-6)


@pytest.mark.parametrize(("place", "folder"), [("over two devices", False), ("all layers on disk", True)])
def test_the_self_test_of_a_product_passes(risks, place, folder):
    _, placed = risks("qwen3", place, folder=folder)
    found = check_product(
        operator(placed), placed, loss=placed.loss(), gradient=placed.gradient(), semi_definite=False, seed=0
    )
    assert found.known_answer is not None
    assert found.noise < 1e-4


@pytest.mark.parametrize("place", AWAY)
def test_weights_pass_twice_in_a_product_and_results_once(risks, place):
    _, placed = risks("wide", place)
    (u,), product = drawn(placed), operator(placed, product="layered")
    product.matvec(u)
    with pretend.recorded() as transfers:
        product.matvec(u)
    named = dict(placed.model.named_parameters())
    everything = sum(p.nbytes for p in named.values())
    away = sum(p.nbytes for name, p in named.items() if name in placed.loaded.reads)
    count, small = len(placed.batches), 0.02 * everything  # ids, masks, positions; sums
    brought = sum(t.nbytes for t in transfers if t.target == HOST)
    sent = sum(t.nbytes for t in transfers if t.target != HOST)
    assert everything * count <= brought <= everything * count + small
    layers = sum(p.nbytes for p in placed.model.model.layers.parameters())
    vectors = 2 * layers + (everything - layers)  # of a layer forward and back, at the ends once
    assert (2 * away + vectors) * count <= sent <= (2 * away + vectors) * count + small


@pytest.mark.parametrize("place", ["over two devices", "a layer on the host, one on disk"])
def test_rows_are_halved_where_memory_runs_out_and_the_product_is_the_same(risks, place):
    host, placed = risks("qwen3", place)
    recipe, _ = resolve([("test", {"probe": "trace"})])
    whole, rows, events = placed.batches, [], []
    truth = operator(host, product="layered").matvecs(drawn(host, 2))
    patient = RetreatingOperator(operator(placed, product="layered"), placed, recipe=recipe, on_event=events.append)

    def hungry(_layer, args, kwargs):
        """The last layer has no memory for two rows."""
        hidden = first_tensor((args, kwargs))
        if hidden.shape[1] > 1:  # and not the head, which has a row for each token
            rows.append(len(hidden))
            if rows[-1] > 1:
                raise torch.OutOfMemoryError

    hook = list(outermost_layers(placed.model).values())[-1].register_forward_pre_hook(hungry, with_kwargs=True)
    try:
        for found, product in zip(patient.matvecs(drawn(placed, 2)), truth, strict=True):
            assert relative(found, product) < 1e-6
    finally:
        hook.remove()
        placed.batches = whole
    assert (rows[0], set(rows[1:])) == (2, {1})
    assert [event.code for event in events if isinstance(event, Warned)] == ["out-of-memory"]
    assert patient.num_rows == 1
