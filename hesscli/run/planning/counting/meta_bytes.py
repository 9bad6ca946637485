"""Bytes of the tensors that a piece of work holds at its worst moment, counted on tensors without data.

A product runs through hess's own code on a model on torch's `meta` device: shapes are computed and storages made, but
no memory is taken and no arithmetic done. What is held beyond storages that were there before is counted as they come
and go, so nothing is assumed of an architecture. What depends on numbers is answered by rule: a test is true, every
position has a loss term, and tokens fall on experts evenly.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hesscli.run.planning.counting.course import Course
from hesscli.run.planning.counting.regions import Region, Regions

NAMES = WEIGHTS, VECTORS = "weights", "vectors"  # what is counted by name
_aten = torch.ops.aten
# Of operations that were seen, for all counts of a process: what a pure one returns for arguments of these forms,
# whether it is pure, and whether it makes tensors.
_forms: dict[Hashable, list[tuple[Any, ...]]] = {}
_pure: dict[Any, bool] = {}
_makes: dict[Any, bool] = {}


class MetaBytes(TorchDispatchMode):
    """Counts bytes of storages made under it and alive: now, and at the peak; by name what is made under a name.

    `num_experts` is that of a mixture, else 1, and `num_hit` how many of them run: all tokens go to those. No more
    than `most_positions` loss terms are looked at: the head takes them by chunks, and holds for three chunks what it
    holds for all. Seconds for a model of any width: about 30 microseconds an operation.
    """

    def __init__(self, *, num_experts: int, num_hit: int, most_positions: int, regions: Regions | None = None) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._regions = regions
        self._now = [[0] * (1 + len(NAMES)) for _ in range(1 if regions is None else regions.count)]
        self._worst, self._layer, self._times = [list(held) for held in self._now], -1, Counter[int]()
        self._stretches: dict[tuple[int, int], list[list[int]]] = {(-1, 0): self._worst}
        self._part = self._device = 0
        self._experts, self._hit, self._most_positions = num_experts, num_hit, most_positions
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._regions is None:
            return self._run(func, args, kwargs)
        self._go_to(self._regions.here())
        out = self._run(func, args, kwargs)
        self._regions.passed()
        return out

    def _run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        answer = self._answered(func.overloadpacket, args, kwargs)
        if answer is not None:
            return answer
        out = self._computed(func, args, kwargs)
        if _makes[func]:
            for leaf in out if isinstance(out, tuple | list) else (out,):
                if isinstance(leaf, torch.Tensor) and not leaf._is_zerotensor():  # which takes no memory
                    self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held or not size:
            return
        self.live += size
        self.peak = max(self.peak, self.live)
        device, part = self._device, self._part
        self._add(device, part, size)

        def release(_: object, key: int = key, size: int = size) -> None:
            del self._held[key]
            self.live -= size
            self._add(device, part, -size)

        self._held[key] = weakref.ref(storage, release)

    @property
    def course(self) -> Course:
        """Where regions are known: the worst moment in each layer, by device; of its bytes those that have a name."""
        return {place: np.array(held, np.int64) for place, held in self._stretches.items()}

    @property
    def left(self) -> Course:
        """What is held now."""
        return {(-1, 0): np.array(self._now, np.int64)}

    def __enter__(self) -> "MetaBytes":
        if self._regions is not None:
            self._regions.start()
        super().__enter__()
        return self

    def _add(self, device: int, part: int, size: int) -> None:
        now = self._now[device]
        now[0] += size
        if part:
            now[part] += size
        if now[0] > self._worst[device][0]:
            self._worst[device] = list(now)

    def _go_to(self, region: Region) -> None:
        self._device = region.device
        if region.layer not in (-1, self._layer):
            self._layer = region.layer
            self._worst = [list(held) for held in self._now]
            self._stretches[self._layer, self._times[self._layer]] = self._worst
            self._times[self._layer] += 1

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """For the block, what is made counts under this name too."""
        before, self._part = self._part, 1 + NAMES.index(name)
        try:
            yield
        finally:
            self._part = before

    def _answered(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What follows from numbers, by rule; None for any other operation."""
        rule = _RULES.get(op)
        given = next((a for a in args if isinstance(a, torch.Tensor)), None)
        if rule is None or given is None or given.device.type != "meta":
            return None
        return rule(self, given, args, kwargs)

    def _indices(self, x: torch.Tensor) -> torch.Tensor:
        """Of what is not zero: the experts that run, the tokens of one of them, or the positions with a term."""
        hit = self._hit
        if hit > 1 and x.dim() == 1 and x.numel() in (self._experts, self._experts + 1):
            return torch.arange(hit).unsqueeze(1)  # with data: the model goes through them in Python
        rows = -(-x.numel() // hit) if hit > 1 and x.dim() == 2 else min(x.numel(), self._most_positions)
        found = torch.empty((rows, x.dim()), dtype=torch.long, device="meta")
        self._count(found.untyped_storage())
        return found

    def _computed(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The operation on `meta`; of a pure one that was seen before with such arguments the form is known."""
        if func not in _pure:
            schema = func._schema
            # A view, of a weight say, and what is written in place take no memory.
            _makes[func] = all(part.alias_info is None for part in schema.returns)
            _pure[func] = _makes[func] and all(part.alias_info is None for part in schema.arguments)
        if not _pure[func]:
            return func(*args, **kwargs)
        try:
            key = (func, _form(args), tuple((name, _form(value)) for name, value in kwargs.items()))
            known = _forms.get(key)
        except TypeError:  # an argument without a hash
            return func(*args, **kwargs)
        if known is not None:
            made = [torch.empty_strided(*form[:2], dtype=form[2], device="meta") for form in known]
            return made[0] if len(made) == 1 else tuple(made)
        out = func(*args, **kwargs)
        leaves = out if isinstance(out, tuple) else (out,)
        if all(map(_is_plain, leaves)) and not (isinstance(out, tuple) and len(out) == 1):
            _forms[key] = [(tuple(leaf.shape), leaf.stride(), leaf.dtype) for leaf in leaves]
        return out


def _is_plain(leaf: Any) -> bool:
    """A tensor on `meta` and no zero of forward mode, which takes no memory and is told by a mark."""
    return isinstance(leaf, torch.Tensor) and leaf.device.type == "meta" and not leaf._is_zerotensor()


def _form(value: Any) -> Hashable:
    """What decides the shape of a result: of a tensor its own, of anything else itself."""
    if isinstance(value, torch.Tensor):
        if value._is_zerotensor():
            raise TypeError
        return (tuple(value.shape), value.stride(), value.dtype, value.device.type)
    if isinstance(value, list | tuple):
        return tuple(_form(part) for part in value)
    return (type(value), value)


def _scalar(x: torch.Tensor) -> bool | float | int:
    return True if x.dtype == torch.bool else 1.0 if x.is_floating_point() else 1


def _on_the_host(
    mode: MetaBytes,  # noqa: ARG001 - as every rule
    x: torch.Tensor,
    args: Sequence[Any],  # noqa: ARG001
    kwargs: Mapping[str, Any],
) -> torch.Tensor | None:
    """A copy to the host, as inner products make, is of ones."""
    if kwargs.get("device") != torch.device("cpu"):
        return None
    return torch.ones(x.shape, dtype=kwargs.get("dtype") or x.dtype)


_Rule = Callable[[MetaBytes, torch.Tensor, Sequence[Any], Mapping[str, Any]], Any]
_RULES: dict[Any, _Rule] = {
    _aten.all: lambda mode, x, args, kwargs: torch.tensor(True) if len(args) == 1 else None,  # noqa: ARG005
    _aten.any: lambda mode, x, args, kwargs: torch.tensor(True) if len(args) == 1 else None,  # noqa: ARG005
    _aten.equal: lambda mode, x, args, kwargs: True,  # noqa: ARG005
    _aten.allclose: lambda mode, x, args, kwargs: True,  # noqa: ARG005
    _aten._local_scalar_dense: lambda mode, x, args, kwargs: _scalar(x),  # noqa: ARG005
    _aten.nonzero: lambda mode, x, args, kwargs: mode._indices(x),  # noqa: ARG005
    _aten._to_copy: _on_the_host,
}
