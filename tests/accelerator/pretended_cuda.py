"""The tests of a GPU that ask nothing of CUDA itself, on a pretended device: what a GPU runs, every machine has tried.

Run in a process of its own by `test_second_device.py`.
"""

import pretend
import pytest
import test_cuda
import torch

pretend.register()


@pytest.fixture
def device():
    return torch.device("pretend:0")


_CUDAS_OWN = ("memory", "nccl")
globals().update(
    {
        name: test
        for name, test in vars(test_cuda).items()
        if name.startswith("test_") and not any(word in name for word in _CUDAS_OWN)
    }
)
