"""Weights that are not all on the device: on the host too, above a bound on disk, in shards. Against the host alone."""

import tempfile
import time
from pathlib import Path

import torch
from spawned import on_ranks

from gpu.meter import gib
from gpu.model import SHAPES, distance, model_on
from hesscli.curvature.choice import choose_operator
from hesscli.events import ignore
from hesscli.recipe.document import resolve
from hesscli.run.environment import exact_arithmetic
from hesscli.run.setup import build_subject

COLUMNS = ["placement", "product", "seconds", "peak GiB", "relative difference"]
LEGEND = [
    "a small model of the family, from files, on 2 rows of 32 tokens; one exact product, the second one of two",
    "peak: what is allocated on the device; relative difference from the product with everything on the host",
]
_LAYERS = 6


def elsewhere_rows(meter, *, say):
    """A row for each placement."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model = model_on("cpu", "tiny", torch.float32, layers=_LAYERS)
        model.save_pretrained(home / "model")
        (home / "rows.jsonl").write_text("".join(_row(i) for i in range(2)), encoding="utf-8")
        truth = product_of(home, {"model.device_map": "cpu"}, "cpu")[0]
        for name, values in _placements(meter.device, model, home).items():
            say(name)
            if meter.left < 0:
                rows.append([name, "not begun: the time is up", "", "", ""])
                continue
            device = meter.device.type
            if name.startswith("sharded"):
                from gpu_sharded import shared_product

                (found,) = on_ranks(1, shared_product, str(home), values, device)
            else:
                found = product_of(home, values, device)
            parts, product, seconds, peak = found
            rows.append([name, product, f"{seconds:.3f}", gib(peak), f"{distance(parts, truth):.1e}"])
    return rows


def _row(index):
    ids = torch.randint(SHAPES["tiny"][0]["vocab_size"], (32,), generator=torch.Generator().manual_seed(index))
    return f'{{"input_ids": {ids.tolist()}}}\n'


def _placements(device, model, home):
    """By name the keys of a recipe. Where the device is the host, what can be elsewhere is on disk."""
    there, else_ = str(device), "cpu" if device.type == "cuda" else "disk"
    layers = {f"model.layers.{i}": there if i % 2 else else_ for i in range(_LAYERS)}
    outside = dict.fromkeys(["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"], there)
    folder = {"model.offload_dir": str(home / "offloaded")}
    size = sum(p.nbytes for p in model.parameters())
    limits = {0: size * 3 // 4, "cpu": size // 4} if device.type == "cuda" else {"cpu": 3 * size}
    return {
        f"all on {device}": {"model.device_map": there},
        f"layers in turn on {device} and {else_}": {"model.device_map": {**outside, **layers}, **folder},
        f"all layers on disk, computed on {device}": {
            "model.device_map": {**outside, **dict.fromkeys(layers, "disk")},
            **folder,
        },
        f"auto, bounded to {limits}": {"model.device_map": "auto", "model.max_memory": limits, **folder},
        "sharded, one rank": {"model.placement": "fsdp"},
    }


def product_of(home, values, device):
    """(the parts of one exact product on the host, its name, seconds, peak bytes on the device)."""
    given = {
        "probe": "topk",
        "model.id": str(home / "model"),
        "data.id": str(home / "rows.jsonl"),
        "data.batch_size": 2,
        **values,
    }
    recipe, _ = resolve([("benchmark", given)])
    exact_arithmetic()
    subject = build_subject(recipe, on_event=ignore)
    space, choice = subject.risk.space, choose_operator(subject.risk, kind="hessian", product="layered", seed=0)
    v = space.random("gaussian", seed=0, index=0)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    choice.operator.matvec(v)
    space.norm(v)
    begun = time.perf_counter()
    product = choice.operator.matvec(v)
    space.norm(product)  # waits for the device
    seconds = time.perf_counter() - begun
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    parts = [space.whole(i, part).cpu().clone() for i, part in enumerate(product)]
    return parts, choice.product, seconds, peak
