"""Shapes of public models, planned from their configs alone; and what placements make of them, by hand."""

import json
import shlex
from pathlib import Path

import pytest

from hesscli.checkpoint.bare import bare_model
from hesscli.recipe.document import resolve
from hesscli.run.planning.build import make_plan
from hesscli.run.planning.document import Devices, Plan
from hesscli.run.planning.probe_cost import demands

CONFIGS = Path(__file__).parent / "configs"
GIB = 1 << 30


def planned(name, *, devices=1, gib=80.0, host=None, probe="density", **values):
    model = str(CONFIGS / f"{name}.json") if name != "demo" else name
    recipe, _ = resolve([("test", {"probe": probe, "model.id": model, **values})])
    given = Devices(count=devices, bytes_each=int(gib * GIB), host_bytes=host, found=False)
    return make_plan(recipe, devices=given, typed=[name], on_event=lambda _event: None)


def bare(name, dtype="bfloat16"):
    return bare_model(
        str(CONFIGS / f"{name}.json"),
        revision=None,
        task="auto",
        dtype=dtype,
        attention="auto",
        trust_remote_code=False,
        allow_pickle=False,
        offline=True,
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    # As the models' cards and papers have them.
    [("qwen3-0.6b", 596_049_920), ("llama-3-70b", 70_553_706_496), ("qwen3-30b-a3b", 30_532_122_624)],
)
def test_a_config_alone_gives_the_public_number_of_parameters(name, parameters):
    assert bare(name).num_parameters == parameters


def test_a_mixture_weighs_by_all_experts_and_computes_by_those_that_run():
    plan = planned("qwen3-30b-a3b", **{"data.limit": 1, "data.max_length": 32, "operator.product": "layered"})
    # 3.3 B active, by the model's card.
    assert plan.model.active_parameters == pytest.approx(3.35e9, rel=0.01)
    assert plan.model.weights_bytes == pytest.approx(4 * 30_532_122_624, rel=1e-3)
    assert plan.gradient.teraflops == pytest.approx(6 * plan.model.active_parameters * 32 / 1e12)
    assert not plan.uncounted


@pytest.fixture(scope="module")
def small():
    return planned("qwen3-0.6b", devices=4, gib=4000, **{"data.limit": 8, "data.max_length": 64})


def way(plan, placement, product, *, kept=False):
    return next(w for w in plan.ways if (w.placement, w.product, w.graph_kept) == (placement, product, kept))


def test_every_placement_has_the_products_that_it_allows(small):
    found = {(w.placement, w.product) for w in small.ways}
    everywhere = {"layered", "finite-difference"}
    for placement in ("single", "layerwise", "fsdp", "offloaded"):
        products = {product for p, product in found if p == placement}
        assert products == everywhere | ({"double-backward"} if placement in ("single", "layerwise") else set())


def test_sharding_divides_weights_and_vectors_and_gathers_one_layer(small):
    alone, sharded = way(small, "single", "layered"), way(small, "fsdp", "layered")
    assert sharded.weights_bytes == -(-alone.weights_bytes // 4)
    assert sharded.vectors_bytes == -(-alone.vectors_bytes // 4)
    assert sharded.product_bytes >= small.model.largest_layer_bytes


def test_offloading_keeps_two_layers_at_most_and_what_lies_outside_of_them(small):
    here, model = way(small, "offloaded", "layered"), small.model
    assert 0 < here.weights_bytes - model.outside_bytes <= 2 * model.largest_layer_bytes
    assert here.host_bytes > model.weights_bytes - model.outside_bytes + 5 * model.vector_bytes * 0.7
    assert here.basis_bytes == 0


def test_weights_that_are_narrow_and_not_all_here_have_no_differences():
    values = {"data.limit": 4, "data.max_length": 32, "data.batch_size": 4, "model.dtype": "bfloat16"}
    ways = planned("demo", devices=2, **values).ways
    for placement in ("fsdp", "offloaded"):
        assert {w.product for w in ways if w.placement == placement} == {"layered"}


def test_products_rise_in_cost_and_fall_in_memory(small):
    names = [("double-backward", True), ("double-backward", False), ("layered", False)]
    ways = [way(small, "single", product, kept=kept) for product, kept in names]
    assert [w.product_bytes for w in ways] == sorted((w.product_bytes for w in ways), reverse=True)


def test_a_plan_reads_itself_again(small):
    assert Plan.model_validate_json(small.model_dump_json(by_alias=True)) == small


def test_the_fastest_way_that_fits_is_recommended_and_nothing_is_where_none_does():
    plan = planned("demo", gib=16, **{"data.limit": 4, "data.max_length": 32})
    assert plan.recommended.command == "hess density demo --product double-backward"
    tight = planned("demo", gib=0.001, **{"data.limit": 4, "data.max_length": 32})
    assert tight.recommended is None
    assert not any(w.fits for w in tight.ways)
    assert all(w.product_bytes is None for w in tight.ways if w.placement == "single")  # vectors alone do not fit


def test_where_a_batch_does_not_fit_the_most_rows_that_do_are_planned_and_said():
    values = {"data.limit": 8, "data.max_length": 16, "data.batch_size": "auto", "operator.product": "layered"}
    whole = way(planned("demo", gib=16, probe="trace", **values), "single", "layered")
    assert 0 < whole.activations_bytes <= whole.product_bytes
    for _ in range(5):  # the basis is given up first, and then vectors are taken one by one
        room = (whole.total_bytes - whole.activations_bytes // 3) / 0.9 / GIB
        plan = planned("demo", gib=room, probe="trace", **values)
        if way(plan, "single", "layered").batch_size < 8:
            break
        whole = way(plan, "single", "layered")
    fewer = way(plan, "single", "layered")
    assert (whole.batch_size, fewer.batch_size, fewer.fits) == (8, 4, True)
    assert plan.recommended.command.endswith("--batch-size 4")
    asked = planned("demo", gib=room, probe="trace", **values | {"data.batch_size": 8})
    assert not way(asked, "single", "layered").fits


def test_where_devices_are_too_few_it_says_how_many_would_do():
    values = {"data.limit": 1, "data.max_length": 32, "operator.product": "layered", "model.dtype": "bfloat16"}
    plan = planned("llama-3-70b", devices=8, gib=80, probe="topk", **{"estimator.krylov_dim": 22, **values})
    command = shlex.split(plan.recommended.command)
    assert json.loads(command[command.index("--device-map") + 1]) == {"": 0, "model.layers": "disk"}
    assert "--offload-dir" in command
    needed = max(w.vectors_bytes + w.basis_bytes for w in plan.ways if w.placement == "single")
    assert needed >= 6 * plan.model.vector_bytes  # the self-test's five and a product
    assert plan.model.vector_bytes == 4 * 70_553_706_496


@pytest.mark.parametrize(
    ("probe", "values", "matvecs"),
    [
        ("trace", {"estimator.probes": 4, "estimator.steps": 6}, 5 + 10 + 8),
        ("density", {"estimator.probes": 3, "estimator.steps": 10}, 5 + 40 + 8 + 2),
        ("blockdiag", {"estimator.probes": 2, "estimator.top": 0}, 5 + 2 * 7),
    ],
)
def test_products_are_counted(probe, values, matvecs):
    recipe, _ = resolve([("test", {"probe": probe, **values})])
    assert demands(recipe, dimension=1000, num_blocks=6, narrow=False)[0].matvecs == matvecs


def test_the_host_must_hold_what_is_offloaded_to_it():
    values = {"data.limit": 4, "data.max_length": 32, "data.batch_size": 4, "operator.product": "layered"}
    free = planned("demo", gib=16, host=None, **values)
    needed = way(free, "offloaded", "layered").host_bytes
    tight = planned("demo", gib=16, host=needed // 2, **values)
    assert way(free, "offloaded", "layered").fits
    assert not way(tight, "offloaded", "layered").fits
    assert way(tight, "single", "layered").fits
