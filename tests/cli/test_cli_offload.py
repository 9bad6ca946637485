"""Layers that stay on disk, from the command line: the report is the one with all weights in memory."""

import json

import pytest
from adapters import save_adapter
from peft import LoraConfig

from hesscli.run.storage.product_log import ProductLog

DATA = "-d rows.jsonl --seed 3 --plots none --json"
PROBES = {
    "density": "--probes 2 --steps 6",
    "topk": "--k 1 --steps 14 --tolerance 0.1",
    "trace": "--probes 2 --steps 4 --diagonal --method hutchinson",
    "blockdiag": "--probes 2 --top 0",
    "solve": "--steps 10 --rhs row:1 --damping 5",
}
OWN = {"cost", "created", "seconds", "run_id", "environment"}


class Cut(BaseException):
    pass


def numbers(tree, path=""):
    """The leaves of a report by their paths, but for what is the machine's or the placement's own."""
    if isinstance(tree, dict):
        items = [(key, value) for key, value in tree.items() if path or key not in OWN]
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    else:
        return {path: tree}
    return {name: leaf for key, value in items for name, leaf in numbers(value, f"{path}.{key}").items()}


def assert_the_report_is_the_one_in_memory(hess, command):
    reports = []
    for number, where in enumerate(["", "--device-map disk --offload-dir off"]):
        ended = hess(*command, *DATA.split(), "--product", "layered", *where.split(), "-o", f"out{number}")
        assert ended.code == 0, ended.err
        reports.append(json.loads(ended.out))
    resident, offloaded = map(numbers, reports)
    assert (resident.pop(".operator.placement"), offloaded.pop(".operator.placement")) == ("single", "offloaded")
    assert "fetched layer by layer" in offloaded.pop(".operator.why")
    resident.pop(".operator.why")
    assert 1e-8 < offloaded[".operator.preflight.rounding"] < 1e-5  # one layer in float64 at a time
    for held_against in ("slope", "curvature"):  # in float64 where all weights have room in memory
        resident.pop(f".operator.preflight.{held_against}")
        offloaded.pop(f".operator.preflight.{held_against}")
    assert resident.keys() == offloaded.keys()
    for path, value in resident.items():
        if isinstance(value, float):
            small = any(word in path for word in ("preflight", "errors", "residual", ".bar"))
            absolute = 1e-4 if small else 1e-5
            # An interval's end may be a small difference of large squares, moved by the noise that is allowed for.
            relative = 1e-2 if any(word in path for word in (".ci.", ".band.", ".unresolved.")) else 1e-3
            assert offloaded[path] == pytest.approx(value, rel=relative, abs=absolute), path
        else:
            assert offloaded[path] == value, path
    return reports[1]


@pytest.mark.parametrize("probe", PROBES)
def test_the_report_is_the_one_in_memory(hess, checkpoint, probe):
    report = assert_the_report_is_the_one_in_memory(hess, [probe, "qwen3", *PROBES[probe].split()])
    assert report["operator"]["preflight"]["known_answer"] < 1e-4


@pytest.mark.parametrize("params", ["*", "**"])
def test_an_adapters_report_is_the_one_in_memory(hess, checkpoint, params):
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    save_adapter("lora", "./qwen3", config)
    command = ["topk", "lora", *PROBES["topk"].split(), "--params", params]
    report = assert_the_report_is_the_one_in_memory(hess, command)
    assert (report["model"]["num_selected"] == report["model"]["num_parameters"]) == (params == "**")


def test_nothing_is_left_in_the_folder(hess, checkpoint):
    ended = hess("trace", "qwen3", *DATA.split(), "--probes", "1", "--steps", "1", "--device-map", "disk",
                 "--offload-dir", "off")  # fmt: skip
    assert ended.code == 0, ended.err
    assert list((checkpoint.parent / "off").iterdir()) == []


def test_a_run_that_was_cut_off_goes_on_from_the_products_on_disk(hess, checkpoint, monkeypatch):
    words = ["topk", "qwen3", *DATA.split(), "--k", "1", "--steps", "14", "--tolerance", "0.1", "--device-map", "disk"]
    words += ["--offload-dir", "off"]
    whole = json.loads(hess(*words, "-o", "whole").out)
    add, left = ProductLog.add, [9]

    def add_some(log, *given):
        add(log, *given)
        left[0] -= 1
        if not left[0]:
            raise Cut

    with monkeypatch.context() as cut:
        cut.setattr(ProductLog, "add", add_some)
        with pytest.raises(Cut):
            hess(*words, "-o", "cut")
    again = json.loads(hess(*words, "-o", "cut").out)
    assert again["metrics"] == whole["metrics"]
    assert again["eigenpairs"] == whole["eigenpairs"]
