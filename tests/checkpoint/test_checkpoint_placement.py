"""Placement and free memory: what is decided before anything is placed."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hesscli.checkpoint import memory, offload, placement
from hesscli.checkpoint.offload import Arrangement, arrange, check_least, leave_out, sizes_of
from hesscli.checkpoint.placement import Plan, decide, settle
from hesscli.errors import DoesNotFitError, UsageError

HERE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.mark.parametrize("placement", ["auto", "single"])
def test_one_device_is_the_default(placement):
    assert decide(placement, device_map=None, max_memory=None).device == HERE


def test_a_device_may_be_named():
    plan = decide("single", device_map="cpu", max_memory=None)
    assert (plan.device, plan.device_map) == (torch.device("cpu"), None)


def test_layerwise_lets_accelerate_balance_and_passes_memory_on():
    plan = decide("layerwise", device_map=None, max_memory={"0": "40GiB", "cpu": "1GiB"})
    assert (plan.device_map, plan.device) == ("auto", None)
    assert plan.max_memory == {0: "40GiB", "cpu": "1GiB"}


def test_a_map_may_come_as_json():
    assert decide("auto", device_map='{"model": "cpu", "lm_head": "cpu"}', max_memory=None).device_map == {
        "model": "cpu",
        "lm_head": "cpu",
    }


CUDA = torch.device("cuda", 0)
ONE_GPU = Plan({"": CUDA}, None, CUDA, spread=True)


@pytest.fixture
def gpus(monkeypatch):
    """As on a machine with so many GPUs, each with 100 bytes free."""

    def make(count):
        monkeypatch.setattr(placement, "available_bytes", lambda device: 100)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return make


def bare(**options):
    config = LlamaConfig(vocab_size=8, hidden_size=4, intermediate_size=8, num_attention_heads=2, **options)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_what_fits_one_device_stays_there(gpus):
    gpus(4)
    assert settle(ONE_GPU, needed=100, id="x") == ONE_GPU


def test_one_device_that_is_too_small_is_shared_with_the_others(gpus):
    gpus(2)
    assert settle(ONE_GPU, needed=101, id="x") == Plan("auto", None, None)


def test_one_device_that_was_asked_for_and_is_too_small_is_refused(gpus):
    gpus(2)
    with pytest.raises(DoesNotFitError, match=r"cuda:0 has 0.0 GiB free; use .* --offload-dir DIR"):
        settle(Plan({"": CUDA}, None, CUDA), needed=101, id="x")


def test_a_single_device_that_is_too_small_leaves_layers_in_a_folder(gpus, tmp_path):
    gpus(0)
    plan = decide("auto", device_map=None, max_memory=None, offload_dir=str(tmp_path / "made"))
    assert (tmp_path / "made").is_dir()
    if plan.device == torch.device("cpu"):  # weights, a vector, a result and a gradient
        assert settle(plan, needed=25, id="x").device_map is None
        assert settle(plan, needed=26, id="x").device_map == {"": "disk"}


def test_one_gpu_with_a_folder_for_layers_keeps_room_for_a_product(gpus, tmp_path):
    gpus(1)
    offered = replace(ONE_GPU, folder=tmp_path)
    assert settle(offered, needed=25, id="x") == offered
    for needed in (26, 1000):
        assert settle(offered, needed=needed, id="x") == Plan("auto", None, None, folder=tmp_path, computing=CUDA)
    gpus(2)
    assert settle(offered, needed=1000, id="x") == Plan("auto", None, None, folder=tmp_path)


def test_layers_that_keep_out_of_one_gpu_are_on_the_host_as_far_as_it_has_room(monkeypatch, tmp_path):
    net = bare(num_hidden_layers=4)
    (layer, *_) = sizes_of(net).layers.values()
    monkeypatch.setattr(offload, "available_bytes", lambda device: 2 * 2 * layer)  # half of it is for vectors
    found = arrange(Plan("auto", None, None, folder=tmp_path, computing=CUDA), net, id="x")
    homes = [str(found.device_map[f"model.layers.{i}"]) for i in range(4)]
    assert homes == ["cpu", "cpu", "disk", "disk"]
    assert set(found.left_out.values()) == {CUDA}
    assert found.device_map[""] == CUDA


def test_gpus_that_do_not_hold_all_weights_keep_room_for_a_product(monkeypatch):
    net = bare(num_hidden_layers=8)
    sizes = sizes_of(net)
    layer, free = next(iter(sizes.layers.values())), {"cuda": sizes.least + sizes.rest, "cpu": 1 << 30}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(offload, "available_bytes", lambda device: free[device.type] + 2 * layer)
    monkeypatch.setattr(offload, "get_balanced_memory", lambda model, **given: {0: 5 * layer, 1: 2 * layer, "cpu": 0})
    found = offload._inferred("auto", net, None)
    held = [sum(sizes.layers.get(name, 0) for name, home in found.items() if home == i) for i in (0, 1)]
    assert max(held) <= 2 * layer
    assert {"cpu"} <= set(found.values())


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"offload_dir: .* cannot be made .*; give a folder that can be written"):
        decide("auto", device_map=None, max_memory=None, offload_dir=str(tmp_path / "file"))


def test_many_processes_and_a_device_map_are_refused_where_auto_comes_to_one(gpus, monkeypatch):
    gpus(2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="2 processes"):
        settle(ONE_GPU, needed=101, id="x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the host is not the only device")
def test_a_bound_on_the_host_decides_what_stays_on_disk(tmp_path):
    plan = decide("auto", device_map=None, max_memory={"cpu": "4KB"}, offload_dir=str(tmp_path))
    assert (plan.limit, plan.device, plan.folder) == (4000, torch.device("cpu"), tmp_path)
    assert settle(plan, needed=1000, id="x") == plan  # weights, a vector, a result and a gradient
    assert settle(plan, needed=1001, id="x").device_map == {"": "disk"}


def test_sizes_are_of_layers_and_of_the_rest_each_tie_once():
    model = bare(num_hidden_layers=3, tie_word_embeddings=True)
    sizes = sizes_of(model)
    layer = sum(p.nbytes for p in model.model.layers[0].parameters())
    assert sizes.layers == {f"model.layers.{i}": layer for i in range(3)}
    assert sizes.rest == 4 * (8 * 4 + 4)


def test_a_layer_that_shares_a_weight_is_not_left_out():
    model = bare(num_hidden_layers=3)
    model.model.layers[1].mlp.up_proj.weight = model.lm_head.weight
    assert list(sizes_of(model).layers) == ["model.layers.0", "model.layers.2"]


def test_the_least_that_works_is_named_and_works():
    sizes = sizes_of(bare(num_hidden_layers=2))
    with pytest.raises(DoesNotFitError, match=r"max_memory: cpu=0MiB is too little for 'x'.* takes 1 MiB"):
        check_least(sizes, limit=sizes.least - 1, id="x")
    check_least(sizes, limit=sizes.least, id="x")


def places(device_map, **options):
    found = arrange(Plan(device_map, None, None), bare(num_hidden_layers=12, **options), id="x")
    if found is None:
        return None
    computing = {str(device) for device in found.left_out.values()}
    return computing, {k: str(v) for k, v in found.device_map.items()}, found.on_host


def test_a_map_without_disk_is_left_to_accelerate():
    assert places({"": "cpu"}) is None
    assert places({"model": "cuda:0", "lm_head": "cuda:1"}) is None
    assert places("auto") is None or torch.cuda.is_available()


def test_layers_on_disk_or_beside_another_device_are_left_out_each_by_its_own_name():
    device, device_map, on_host = places({"": "cuda:0", "model.layers.1": "disk", "model.layers.2": "cpu"})
    assert (device, on_host) == ({"cuda:0"}, ("model.layers.2",))
    assert device_map == {"": "cuda:0"} | {f"model.layers.{i}": "cuda:0" for i in range(12)} | {
        "model.layers.1": "disk",  # and not layers 10 and 11, whose names begin alike
        "model.layers.2": "cpu",
    }


def test_a_layer_of_which_a_part_is_on_disk_is_left_out_whole():
    _, device_map, _ = places({"": "cpu", "model.layers.3.mlp": "disk"})
    assert [name for name, home in device_map.items() if home == "disk"] == ["model.layers.3"]


def test_beside_several_devices_each_part_has_its_own_and_what_is_left_out_computes_on_the_first():
    wanted = {"model": "cuda:2", "model.embed_tokens": "cpu", "lm_head": "cuda:1", "model.rotary_emb": "disk"}
    device, device_map, on_host = places({**wanted, "model.layers.1": "disk", "model.layers.10": "cpu"})
    assert (device, on_host) == ({"cuda:2"}, ("model.layers.10",))
    layers = {name: home for name, home in device_map.items() if "layers" in name}
    assert layers == {f"model.layers.{i}": "cuda:2" for i in range(12)} | {
        "model.layers.1": "disk",
        "model.layers.10": "cpu",
    }
    assert device_map["lm_head.weight"] == "cuda:1"
    assert device_map["model.norm.weight"] == "cuda:2"
    assert device_map["model.embed_tokens.weight"] == "cuda:2"  # on the host it would compute there
    assert device_map["model.rotary_emb.inv_freq"] == "cuda:2"


def test_a_layer_on_the_host_is_read_from_there_and_nan_stands_in_for_it():
    model = AutoModelForCausalLM.from_config(bare(num_hidden_layers=2).config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    arrangement = Arrangement({}, {"model.layers.1": torch.device("cpu")}, ("model.layers.1",))
    reads = leave_out(model, {}, arrangement)
    assert set(reads) == {name for name in before if name.startswith("model.layers.1.")}
    for name, p in model.named_parameters():
        assert p.shape == before[name].shape
        assert bool(p.isnan().all()) == (name in reads)
        assert torch.equal(reads[name]() if name in reads else p, before[name])


def write_group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def room(tmp_path: Path, membership: str) -> list[int]:
    (tmp_path / "membership").write_text(membership)
    return list(memory.cgroup_room(root=tmp_path / "cgroup", membership=tmp_path / "membership"))


def test_room_is_what_each_group_up_to_the_root_leaves(tmp_path):
    inner = tmp_path / "cgroup" / "a" / "b"
    write_group(inner, memory__max="max", memory__current=7, memory__stat="inactive_file 0")
    write_group(
        inner.parent, memory__max=1000, memory__current=900, memory__stat="anon 1\ninactive_file 300\nactive_file 50"
    )
    write_group(tmp_path / "cgroup", memory__max=5000, memory__current=1000, memory__stat="inactive_file 0")
    assert room(tmp_path, "0::/a/b\n") == [400, 4000]


def test_room_in_a_container_is_read_at_the_root(tmp_path):
    write_group(tmp_path / "cgroup", memory__max=10, memory__current=30, memory__stat="inactive_file 0")
    assert room(tmp_path, "0::/docker/of/the/host\n") == [0]


def test_room_under_version_1(tmp_path):
    write_group(
        tmp_path / "cgroup" / "memory" / "job",
        memory__limit_in_bytes=1000,
        memory__usage_in_bytes=600,
        memory__stat="inactive_file 1\ntotal_inactive_file 100",
    )
    assert room(tmp_path, "5:cpu,cpuacct:/job\n4:memory:/job\n") == [500]


def test_no_control_groups_is_no_limit(tmp_path):
    assert list(memory.cgroup_room(root=tmp_path, membership=tmp_path / "absent")) == []


def test_host_memory_is_the_least_of_system_and_group(monkeypatch):
    system = psutil.virtual_memory().total
    assert 0 < memory.available_bytes(torch.device("cpu")) <= system
    monkeypatch.setattr(memory, "cgroup_room", lambda **_: iter([12345]))
    assert memory.available_bytes(torch.device("cpu")) == 12345


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_that_the_allocator_holds_unused_counts_as_free():
    before = memory.available_bytes(HERE)
    block = torch.empty(2**28, device=HERE, dtype=torch.uint8)
    assert before - memory.available_bytes(HERE) == pytest.approx(2**28, rel=0.1)
    del block
    assert memory.available_bytes(HERE) == pytest.approx(before, rel=0.01)
