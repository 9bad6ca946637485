"""Bytes of tensors made by a piece of work and alive at its worst moment."""

import gc
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hesscli.linalg.mapped import is_mapped


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made under it and still alive, and their peak; what lies in mapped files apart.

    `known` are tensors that were there before. What another thread makes is not seen: hand it to `note`. With `grows`
    a storage may change its size while it lives, as FSDP2's do: all are asked after each operation.
    """

    def __init__(self, known=(), *, grows=False):
        super().__init__()
        self.live = self.peak = self.mapped = self.mapped_peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}
        self._grows, self._growing = grows, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and not leaf._is_zerotensor() and leaf.device.type != "meta":
                self.note(leaf)
        if self._grows:
            self.live = sum(storage.nbytes() for ref in list(self._growing.values()) if (storage := ref()) is not None)
            self.peak = max(self.peak, self.live)
        return out

    def note(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size, mapped = storage.nbytes(), is_mapped(tensor)
        if self._grows and not mapped:
            self._growing[key] = weakref.ref(storage)
            weakref.finalize(storage, self._forget, key)
            return
        self._add(size, mapped)
        weakref.finalize(storage, self._release, key, size, mapped)

    def _add(self, size, mapped):
        if mapped:
            self.mapped += size
            self.mapped_peak = max(self.mapped_peak, self.mapped)
        else:
            self.live += size
            self.peak = max(self.peak, self.live)

    def _release(self, key, size, mapped):
        self._seen.discard(key)
        self._add(-size, mapped)

    def _forget(self, key):
        self._seen.discard(key)
        self._growing.pop(key, None)


def peak_of(work):
    gc.collect()
    with LiveBytes() as count:
        work()
    return count.peak
