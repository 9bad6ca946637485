"""A second kind of device on a machine that has none: `pretend:0` and `pretend:1`, whose memory is the host's.

torch leaves one kind of device to others (PrivateUse1) and lets Python be its backend. Tensors of it are tensors like
any: autograd, torch.func, forward mode and accelerate see a device that is not the host. Each operation runs on the
host's kernels over the same memory, so that results are the host's bit for bit; before it runs it must not mix
devices, by the rules of CUDA. Memory that was not written yet is NaN. What passes between devices is recorded.

It shows where tensors are and what they meet there. A copy that is not to block, on a stream of its own, is made when
somebody waits for it and not before: who reads too early finds NaN, and who writes its source too early sends that. It
does not show pinned memory, kernels of a device, rounding that differs, or how much memory a device has. To register it
changes the process for good: it is for processes of their own.
"""

import ctypes
import threading
import types
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME, COUNT = "pretend", 2
_HOST, _EXTENSION = 1, 12  # dlpack.h: kDLCPU, kDLExtDev
# Where CUDA takes tensors of the host beside its own: indices, which it copies, and numbers in place of scalars.
_INDEXING = {"index.Tensor", "index.Tensor_out", "index_put_.default", "index_put.default", "_index_put_impl_.default"}
_SCALARS = {"masked_fill_.Tensor", "masked_fill.Tensor", "fill_.Tensor", "where.self", "where.self_out"}
_library = []  # registrations live as long as their library


@dataclass(frozen=True)
class Transfer:
    """A copy from one device to another."""

    source: torch.device
    target: torch.device
    nbytes: int


class _DLDevice(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("index", ctypes.c_int32)]


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device", _DLDevice)]


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_transfers = []


@contextmanager
def recorded():
    """The transfers within the block, as they are made."""
    found = []
    _transfers.append(found)
    try:
        yield found
    finally:
        _transfers.remove(found)


def _relabelled(tensor, kind, index):
    """A tensor over the same memory, which says that it is elsewhere."""
    capsule = torch._C._to_dlpack(tensor)
    device = _DLTensor.from_address(_pointer(capsule, b"dltensor")).device
    device.type, device.index = kind, index
    return torch._C._from_dlpack(capsule)


def _on_host(tensor):
    if not tensor.numel():  # of its own, for an operation may make it larger
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    plain = tensor.resolve_conj().resolve_neg() if tensor.is_complex() else tensor
    return _relabelled(plain.detach(), _HOST, 0)


def _on_device(tensor, device):
    return _relabelled(tensor, _EXTENSION, device.index or 0)


def _is_pretend(x):
    return isinstance(x, torch.Tensor) and x.device.type == NAME


@cache
def _known(op):
    """Of an operation: its name, whether numbers may stand for tensors, and which arguments are one tensor."""
    name = op._schema.name.removeprefix("aten::") + "." + (op._overloadname or "default")
    single = [a.name if str(a.type) == "Tensor" else None for a in op._schema.arguments]
    return name, torch.Tag.pointwise in op.tags or name in _SCALARS, single


def _place(op, tensors):
    """The one device of an operation, None without a tensor. Raises RuntimeError where its tensors are on several."""
    name, scalars, _ = _known(op)
    devices = {x.device for x in tensors if x.device.type == NAME}
    for x in tensors:
        if x.device.type == NAME or (scalars and x.dim() == 0):
            continue
        if name in _INDEXING and x is not tensors[0] and not x.is_floating_point():
            _note(x, next(iter(devices)))
        else:
            devices.add(x.device)
    if len(devices) > 1:
        found = " and ".join(sorted(map(str, devices)))
        raise RuntimeError(f"Expected all tensors to be on the same device, but {op} found {found}")
    return next(iter(devices)) if devices else None


def _note(source, target):
    for found in _transfers:
        found.append(Transfer(source.device, torch.device(target), source.numel() * source.element_size()))


def _run(op, *args, **kwargs):
    """Any operation: on the host, over the memory of the tensors it was given."""
    tensors = [x for x in _flat([*args, *kwargs.values()]) if isinstance(x, torch.Tensor)]
    asked = kwargs.get("device")
    device = _place(op, tensors) or (asked if asked is not None and asked.type == NAME else None)
    if device is None:
        raise RuntimeError(f"{op} came to the pretended device without a tensor or a device of it")
    hosts = {id(x): _on_host(x) if x.device.type == NAME else x for x in tensors}
    like, single = next(iter(hosts.values()), None), _known(op)[2]

    def given(x, name=None):
        if isinstance(x, torch.Tensor):
            return hosts[id(x)]
        if isinstance(x, (list, tuple)):
            return [given(y) for y in x]
        if isinstance(x, torch.device):
            return torch.device("cpu") if x.type == NAME else x
        if name is not None and isinstance(x, (bool, int, float, complex)):  # a tensor, before Python looked at it
            return torch.tensor(x, dtype=None if like is None else torch.result_type(like, x))
        return x

    out = op(
        *(given(x, name) for x, name in zip(args, single, strict=False)),
        **{key: given(x, key if key in single else None) for key, x in kwargs.items()},
    )
    for x in tensors:
        if x.shape != hosts[id(x)].shape:  # an output that was given empty, and was made to fit
            x.resize_(hosts[id(x)].shape)
            _on_host(x).copy_(hosts[id(x)])
    originals = {id(hosts[id(x)]): x for x in tensors}

    def returned(x):
        if isinstance(x, (list, tuple)):
            return type(x)(returned(y) for y in x)
        if not isinstance(x, torch.Tensor):
            return x
        return originals[id(x)] if id(x) in originals else _on_device(x, device)

    found = returned(out)
    given = returned = None  # each holds itself, and with it the tensors, until a cycle is looked for
    return found


def _flat(values):
    for x in values:
        if isinstance(x, (list, tuple)):
            yield from _flat(x)
        else:
            yield x


def _as_it_is(op):
    """Operations on sizes and strides alone: torch's own for the host, which look at no memory."""
    return lambda *args, **kwargs: op._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)


def _put(tensor, storage, shape, stride):
    set_ = torch.ops.aten.set_.source_Storage_storage_offset
    return set_._op_dk(torch._C.DispatchKey.CPU, tensor, storage, 0, shape, stride)


def _resize_(self, size, *, memory_format=None):
    fresh = _empty(size, dtype=self.dtype, device=self.device)
    return _put(self, fresh.untyped_storage(), fresh.shape, fresh.stride())


def _clone_storage(of_others):
    def clone(self):
        """A copy of the bytes, as deepcopy asks for: torch itself would ask for an allocator of the device."""
        if self.device.type != NAME:
            return of_others(self)
        everything = _put(_empty([0], dtype=torch.uint8, device=self.device), self, [self.nbytes()], [1])
        return everything.clone().untyped_storage()

    return clone


def _unwritten(host, device):
    if host.dtype.is_floating_point:
        host.fill_(torch.nan)
    return _on_device(host, torch.device(device or NAME))


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return _unwritten(torch.empty(size, dtype=dtype, memory_format=memory_format), device)


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return _unwritten(torch.empty_strided(size, stride, dtype=dtype), device)


def _zeros(size, *, dtype=None, layout=None, device=None, pin_memory=None):
    return _on_device(torch.zeros(size, dtype=dtype), torch.device(device or NAME))


def _copy_from(source, target, non_blocking=False):
    if source.device != target.device:
        _note(source, target.device)
    host = _on_host(target) if _is_pretend(target) else target
    given = _on_host(source) if _is_pretend(source) else source
    if non_blocking and getattr(_current, "stream", None) is not None:
        _current.stream.asked.append(lambda: host.copy_(given))
    else:
        host.copy_(given)
    return target


_current = threading.local()


class Stream:
    """A queue of copies that are made when an event behind them is waited for."""

    def __init__(self, device=None):
        self.asked, self._made, self._lock = [], 0, threading.Lock()

    def wait_event(self, event):
        event.synchronize()

    def make(self, count):
        with self._lock:
            while self._made < count:
                self.asked[self._made]()
                self.asked[self._made] = None
                self._made += 1


class Event:
    """A place in a stream's queue."""

    def record(self, stream):
        self._stream, self._count = stream, len(stream.asked)

    def synchronize(self):
        self._stream.make(self._count)


@contextmanager
def _on_stream(stream):
    before, _current.stream = getattr(_current, "stream", None), stream
    try:
        yield
    finally:
        _current.stream = before


def _module():
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: COUNT
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = module.manual_seed = module.synchronize = lambda *_: None
    module.Stream, module.Event, module.stream = Stream, Event, _on_stream
    module.current_stream = lambda device=None: Stream()
    torch.Tensor.record_stream = lambda tensor, stream: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    return module


def _of_two_steps():
    """Operations that torch would make of empty memory and a second operation that fills it: twice the time."""
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CompositeExplicitAutogradNonFunctional"):
        library, _, called = name.partition("::")
        packet, _, overload = called.partition(".")
        if library == "aten":
            yield getattr(getattr(torch.ops.aten, packet), overload or "default")


def register():
    """Make the device, once and for the life of the process; backward passes then run in the thread that asks."""
    if _library:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=_module())
    # A backend in Python has one queue for backward passes, for index 0 (pytorch, acc/Module.cpp).
    torch.autograd.set_multithreading_enabled(False)
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(_run, "PrivateUse1")
    ops = torch.ops.aten
    sizes = (ops.as_strided.default, ops.view.default, ops._reshape_alias.default, ops.unfold.default)
    for op in (*sizes, ops.set_.source_Storage, ops.set_.source_Storage_storage_offset):
        aten.impl(op, _as_it_is(op), "PrivateUse1")
    for op in _of_two_steps():
        aten.impl(op, partial(_run, op), "PrivateUse1")
    for op, kernel in (
        (ops.empty.memory_format, _empty),
        (ops.empty_strided.default, _empty_strided),
        (ops._efficientzerotensor.default, _zeros),
        (ops._copy_from.default, _copy_from),
        (ops.resize_.default, _resize_),
    ):
        aten.impl(op, kernel, "PrivateUse1")
    torch.UntypedStorage.clone = _clone_storage(torch.UntypedStorage.clone)
    _library.extend([everything, aten])
