"""The parts of the benchmark on a device, each with its table, within one span of time."""

import torch
from tables import write_table

from gpu import elsewhere, largest, products
from gpu.meter import Meter

PARTS = ("products", "largest", "elsewhere")
SECONDS = 540.0


def run_parts(device, parts, *, repeats, seconds, say):
    """Write the tables of these parts: at full size on a GPU, tiny on the host."""
    device = torch.device("cuda", 0) if device == "cuda" else torch.device(device)
    shape = "qwen3-1.7b" if device.type == "cuda" else "tiny"
    meter = Meter(device, seconds)
    if "products" in parts:
        rows = products.product_rows(meter, shape, repeats, say=say)
        write_table(products.COLUMNS, rows, products.legend(shape, repeats))
    meter.clear()
    if "largest" in parts:
        room = None if device.type == "cuda" else 1 << 20
        free = meter.free if room is None else room
        write_table(largest.COLUMNS, largest.largest_rows(meter, shape, room=room, say=say), largest.legend(free))
    meter.clear()
    if "elsewhere" in parts:
        write_table(elsewhere.COLUMNS, elsewhere.elsewhere_rows(meter, say=say), elsewhere.LEGEND)
