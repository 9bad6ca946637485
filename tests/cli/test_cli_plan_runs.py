"""What `hess plan` recommends for a device of a given size runs on a device of that size, in the memory that it states.

The host is made to be such a device: free is what tensors leave of its size, and one that does not fit is an error of
memory, as on an accelerator.
"""

import gc
import json
import shlex
from types import SimpleNamespace

import pytest
import torch
from live_bytes import LiveBytes
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from hesscli.checkpoint import memory
from hesscli.curvature.trust import float64
from hesscli.run.planning.document import Plan

ROWS, LENGTH, VOCAB = 4, 16, 96
_SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
_SIZES |= {"num_key_value_heads": 1, "max_position_embeddings": LENGTH, "pad_token_id": 0, "initializer_range": 0.3}
_T5 = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 16, "d_ff": 96, "num_heads": 2, "decoder_start_token_id": 0}
SLICE = ["-L", ROWS, "--max-length", LENGTH, "--seed", 3]
TRACE = ["--probe", "trace", "--probes", 2, "--steps", 2, "--method", "hutchinson"]


class Device(LiveBytes):
    """So many bytes; what does not fit is not there."""

    def __init__(self, room):
        super().__init__()
        self._room = room

    def _add(self, size, mapped):
        super()._add(size, mapped)
        if size > 0 and self.live > self._room:
            raise torch.OutOfMemoryError

    def free(self):
        return SimpleNamespace(available=max(0, self._room - self.live))


def models():
    torch.manual_seed(0)
    yield "a tied", AutoModelForCausalLM.from_config(Qwen3Config(**_SIZES, intermediate_size=96))
    experts = {"intermediate_size": 48, "num_local_experts": 3, "num_experts_per_tok": 2}
    yield "a mixture", AutoModelForCausalLM.from_config(MixtralConfig(**_SIZES, **experts))
    yield "an encoder-decoder", T5ForConditionalGeneration(T5Config(**_T5, num_layers=2))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Checkpoints in folders with a space in their names, and rows of token ids."""
    folder = tmp_path_factory.mktemp("planned")
    for name, model in models():
        model.eval().save_pretrained(folder / name)
        if name == "a tied":
            config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], base_model_name_or_path="")
            adapted = get_peft_model(model, config)
            config.base_model_name_or_path = str(folder / "a tied")
            adapted.save_pretrained(folder / "an adapter")
    ids = [[(7 * i + j * j) % (VOCAB - 3) + 3 for j in range(LENGTH)] for i in range(ROWS)]
    (folder / "the rows.jsonl").write_text("".join(json.dumps({"input_ids": row, "labels": row}) + "\n" for row in ids))
    return folder


@pytest.fixture
def planned(hess, place):
    def plan(name, room, *more):
        data = ["-d", place / "the rows.jsonl", *SLICE, *TRACE]
        ended = hess("plan", place / name, *data, *more, "--devices", room, "--json")
        assert ended.code == 0, ended.err
        return Plan.model_validate_json(ended.out)

    return plan


@pytest.fixture
def on_device(hess, monkeypatch):
    """Run a plan's command on a device of its size: the report, and the most that it held."""

    def run(plan):
        words = shlex.split(plan.recommended.command)
        assert words[0] == "hess"
        device = Device(plan.devices.bytes_each)
        monkeypatch.setattr(memory.psutil, "virtual_memory", device.free)
        monkeypatch.setattr(memory, "cgroup_room", lambda **_where: ())
        monkeypatch.setattr(float64, "has_room", lambda *_given, **_named: False)  # of what is free, for a moment
        gc.collect()
        with device:
            ended = hess(*words[1:], "--plots", "none", "--json", "--force")
        assert ended.code == 0, ended.err
        return json.loads(ended.out), device

    return run


def chosen(plan):
    """The way that the command is for."""
    words = shlex.split(plan.recommended.command)
    product = words[words.index("--product") + 1]
    where = "offloaded" if "--device-map" in words else "single"
    rows = int(words[words.index("--batch-size") + 1]) if "--batch-size" in words else ROWS
    kept = "graph kept" in plan.recommended.why
    asked = where, product, rows, kept
    return next(w for w in plan.ways if (w.placement, w.product, w.batch_size, w.graph_kept) == asked and w.fits)


def held_as_stated(plan, on_device):
    """The way, and what it held. A run that finds room for the graph keeps it, and for several vectors takes them."""
    way = chosen(plan)
    report, device = on_device(plan)
    retreats = [w["text"] for w in report["warnings"] if w["code"] == "out-of-memory"]
    assert retreats == [] or way.together == 1
    kept = "graph kept" in report["operator"]["why"]
    same = [w for w in plan.ways if (w.placement, w.product, w.graph_kept) == (way.placement, way.product, kept)]
    assert device.peak <= 1.2 * same[0].total_bytes or way.together == 1
    assert (report["operator"]["placement"], report["operator"]["batch_size"]) == (way.placement, way.batch_size)
    assert (report["operator"]["product"], report["cost"]["matvecs"]) == (way.product, way.matvecs)
    return way, device.peak


def test_double_backward_runs_with_its_graph_and_with_fewer_rows(planned, on_device):
    whole = planned("a tied", 1 << 30, "--product", "double-backward")
    way, peak = held_as_stated(whole, on_device)
    assert (way.graph_kept, way.batch_size) == (True, ROWS)
    assert peak >= 0.8 * way.total_bytes
    together = min(w.total_bytes for w in whole.ways)
    turns = planned("a tied", together, "--product", "double-backward")
    way, _ = held_as_stated(turns, on_device)
    assert (way.together, way.batch_size) == (1, ROWS)
    least = planned("a tied", way.total_bytes, "--product", "double-backward")
    way, _ = held_as_stated(least, on_device)
    assert f"--batch-size {way.batch_size}" in least.recommended.command
    assert way.batch_size < ROWS


MIB = 1 << 20
CASES = {  # checkpoint: the room that there is, and the placement that it calls for
    "a tied": (1.6, "offloaded"),
    "a mixture": (1.6, "offloaded"),
    "an encoder-decoder": (1.6, "offloaded"),
    "an adapter": (32, "single"),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_run_one_by_one_and_from_files_whatever_the_model_is(planned, on_device, name):
    room, placement = CASES[name]
    few = ("--probes", 1, "--steps", 1, "--data-error", "off", "--batch-size", ROWS)
    plan = planned(name, int(room * MIB), "--product", "layered", *few)
    way, peak = held_as_stated(plan, on_device)
    assert (way.placement, way.product) == (placement, "layered")
    assert peak >= 0.6 * way.total_bytes
