"""On a GPU: products are the host's, weights may be elsewhere, and lack of memory is survived. Skipped without one.

What does not depend on CUDA itself also runs on a pretended device, so that it is tried on every machine.
"""

import sys
from pathlib import Path

import pytest
import torch
from loading import LOADING
from tiny import ragged_slice, risk_of, tiny_model

from hesscli.checkpoint import load_checkpoint
from hesscli.checkpoint.memory import available_bytes
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.offloaded import Offloaded
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.distributed import joined
from hesscli.events import Warned
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.storage import BasisStorage
from hesscli.recipe.document import resolve
from hesscli.run.environment import environment, exact_arithmetic, held_bytes, own_peak_bytes
from hesscli.run.retreat import RetreatingOperator, free_memory

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

DATA = ragged_slice((6, 4, 7))
PRODUCTS = {
    "double backward": lambda risk: HessianOperator(risk, keep_graph=False),
    "graph kept": lambda risk: HessianOperator(risk, keep_graph=True),
    "layered": lambda risk: LayeredOperator(risk, find_stack(risk.first_row())),
    "ggn": lambda risk: choose_operator(risk, kind="ggn", product="auto", seed=0).operator,
    "fisher": lambda risk: choose_operator(risk, kind="fisher", product="layered", seed=0).operator,
}


@pytest.fixture
def device():
    exact_arithmetic()  # as every run does: TF32 has three digits
    return torch.device("cuda", 0)


def risk_on(device, name="qwen3", *, dtype=torch.float32):
    model = tiny_model(name).to(device, dtype)
    model.tie_weights()
    named = dict(model.named_parameters())
    names, parameters = list(named), list(named.values())
    return EmpiricalRisk(model, list(DATA.batches(2)), names=names, parameters=parameters, input_device=device)


def placed(device, tmp_path, name, homes):
    """The risk of a checkpoint whose layers go to these homes, all else to the device."""
    tiny_model(name).save_pretrained(tmp_path / name)
    outside = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    layers = {f"model.layers.{i}": home for i, home in enumerate(homes)}
    loaded = load_checkpoint(
        str(tmp_path / name),
        device_map={**dict.fromkeys(outside, str(device)), **layers},
        offload_dir=str(tmp_path / "offloaded"),
        **LOADING,
    )
    named = dict(loaded.model.named_parameters())
    names, parameters = list(named), list(named.values())
    residence = Offloaded(loaded.model, loaded.reads, names=names, parameters=parameters, folder=loaded.offload_folder)
    given = {"names": names, "parameters": parameters, "input_device": loaded.input_device, "residence": residence}
    risk = LayeredRisk(loaded.model, list(DATA.batches(2)), **given)
    risk.loaded = loaded  # its copies of weights live as long as it
    return risk


def relative(found, truth):
    parts = [(a.cpu().double(), b.cpu().double()) for a, b in zip(found, truth, strict=True)]
    return (sum(((a - b) ** 2).sum() for a, b in parts) / sum((b**2).sum() for _, b in parts)).item() ** 0.5


def drawn(risk):
    return risk.space.random("gaussian", seed=0, index=0)


@pytest.mark.parametrize(("name", "product"), [*(("qwen3", product) for product in PRODUCTS), ("mixtral", "layered")])
def test_products_are_the_hosts_to_the_noise_floor(device, name, product):
    host, there = risk_of(tiny_model(name), DATA, 2), risk_on(device, name)
    found, truth = (PRODUCTS[product](risk).matvec(drawn(risk)) for risk in (there, host))
    assert {part.device for part in found} == {device}
    assert relative(found, truth) < 1e-5
    assert relative(drawn(there), drawn(host)) < 1e-6  # a GPU's logarithm may have another last digit


def test_differences_are_within_the_error_that_they_report(device):
    host, there = risk_of(tiny_model("qwen3"), DATA, 2), risk_on(device)
    found = FiniteDifferenceOperator(there, scheme="central").difference(drawn(there))
    truth = HessianOperator(host, keep_graph=False).matvec(drawn(host))
    assert relative(found.product, truth) < 3 * found.error


@pytest.mark.parametrize("homes", [["cpu", "disk"], ["cpu", "cpu"], ["disk", "disk"]])
def test_layers_on_the_host_and_on_disk_are_fetched_to_the_device(device, tmp_path, homes):
    host, there = risk_of(tiny_model("qwen3"), DATA, 2), placed(device, tmp_path, "qwen3", homes)
    assert there.loss().value == pytest.approx(host.loss().value, rel=1e-6)
    operator = choose_operator(there, kind="hessian", product="auto", seed=0).operator
    for _ in range(2):  # the second time layers are read ahead
        truth = HessianOperator(host, keep_graph=False).matvec(drawn(host))
        assert relative(operator.matvec(drawn(there)), truth) < 1e-5


@pytest.mark.parametrize("place", ["device", "host"])
def test_a_basis_in_bfloat16_gives_the_ritz_values_of_one_on_the_host(device, place):
    ends = []
    for risk in (risk_of(tiny_model("qwen3"), DATA, 2), risk_on(device)):
        risk.space.storage = BasisStorage(place, "bfloat16")
        state = LanczosState.start(risk.space, drawn(risk), reorthogonalise=True)
        operator = HessianOperator(risk, keep_graph=True)
        for _ in range(5):
            state.absorb(operator.matvec(state.store()))
        ends.append(max(state.alphas))
    assert ends[1] == pytest.approx(ends[0], rel=0.05)


def test_bfloat16_weights_give_a_product_near_the_float32_one(device):
    wide, narrow = risk_on(device), risk_on(device, dtype=torch.bfloat16)
    found, truth = (PRODUCTS["double backward"](risk).matvec(drawn(risk)) for risk in (narrow, wide))
    assert {part.dtype for part in found} == {torch.float32}
    assert relative(found, truth) < 0.5


def test_memory_is_measured_on_the_device(device):
    before, held = available_bytes(device), held_bytes()[str(device)]
    ballast = torch.zeros(1 << 28, dtype=torch.uint8, device=device)
    assert held_bytes()[str(device)] - held == ballast.nbytes
    assert own_peak_bytes()[str(device)] >= ballast.nbytes
    assert before - available_bytes(device) >= 0.9 * ballast.nbytes
    del ballast
    free_memory()
    assert available_bytes(device) >= before - (1 << 26)
    assert environment(device)["device"] == f"cuda {torch.cuda.get_device_name(device)}"


def test_a_real_lack_of_memory_is_survived_with_the_same_product(device):
    recipe, _ = resolve([("test", {"probe": "trace"})])
    risk, events = risk_on(device), []
    truth = HessianOperator(risk, keep_graph=False).matvec(drawn(risk))
    operator, asked = HessianOperator(risk, keep_graph=False), []
    matvecs = operator.matvecs

    def hungry(vs):
        """Wants more than the device has while batches have more than one row."""
        asked.append(max(len(b.targets) for b in risk.batches))
        if asked[-1] > 1:
            torch.empty(2 * torch.cuda.get_device_properties(device).total_memory, dtype=torch.uint8, device=device)
        return matvecs(vs)

    operator.matvecs = hungry
    patient = RetreatingOperator(operator, risk, recipe=recipe, on_event=events.append)
    assert relative(patient.matvec(drawn(risk)), truth) < 1e-5
    assert asked == [2, 1]
    assert [event.code for event in events if isinstance(event, Warned)] == ["out-of-memory"]


def test_one_rank_over_nccl_gives_the_product_of_one_process(device, monkeypatch):
    sys.path.insert(0, str(Path(__file__).parent.parent / "distributed"))
    from models import shared
    from spawned import free_port

    from hesscli.curvature.sharded.layered import ShardedLayeredOperator

    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    host = risk_of(tiny_model("qwen3"), DATA, 2)
    truth = HessianOperator(host, keep_graph=False).matvec(drawn(host))
    with joined(wanted=True) as ranks:
        assert ranks.device == device
        risk = shared(ranks, tiny_model("qwen3"), list(DATA.batches(2)))
        assert {d.type for d in risk.space.devices} == {"cuda"}
        assert relative(ShardedLayeredOperator(risk, risk.swept.find_stack()).matvec(drawn(risk)), truth) < 1e-5
        assert risk.loss().value == pytest.approx(host.loss().value, rel=1e-6)
        assert relative(risk.gradient(), host.gradient()) < 1e-5
