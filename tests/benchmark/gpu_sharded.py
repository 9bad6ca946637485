"""What a process of the benchmark's sharded row runs; it stands where `on_ranks` finds it."""

from pathlib import Path

from gpu.elsewhere import product_of


def shared_product(_ranks, home, values, device):
    """The product of `product_of`, of one rank's shards."""
    return product_of(Path(home), values, device)
