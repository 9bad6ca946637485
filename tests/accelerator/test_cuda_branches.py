"""What hess asks of CUDA and of the processes beside it, with answers that are given here: no GPU is needed."""

import pytest
import torch

from hesscli.checkpoint.memory import available_bytes
from hesscli.distributed import meeting
from hesscli.errors import UsageError
from hesscli.run.faults import is_out_of_memory
from hesscli.run.planning.devices import found_devices


@pytest.fixture
def two_gpus(monkeypatch):
    """The answers of a machine with two GPUs of 80 bytes; 30 are free of the second."""
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "mem_get_info": lambda device: (50 - 20 * device.index, 80),
        "memory_reserved": lambda device: 12,
        "memory_allocated": lambda device: 5,
        "set_device": lambda device: None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)


def test_memory_that_the_allocator_holds_unused_is_free(two_gpus):
    assert available_bytes(torch.device("cuda", 0)) == 50 + 12 - 5
    assert available_bytes(torch.device("cuda", 1)) == 30 + 12 - 5
    found = found_devices()
    assert (found.count, found.bytes_each) == (2, 37)


def test_each_process_has_the_gpu_of_its_number(two_gpus, monkeypatch):
    for number in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(number))
        assert meeting._own_device() == torch.device("cuda", number)
    monkeypatch.delenv("LOCAL_RANK")
    assert meeting._own_device() == torch.device("cuda", 0)


def test_more_processes_than_gpus_are_one_line(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match=r"ranks: process 2 of this machine has no GPU of its own: it finds 2; lower"):
        meeting._own_device()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=["torch", "driver", "cublas", "cudnn"],
)
def test_every_way_in_which_cuda_says_that_memory_is_out_is_heard(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
