"""Weights that stay in their files: the same loss, gradient and products as with all of them in memory."""

import pytest
import torch
from live_bytes import LiveBytes
from loading import LOADING
from tiny import VOCAB, deep_llama, flat, ragged_slice, risk_of, rows_of, tiny_model

from hesscli.checkpoint import load_checkpoint
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.offloaded import Offloaded
from hesscli.curvature.symmetries import find_symmetry
from hesscli.errors import UnavailableError, UsageError
from hesscli.linalg.mapped import is_mapped

IN_FILES = LOADING | {"device_map": {"": "disk"}}


@pytest.fixture
def pair(tmp_path):
    """Of an architecture the risk in memory, and the same with its layers in their files."""

    def make(name, only=lambda n: True, *, batch_size=2, folder=True, shard="4KB", **options):
        model = tiny_model(name)
        model.save_pretrained(tmp_path / name, max_shard_size=shard)
        offload_dir = str(tmp_path / "offloaded") if folder else None
        loaded = load_checkpoint(str(tmp_path / name), **{**IN_FILES, "offload_dir": offload_dir, **options})
        named = {n: p for n, p in loaded.model.named_parameters() if only(n)}
        names, parameters = list(named), list(named.values())
        residence = Offloaded(
            loaded.model, loaded.reads, names=names, parameters=parameters, folder=loaded.offload_folder
        )
        batches = list(ragged_slice().batches(batch_size))
        fetched = LayeredRisk(
            loaded.model,
            batches,
            names=names,
            parameters=parameters,
            input_device=torch.device("cpu"),
            residence=residence,
        )
        fetched.loaded = loaded  # its copies of weights live as long as it
        return risk_of(model, ragged_slice(), batch_size, only), fetched

    return make


def relative(a, b):
    return float(((flat(a) - flat(b)) ** 2).sum() / (flat(b) ** 2).sum()) ** 0.5


NAMES = ["llama", "qwen3", "gpt2", "gemma3", "mixtral"]  # qwen3 and gpt2 are tied; mixtral is stored otherwise


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_in_no_memory_and_loss_gradient_and_products_are_the_same(pair, name):
    whole, fetched = pair(name)
    layers = [p for n, p in fetched.model.named_parameters() if ".0." in n or ".1." in n]
    assert layers
    assert all(p.untyped_storage().nbytes() <= 8 and bool(p.isnan().all()) for p in layers)
    assert fetched.space.names == whole.space.names
    assert fetched.loss() == whole.loss()
    assert relative(fetched.gradient(), whole.gradient()) < 1e-6
    v, on_disk = (risk.space.random("gaussian", seed=0, index=0) for risk in (whole, fetched))
    assert all(torch.equal(a, b) for a, b in zip(v, on_disk, strict=True))
    assert all(is_mapped(part) for part in on_disk)
    truth = HessianOperator(whole, keep_graph=False).matvec(v)
    choice = choose_operator(fetched, kind="hessian", product="auto", seed=0)
    assert (choice.product, "fetched layer by layer" in choice.why) == ("layered", True)
    assert relative(choice.operator.matvec(on_disk), truth) < 1e-5
    assert all(bool(p.isnan().all()) for p in layers)


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical-fisher"])
def test_gauss_newton_products_are_the_same(pair, kind):
    whole, fetched = pair("qwen3")
    vs = [whole.space.random("gaussian", seed=0, index=i) for i in range(2)]
    truth = choose_operator(whole, kind=kind, product="auto", seed=3).operator.matvecs(vs)
    products = choose_operator(fetched, kind=kind, product="auto", seed=3).operator.matvecs(vs)
    for product, exact in zip(products, truth, strict=True):
        assert relative(product, exact) < 1e-5


@pytest.mark.parametrize("only", [".mlp.", "embed_tokens", "layers.1", "norm"])
def test_frozen_weights_are_fetched_and_have_no_part_in_products(pair, only):
    whole, fetched = pair("qwen3", lambda n: only in n)
    v = whole.space.random("gaussian", seed=0, index=0)
    truth = HessianOperator(whole, keep_graph=False).matvec(v)
    assert (
        relative(choose_operator(fetched, kind="hessian", product="layered", seed=0).operator.matvec(v), truth) < 1e-5
    )


def test_several_vectors_and_batches_take_each_layer_as_it_is_read_ahead(pair):
    whole, fetched = pair("llama", batch_size=1)
    vs = [whole.space.random("gaussian", seed=0, index=i) for i in range(3)]
    operator = LayeredOperator(fetched, fetched.stack)
    truth = HessianOperator(whole, keep_graph=False).matvecs(vs)
    for _ in range(2):  # at first nothing is known of the order of layers
        for product, exact in zip(operator.matvecs(vs), truth, strict=True):
            assert relative(product, exact) < 1e-5


def test_finite_differences_are_within_the_error_that_they_report(pair):
    whole, fetched = pair("llama")
    v = whole.space.random("gaussian", seed=0, index=0)
    operator = choose_operator(fetched, kind="hessian", product="finite-difference", seed=0).operator
    assert isinstance(operator, FiniteDifferenceOperator)
    found = operator.difference(v)
    assert relative(found.product, HessianOperator(whole, keep_graph=False).matvec(v)) < 3 * found.error


def test_the_loss_along_a_line_is_the_one_in_memory_and_leaves_the_weights_alone(pair):
    whole, fetched = pair("qwen3")
    u = whole.space.random("gaussian", seed=0, index=0)
    before = fetched.loss()
    assert fetched.loss_along(u, 1e-2) == pytest.approx(whole.loss_along(u, 1e-2), rel=1e-6)
    assert fetched.loss_along(u, 1e-2) != pytest.approx(before.value, rel=1e-4)
    assert fetched.loss() == before
    assert fetched.weights_norm() == pytest.approx(whole.weights_norm(), rel=1e-6)


def test_weights_that_are_stored_narrower_are_widened_as_they_are_read(pair, tmp_path):
    tiny_model("llama").bfloat16().save_pretrained(tmp_path / "narrow")
    wide = load_checkpoint(str(tmp_path / "narrow"), **{**IN_FILES, "device_map": None, "offload_dir": None})
    left = load_checkpoint(str(tmp_path / "narrow"), **{**IN_FILES, "offload_dir": None})
    assert left.reads
    for name, p in wide.model.named_parameters():
        if name in left.reads:
            read = left.reads[name]()
            assert read.dtype == torch.float32
            assert torch.equal(read, p)


def test_without_a_folder_vectors_lie_in_memory(pair):
    whole, fetched = pair("llama", folder=False)
    v = fetched.space.random("gaussian", seed=0, index=0)
    assert not any(is_mapped(part) for part in v)
    product = LayeredOperator(fetched, fetched.stack).matvec(v)
    assert relative(product, HessianOperator(whole, keep_graph=False).matvec(v)) < 1e-5


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mixtral"])
@pytest.mark.parametrize("away", [0, 1])
def test_a_map_may_leave_out_some_layers_and_keep_others(pair, name, away):
    layer = f"transformer.h.{away}" if name == "gpt2" else f"model.layers.{away}"
    whole, fetched = pair(name, device_map={"": "cpu", layer: "disk"})
    assert {n for n, p in fetched.model.named_parameters() if p.isnan().all()} == set(fetched.loaded.reads)
    assert all(n.startswith(f"{layer}.") for n in fetched.loaded.reads)
    assert relative(fetched.gradient(), whole.gradient()) < 1e-6
    v = whole.space.random("gaussian", seed=0, index=0)
    for kind in ("hessian", "ggn"):
        truth = choose_operator(whole, kind=kind, product="layered", seed=0).operator.matvec(v)
        found = choose_operator(fetched, kind=kind, product="auto", seed=0).operator.matvec(v)
        assert relative(found, truth) < 1e-6


def held_by_a_product(folder, *, resident):
    """Bytes above the resident weights while a product runs with two layers on disk, and the bytes of a layer."""
    deep_llama(resident + 2).save_pretrained(folder / str(resident))
    device_map = {"": "cpu", "model.layers.0": "disk", f"model.layers.{resident + 1}": "disk"}
    given = {**IN_FILES, "device_map": device_map, "offload_dir": str(folder / "off")}
    loaded = load_checkpoint(str(folder / str(resident)), **given)
    named = dict(loaded.model.named_parameters())
    names, parameters = list(named), list(named.values())
    residence = Offloaded(loaded.model, loaded.reads, names=names, parameters=parameters, folder=folder)
    batches = list(rows_of(torch.arange(8)[None] % VOCAB).batches(1))
    given = {"names": names, "parameters": parameters, "input_device": torch.device("cpu"), "residence": residence}
    risk = LayeredRisk(loaded.model, batches, **given)
    operator, v = LayeredOperator(risk, risk.stack), risk.space.random("gaussian", seed=0, index=0)
    operator.matvec(v)
    with LiveBytes(parameters) as count:
        operator.matvec(v)
    return count.peak, sum(p.nbytes for p in loaded.model.model.layers[1].parameters())


def test_layers_that_are_in_memory_add_nothing_to_what_a_product_holds(tmp_path):
    few, layer = held_by_a_product(tmp_path, resident=2)
    many, _ = held_by_a_product(tmp_path, resident=8)
    assert many - few < 0.5 * layer
    assert few > 2 * layer  # what is fetched is counted


def test_a_graph_through_the_whole_model_is_refused_and_never_wrong(pair):
    _, fetched = pair("llama")
    v = fetched.space.random("gaussian", seed=0, index=0)
    with pytest.raises(RuntimeError, match="needs every weight in memory"):
        HessianOperator(fetched, keep_graph=False).matvec(v)


@pytest.mark.parametrize(("kind", "product"), [("hessian", "double-backward"), ("ggn", "finite-difference")])
def test_products_that_need_all_weights_are_refused_with_the_reason(pair, kind, product):
    _, fetched = pair("llama")
    with pytest.raises(UsageError, match=r"operator.product: .*fetched layer by layer; use --product layered"):
        choose_operator(fetched, kind=kind, product=product, seed=0)


def test_a_file_that_changes_while_it_is_measured_is_one_line(pair, tmp_path):
    _, fetched = pair("llama", shard="1GB")
    file = tmp_path / "llama" / "model.safetensors"
    file.write_bytes(file.read_bytes())
    with pytest.raises(UnavailableError, match=r"weights: model.safetensors was changed while it was measured"):
        fetched.loss()
    file.unlink()
    with pytest.raises(UnavailableError, match=r"model.safetensors cannot be read any more"):
        fetched.loss()


def test_copies_of_weights_go_with_the_checkpoint(pair, tmp_path):
    _, fetched = pair("mixtral")
    folder = tmp_path / "offloaded"
    assert len(list(folder.iterdir())) == 1
    del fetched
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_known_answer_is_found_without_the_weights_in_memory(pair, name):
    whole, fetched = pair(name)
    gradient = whole.gradient()
    truth, symmetry = find_symmetry(whole, gradient, seed=0), find_symmetry(fetched, gradient, seed=0)
    direction = symmetry.direction(fetched)
    assert relative(direction, truth.direction(whole)) < 1e-6
    product = LayeredOperator(fetched, fetched.stack).matvec(direction)
    assert relative(product, symmetry.answer(fetched, gradient)) < 1e-4
