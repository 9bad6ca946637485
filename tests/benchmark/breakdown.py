"""Where the time of a product goes: into matrix products, other operations, or what is between them."""

import gc
import time

from products import PRODUCTS, SHARED, TOGETHER, gradient
from torch.profiler import ProfilerActivity, profile

COLUMNS = ["model", "product", "matrix products, ms", "other operations, ms", "between them, ms", "operations"]
LEGEND = [
    "wall-clock time of the fastest of {repeats} turns; in brackets over the gradient: a row adds up to its ratio",
    "between them: Python, autograd's engine, and torch's profiler, which makes this larger than it is without",
    "by the units of the method a layered product is 4.00 gradients, and 2.83 each of 8 at once",
]

_MATRIX_PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"}


def breakdown_rows(subject, repeats, *, say):
    """A row for the gradient and for each of hess's products."""
    v = subject.direction()
    run = {"gradient": gradient(subject)}
    run |= {name: make(subject, v) for name, (make, package, _) in PRODUCTS.items() if package == "hesscli"}
    found = {name: [] for name in run}
    for function in run.values():
        function()  # warms up, and calibrates
    for turn in range(repeats):
        say(f"{subject.name}: profile, turn {turn + 1} of {repeats}")
        for name, function in run.items():
            found[name].append([x / (TOGETHER if name == SHARED else 1) for x in _parts(function)])
    best = {name: min(turns, key=lambda turn: sum(turn[:3])) for name, turns in found.items()}
    unit = sum(best["gradient"][:3])
    return [
        [subject.name, name, *(f"{1e3 * x:.1f} ({x / unit:.2f})" for x in times), f"{count:.0f}"]
        for name, (*times, count) in best.items()
    ]


def _parts(function):
    """Seconds in matrix products, in other operations and in what is left, and the number of operations."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        start = time.perf_counter()
        function()
        whole = time.perf_counter() - start
    operations = [event for event in seen.key_averages() if event.key.startswith("aten::")]
    inside = sum(event.self_cpu_time_total for event in operations) / 1e6
    products = sum(event.self_cpu_time_total for event in operations if event.key in _MATRIX_PRODUCTS) / 1e6
    return products, inside - products, whole - inside, sum(event.count for event in operations)
