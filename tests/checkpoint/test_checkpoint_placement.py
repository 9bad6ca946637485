"""Placement and free memory: what is decided before anything is placed."""

from pathlib import Path

import psutil
import pytest
import torch

from hesscli.checkpoint import memory
from hesscli.checkpoint.placement import decide

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
