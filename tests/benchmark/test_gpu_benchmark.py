"""The benchmark for a GPU runs on a machine without one, tiny: nothing in it is untried but the device."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from gpu.meter import Meter  # noqa: E402 - the benchmark is no package


def tables(text):
    """The rows of each Markdown table, as dictionaries."""
    found = []
    for block in text.split("\n\n"):
        lines = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("|")]
        if lines:
            cells = [[cell.strip() for cell in line] for line in lines]
            found.append([dict(zip(cells[0], row, strict=False)) for row in cells[2:]])
    return found


@pytest.mark.slow
def test_all_parts_run_on_the_host_and_their_products_agree():
    command = [sys.executable, HERE, "--what", "gpu", "--device", "cpu", "--repeats", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    products, largest, elsewhere = tables(ended.stdout)
    assert len(products) == 16
    limits = {"central differences": 1e-2, "forward differences": 1e-1}
    for row in products:
        assert float(row["seconds"]) > 0
        assert float(row["peak GiB"]) > 0
        if row["product"] not in ("gradient", "layered"):
            limit = 0.1 if row["dtype"] == "bfloat16" else limits.get(row["product"], 1e-5)
            assert float(row["relative difference"]) < limit, row
    assert [row["layered product"] for row in largest] in (["fits", "does not fit"], ["does not fit", "fits"])
    assert float(largest[0]["peak GiB"]) == pytest.approx(float(largest[0]["predicted GiB"]), rel=0.2)
    assert len(elsewhere) == 5
    assert all(float(row["relative difference"]) < 1e-5 for row in elsewhere)


def test_lack_of_memory_is_a_row_and_leaves_nothing_behind():
    meter = Meter(torch.device("cpu"), 60.0)

    def make():
        held = torch.zeros(1 << 16)
        raise torch.OutOfMemoryError(f"CUDA out of memory beside {held.nbytes} bytes")

    assert meter.measured(make, repeats=1).reason == "out of memory"
    with pytest.raises(ValueError, match="a fault"):
        meter.measured(lambda: raising(ValueError("a fault")), repeats=1)


def raising(error):
    raise error


def test_nothing_is_begun_after_the_time_is_up():
    meter = Meter(torch.device("cpu"), 0.0)
    time.sleep(0.001)
    assert meter.measured(lambda: raising(ValueError("begun")), repeats=1).reason == "not begun: the time is up"


def test_the_peak_is_of_what_is_made_and_what_was_there():
    there = torch.zeros(1000)
    found = Meter(torch.device("cpu"), 60.0).measured(lambda: lambda: there + there + there, repeats=2, known=[there])
    assert found.peak == 3 * there.nbytes
    assert found.seconds > 0
