"""What a second process gives: seconds, what is sent, and memory of a product over processes with one thread each."""

import gc
import os
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "distributed")]

from spawned import on_ranks  # noqa: E402 - stands with the tests

COLUMNS = ["model", "product", "processes", "seconds", "speed-up", "MiB sent", "peak MiB of one", "relative difference"]
LEGEND = [
    "processes with one thread each; one process is hess without torchrun, several are FSDP2 over gloo",
    "2 apart: two processes that have the whole model and half the rows each, and send nothing: what cores and memory "
    "of this machine permit",
    "sent: whole all-gathers and reduce-scatters of weights, vectors and results, for one product; sums of scalars are "
    "not in it",
    "peak: resident set while the product is made, of the process that has the most; the interpreter, its libraries "
    "and the weights are in it (the first line says how much that is for the whole model)",
    "relative difference of u.Hv, for a random u, from one process",
]
_APART = "2 apart"
_SETTINGS = {"1": (1, True), _APART: (2, False), "2": (2, True)}  # how many processes, and whether they share
_PATIENCE = 3600


def scaling_rows(name, repeats, *, say):
    """Rows for a subject by name: a gradient, a central difference and an exact product on 1 and 2 processes."""
    rows = [[name, "nothing: libraries and model", "1", "", "", "", f"{on_ranks(1, resting, name)[0]:.0f}", ""]]
    found = {}
    for setting, (count, shared) in _SETTINGS.items():
        say(f"{name}: {setting} {'process' if count == 1 else 'processes'}")
        found[setting] = on_ranks(count, products, name, repeats, shared, seconds=_PATIENCE)
    for what, first in found["1"][0].items():
        for setting in _SETTINGS:
            seconds, sent, form, _ = found[setting][0][what]
            peak = max(one[what][3] for one in found[setting])
            apart = f"{abs(form - first[2]) / abs(first[2]):.0e}" if setting == "2" else ""
            cells = [f"{seconds:.3f}", f"{first[0] / seconds:.2f}", f"{sent / 2**20:.1f}", f"{peak:.0f}", apart]
            rows.append([name, what, setting, *cells])
    return rows


def resting(_ranks, name):
    """The resident set with the libraries and the model, and nothing done yet, in MiB."""
    from subjects import SUBJECTS

    subject = SUBJECTS[name]()
    _forget_peak()
    peak = _peak()
    del subject
    return peak


def products(ranks, name, repeats, shared):
    """By product: (median seconds, bytes sent, u.Hv, peak MiB), of processes that share the model or the rows alone."""
    from traffic import Traffic

    risk, exact = _risk(ranks, name, shared)
    from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator

    space = risk.space
    u, v = (space.random("gaussian", seed=0, index=i) for i in range(2))
    space.scale(1.0 / space.norm(v), v)
    differences = FiniteDifferenceOperator(risk, scheme="central")
    wanted = {
        "gradient": risk.gradient,
        "finite difference": lambda: differences.matvec(v),
        "exact, layer by layer": lambda: exact.matvec(v),
    }
    found = {}
    for what, make in wanted.items():
        form = space.inner(u, make())  # and warms up
        with Traffic() as seen:
            make()
        seconds = []
        gc.collect()
        _forget_peak()
        for _ in range(repeats):
            ranks.sum(space.inners(v, v))  # all begin together
            begun = time.perf_counter()
            make()
            seconds.append(time.perf_counter() - begun)
        found[what] = statistics.median(seconds), sum(seen.bytes.values()), form, _peak()
    return found


def _risk(ranks, name, shared):
    """The risk and its exact product, on one process or over several, or of one's own rows."""
    from subjects import SUBJECTS

    from hesscli.checkpoint.sharding import shard, to_device, without_weights
    from hesscli.curvature.layers.layered import LayeredOperator
    from hesscli.curvature.sharded.layered import ShardedLayeredOperator
    from hesscli.curvature.sharded.risk import ShardedRisk
    from hesscli.curvature.sharded.rows import own_batches

    os.environ["WORLD_SIZE"] = "1"  # each builds the whole model here, and lets it go
    subject = SUBJECTS[name]()
    if ranks.size == 1 or not shared:
        risk = subject.risk()
        risk = risk.on(own_batches(risk.batches, ranks))
        return risk, LayeredOperator(risk, risk._stack)
    model = without_weights(subject.model)
    bare = without_weights(model)
    to_device(bare, ranks)
    shard(model, subject.model if ranks.rank == 0 else None, ranks, reads={})
    named = dict(model.named_parameters())
    risk = ShardedRisk(
        model,
        [subject.batch],
        names=list(named),
        parameters=list(named.values()),
        input_device=ranks.device,
        ranks=ranks,
        bare=bare,
    )
    return risk, ShardedLayeredOperator(risk, risk.swept.find_stack())


def _peak():
    """The largest resident set since it was forgotten, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def _forget_peak():
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew from what is resident now
