"""Checks that all products are of the same matrix, then times them in turns."""

import gc
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import median

import torch
from products import PRODUCTS, SHARED, TOGETHER, gradient


@dataclass
class Row:
    """One product on one subject."""

    name: str
    seconds: list = field(default_factory=list)
    difference: float | None = None
    """From hess's product with the graph made again, in its norm; None where there is nothing to compare."""
    reason: str | None = None
    """Why it was not timed."""


def _distance(result, truth):
    parts = result.split([t.numel() for t in truth]) if torch.is_tensor(result) else result
    pairs = zip(parts, truth, strict=True)
    squares = sum(float((p.detach().reshape(-1) - t.reshape(-1)).double().square().sum()) for p, t in pairs)
    return (squares / sum(float(t.double().square().sum()) for t in truth)) ** 0.5


def in_short(error):
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200].replace("|", "/")


def measure(subject, repeats, *, clock, say):
    """The rows of a subject, the gradient first. One turn times every product once, so that drift meets all."""
    v = subject.direction()
    run = {"gradient": gradient(subject)}
    rows = {"gradient": Row("gradient")}
    truth = None
    for name, (make, package, bound) in PRODUCTS.items():
        say(f"{subject.name}: checking {name}")
        rows[name] = row = Row(name)
        if find_spec(package) is None:
            row.reason = "not installed"
            continue
        try:
            product = make(subject, v)
            result = product()
        except Exception as error:  # whatever a peer raises on this model is its row
            if truth is None:
                raise
            row.reason = in_short(error)
            continue
        if truth is None:
            truth = result
        else:
            row.difference = _distance(result, truth)
            if not row.difference <= bound:
                row.reason = f"differs by more than {bound:g}"
                continue
        run[name] = product
    del truth
    run["gradient"]()
    for turn in range(repeats):
        say(f"{subject.name}: turn {turn + 1} of {repeats}")
        for name, function in run.items():
            gc.collect()
            start = clock()
            function()
            rows[name].seconds.append((clock() - start) / (TOGETHER if name == SHARED else 1))
    return list(rows.values())


def cells(row, unit):
    """Seconds, gradients, their range and the difference of a row, as text; `unit` is the gradient's row."""
    difference = "" if row.difference is None else f"{row.difference:.1e}"
    if row.reason is not None:
        return [row.reason, "", "", difference]
    ratios = [s / u for s, u in zip(row.seconds, unit.seconds, strict=True)]
    spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
    return [f"{median(row.seconds):.4f}", f"{median(ratios):.2f}", spread, difference]
