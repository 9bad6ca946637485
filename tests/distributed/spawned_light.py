"""What ranks do in tests that need no model; such processes start in half the time."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch

from hesscli.errors import UsageError


def agreeing(ranks):
    """What collectives make of numbers that differ from rank to rank."""
    shapes = [(7, 3), (1,), (4, 2, 2)]
    wholes = [torch.arange(float(np.prod(s))).reshape(s) for s in shapes]
    own = [w[ranks.rows(len(w))] for w in wholes]
    sums = ranks.sum_shards([w * (ranks.rank + 1) for w in wholes])()
    factor = ranks.size * (ranks.size + 1) // 2
    return {
        "sum": ranks.sum(np.array([0.1 * (ranks.rank + 1), 1.0])).tobytes(),
        "least": ranks.least(10 - ranks.rank),
        "agreed": ranks.agreed(ranks.rank),
        "whole": all(torch.equal(a, b) for a, b in zip(ranks.whole(own, shapes), wholes, strict=True)),
        "sums": all(torch.equal(a, factor * b) for a, b in zip(sums, own, strict=True)),
        "rows": [len(part) for part in own],
    }


def raising(found, kind):
    """One rank fails, in one way or another, while the others wait for it."""
    if found.rank == 1:
        if kind == "usage":
            raise UsageError("estimator.k", "too many", "ask for fewer")
        os.kill(os.getpid(), signal.SIGKILL)
    found.sum(np.ones(1))
    found.sum(np.ones(1))


def waiting(found, folder):
    """Leave this process's number, and wait for what does not come."""
    (Path(folder) / f"{found.rank}.{os.getpid()}").touch()
    time.sleep(120)
