"""Tensors as a safetensors file, written one by one.

The library's own writer takes the bytes of all tensors before it writes the first: a second copy of the model on the
host.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from hesscli.linalg.mapped import release

_DTYPES = {torch.float32: "F32", torch.float64: "F64"}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write eight bytes of length, a header in JSON, then each tensor's numbers: one at a time is on the host.

    The format is that of https://github.com/huggingface/safetensors#format, with the header's keys in order.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            array = tensor.detach().cpu().contiguous().numpy()
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
            release(tensor)
