"""What ranks do to load checkpoints from files that the first one alone can see."""

import gc
import json
import os
from pathlib import Path

import torch
from models import whole_vector

from hesscli.recipe.document import resolve
from hesscli.run.setup import build_subject


def loading(ranks, place, models):
    """By name: the resident set that loading takes at its worst, in bytes, and the whole weights by their names."""
    if ranks.rank:  # another machine: another folder, and nothing of the first one's
        os.environ["HF_HOME"] = "/none"
        alone = Path(place) / f"machine-{ranks.rank}"
        alone.mkdir()
        os.chdir(alone)
    else:
        os.chdir(place)
    return {name: _loaded(ranks, model) for name, model in models.items()}


def _loaded(ranks, model):
    given = {"model.id": "./none", "data.id": "rows.jsonl", "output.plots": "none", "probe": "trace"} | model
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew from what is resident now
    before = _status("VmRSS")
    risk = build_subject(resolve([("test", given)])[0], on_event=lambda _event: None).risk
    peak = _status("VmHWM") - before
    whole = whole_vector(risk.space, [p.detach() for p in risk.parameters])
    return peak, dict(zip(risk.space.names, whole, strict=True)) if ranks.rank == 0 else None


def _status(key):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def write_rows(file):
    """Two rows of token ids."""
    rows = [torch.arange(9).add(k).tolist() for k in range(2)]
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
