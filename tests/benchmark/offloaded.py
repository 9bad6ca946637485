"""What a product costs whose layers stay in their files, beside the same with all weights in memory."""

import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "distributed")]

from scaling import _forget_peak, _peak  # noqa: E402 - found beside the tests
from spawned import on_ranks  # noqa: E402

COLUMNS = [
    "weights MiB",
    "where",
    "bound MiB",
    "seconds",
    "seconds of the processor",
    "peak MiB above libraries",
    "u.Hv",
]
LEGEND = [
    "one exact product, layer by layer, of one row of 24 tokens, the median of the turns; one thread",
    "fetched: layers in the checkpoint's files, the vectors in files too; the pages of both may be in the system's "
    "cache, so no disk is timed",
    "above libraries: resident set at its worst while the checkpoint is loaded and products are made, less what it was "
    "after the same with a model of two layers",
    "u.Hv for a random u: the same digits, or the rows are not of one matrix",
]
_LAYERS, _MIB = 48, 4  # 192 MiB of weights in layers
_BOUNDS = (None, 96, 48)  # MiB; None is all in memory
_PATIENCE = 3600


def offloaded_rows(repeats, *, say):
    """A row in memory, and one for each bound."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="hess-benchmark-") as folder:
        (size,) = on_ranks(1, save, folder)
        for bound in _BOUNDS:
            say(f"offloaded: {'in memory' if bound is None else f'bound of {bound} MiB'}")
            (found,) = on_ranks(1, products, folder, bound, repeats, seconds=_PATIENCE)
            wall, processor, peak, form = found
            where = ["in memory", ""] if bound is None else ["fetched", str(bound)]
            rows.append([f"{size:.0f}", *where, f"{wall:.2f}", f"{processor:.2f}", f"{peak:.0f}", f"{form:.9e}"])
    return rows


def save(_ranks, folder):
    """Save a large and a small checkpoint; the MiB of the large one's weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, layers in (("small", 2), ("large", _LAYERS)):
        torch.manual_seed(0)
        wide = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "tie_word_embeddings": True}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **wide, num_hidden_layers=layers, initializer_range=0.05))
        model.save_pretrained(Path(folder) / name)
    return sum(p.nbytes for p in model.parameters()) / 2**20


def products(_ranks, folder, bound, repeats):
    """(seconds, seconds of the processor, peak MiB above libraries, u.Hv) of a product under a bound in MiB."""
    from hesscli.run.environment import exact_arithmetic

    exact_arithmetic()
    _made(folder, "small", bound, 1)
    gc.collect()
    _forget_peak()
    before = _peak()
    wall, processor, form = _made(folder, "large", bound, repeats)
    return wall, processor, _peak() - before, form


def _made(folder, name, bound, repeats):
    import torch
    from loading import LOADING

    from hesscli.checkpoint import load_checkpoint
    from hesscli.curvature.choice import choose_operator
    from hesscli.curvature.layers.layered_risk import LayeredRisk
    from hesscli.curvature.layers.offloaded import Offloaded
    from hesscli.curvature.risk import EmpiricalRisk
    from hesscli.data import Sequence, Slice

    where = {"device_map": None, "max_memory": None, "offload_dir": None}
    if bound is not None:  # the small one fits any bound, and is to be fetched too
        limit = {"device_map": None, "max_memory": {"cpu": f"{bound}MiB"}}
        where = {"offload_dir": folder, **(limit if name == "large" else {"device_map": "disk", "max_memory": None})}
    loaded = load_checkpoint(str(Path(folder) / name), **LOADING | where)
    named = dict(loaded.model.named_parameters())
    given = {"names": list(named), "parameters": list(named.values())}
    ids = torch.arange(24) * 7 % 64
    row = Sequence({"input_ids": ids}, torch.cat([ids[1:], torch.tensor([-100])]))
    batches = list(Slice((row,), id="row").batches(1))
    if bound is None:
        risk = EmpiricalRisk(loaded.model, batches, **given, input_device=torch.device("cpu"))
    else:
        residence = Offloaded(loaded.model, loaded.reads, **given, folder=loaded.offload_folder)
        risk = LayeredRisk(loaded.model, batches, **given, input_device=torch.device("cpu"), residence=residence)
    operator = choose_operator(risk, kind="hessian", product="layered", seed=0).operator
    u, v = (risk.space.random("gaussian", seed=0, index=i) for i in range(2))
    form = risk.space.inner(u, operator.matvec(v))  # and warms up
    seconds, processor = [], []
    for _ in range(repeats):
        begun, used = time.perf_counter(), time.process_time()
        operator.matvec(v)
        seconds.append(time.perf_counter() - begun)
        processor.append(time.process_time() - used)
    return statistics.median(seconds), statistics.median(processor), form
