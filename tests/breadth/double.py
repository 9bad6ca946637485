"""Models that are float64 all through, so that differences and rounding can be told apart."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


class _Float64ForFloat32(TorchFunctionMode):
    """Norms, rotary angles, softmaxes and routers are written to go through float32 whatever the model's type."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            return args[0].double()
        args = [torch.float64 if a is torch.float32 else a for a in args]
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return function(*args, **kwargs)


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Within it, what asks for float32 by name or by default gets float64."""
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64ForFloat32():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
