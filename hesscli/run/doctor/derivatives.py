"""Second derivatives of the operations that models are made of: tried on each device, not looked up.

Truth is a second difference of the values in float64, which uses no derivative of torch's at all.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import grad, jvp
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesscli.run.doctor.document import Answer, Tried

_STEP = 1e-3  # of a second difference in float64: 1e-6 by its order, 1e-10 by rounding
_AGREES = {torch.float32: 1e-3, torch.bfloat16: 0.1}
_SHAPE = (2, 6, 8)  # heads, tokens, channels
_TARGETS = [1, 3, 0, 7, 5, 2] * 2

Operation = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Subject:
    name: str
    run: Operation
    relied_on: bool = True
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    truth: Operation | None = None
    """What gives the same values where `run` has no float64."""


def derivatives(device: torch.device) -> Iterator[Tried]:
    """Try each operation on a device: a few milliseconds each."""
    for subject in _subjects(device):
        yield _tried(subject, device)


def _eager_attention(x: torch.Tensor) -> torch.Tensor:
    weights = torch.softmax(x @ x.roll(1, -1).transpose(-1, -2) / x.shape[-1] ** 0.5, dim=-1)
    return weights @ x.roll(2, -1)


def _fused_attention(x: torch.Tensor) -> torch.Tensor:
    q, k, v = (y[None] for y in (x, x.roll(1, -1), x.roll(2, -1)))
    return functional.scaled_dot_product_attention(q, k, v)[0]


def _cross_entropy(x: torch.Tensor) -> torch.Tensor:
    targets = torch.tensor(_TARGETS, device=x.device)
    return functional.cross_entropy(x.flatten(0, 1), targets, reduction="none")


def _subjects(device: torch.device) -> list[_Subject]:
    def restricted(backend: SDPBackend) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: sdpa_kernel(backend)

    fused = [("flash", SDPBackend.FLASH_ATTENTION)]
    if device.type == "cuda":
        fused += [("memory-efficient", SDPBackend.EFFICIENT_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)]
    attention = [
        _Subject("attention, eager", _eager_attention),
        _Subject("attention, sdpa math", _fused_attention, context=restricted(SDPBackend.MATH), truth=_eager_attention),
        *(
            _Subject(f"attention, sdpa {name}", _fused_attention, False, restricted(backend), _eager_attention)
            for name, backend in fused
        ),
    ]
    plain: dict[str, Operation] = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu, tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "relu": functional.relu,
        "relu squared": lambda x: functional.relu(x).square(),
        "softplus": functional.softplus,
        "softmax": lambda x: torch.softmax(x, dim=-1),
        "layer norm": lambda x: functional.layer_norm(x, x.shape[-1:]),
        "rms norm": lambda x: functional.rms_norm(x, x.shape[-1:]),
        "cross-entropy": _cross_entropy,
        "convolution": lambda x: functional.conv1d(x, x[:, :, :3]),
    }
    return [*attention, *(_Subject(name, run) for name, run in plain.items())]


def _tried(subject: _Subject, device: torch.device) -> Tried:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(_SHAPE, generator=generator).sign()
    x = signs * (0.2 + torch.rand(_SHAPE, generator=generator))  # away from the kink of a relu
    v = torch.randn(_SHAPE, generator=generator)
    truth = _second_difference(subject.truth or subject.run, x.double(), v.double())
    best: tuple[Tried, int] | None = None
    for dtype in (torch.float32, torch.bfloat16):  # fused kernels of a GPU may have the narrow one alone
        found = [_by(way, subject, x.to(device, dtype), v.to(device, dtype)) for way in (_double_backward, _forward)]
        answers = [_answer(value, truth, dtype) for value, _ in found]
        tried = Tried(
            operation=subject.name,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            double_backward=answers[0][0],
            forward_mode=answers[1][0],
            errors=(answers[0][1], answers[1][1]),
            relied_on=subject.relied_on,
            reason=next((why for _, why in found if why), ""),
        )
        worked = sum(answer == "yes" for answer, _ in answers)
        if best is None or worked > best[1]:
            best = tried, worked
        if worked == len(answers) or subject.relied_on:
            break
    assert best is not None
    return best[0]


def _scalar(run: Operation) -> Operation:
    def weighted(x: torch.Tensor) -> torch.Tensor:
        y = run(x)
        weights = torch.linspace(-1.0, 2.0, y.numel(), dtype=torch.float64).to(y.device, y.dtype)
        return (y.reshape(-1) * weights).sum()

    return weighted


def _second_difference(run: Operation, x: torch.Tensor, v: torch.Tensor) -> float:
    s = _scalar(run)
    return float((s(x + _STEP * v) - 2 * s(x) + s(x - _STEP * v)) / _STEP**2)


def _double_backward(run: Operation, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    (first,) = torch.autograd.grad(run(x), x, create_graph=True)
    if not first.requires_grad:  # piecewise linear
        return torch.zeros_like(x)
    (second,) = torch.autograd.grad(first, x, v, allow_unused=True, materialize_grads=True)
    return second


def _forward(run: Operation, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = jvp(grad(run), (x,), (v,))[1]
    return product


def _by(
    way: Callable[[Operation, torch.Tensor, torch.Tensor], torch.Tensor],
    subject: _Subject,
    x: torch.Tensor,
    v: torch.Tensor,
) -> tuple[float | None, str]:
    try:
        with subject.context():
            return float((v.double() * way(_scalar(subject.run), x, v).double()).sum()), ""
    except (RuntimeError, NotImplementedError) as error:
        return None, " ".join(str(error).split())[:160]


def _answer(value: float | None, truth: float, dtype: torch.dtype) -> tuple[Answer, float | None]:
    if value is None:
        return "no", None
    error = abs(value - truth) / max(abs(truth), 1.0)
    return ("yes" if error <= _AGREES[dtype] else "wrong"), error
