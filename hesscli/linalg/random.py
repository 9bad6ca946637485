"""Random numbers that depend on their place alone, not on who draws them or in what order.

Counter-based: entry i of a part is a hash of (key, i), the finaliser of SplitMix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014). A shard draws its own entries by their global
index; a resumed run draws them again.
"""

import hashlib
import math

import torch

_CHUNK = 1 << 22  # entries hashed at a time: bounds the int64 scratch to a few tens of MB
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def element_key(seed: int, index: int, name: str) -> int:
    """The 64-bit key of one parameter's entries in sample `index` of a seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{index}/{name}".encode(), digest_size=8).digest(), "little")


def _signed(x: int) -> int:
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x


def _logical_shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _hash(key: int, start: int, count: int, device: torch.device) -> torch.Tensor:
    """64 well-mixed bits for each of the entries start .. start + count, as int64."""
    x = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=device)
    x = x * _signed(_GOLDEN) + _signed(key)
    x = (x ^ _logical_shift(x, 30)) * _signed(_MIX[0])
    x = (x ^ _logical_shift(x, 27)) * _signed(_MIX[1])
    return x ^ _logical_shift(x, 31)


def rademacher(key: int, start: int, count: int, *, device: torch.device) -> torch.Tensor:
    """Signs +1 and -1 with equal chances, (count,) float32."""
    out = torch.empty(count, dtype=torch.float32, device=device)
    for low in range(0, count, _CHUNK):
        part = out[low : low + _CHUNK]
        bits = _hash(key, start + low, part.numel(), device)
        part.copy_(_logical_shift(bits, 63)).mul_(2.0).sub_(1.0)
    return out


def gaussian(key: int, start: int, count: int, *, device: torch.device) -> torch.Tensor:
    """Standard normal numbers, (count,) float64, by the method of Box and Muller in float64."""
    out = torch.empty(count, dtype=torch.float64, device=device)
    for low in range(0, count, _CHUNK):
        part = out[low : low + _CHUNK]
        radius = _unit_interval(_hash(key, start + low, part.numel(), device))
        angle = _unit_interval(_hash(key ^ _MIX[0], start + low, part.numel(), device))
        part.copy_(torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(2.0 * math.pi * angle))
    return out


def uniform(key: int, start: int, count: int, *, device: torch.device) -> torch.Tensor:
    """Uniform numbers in (0, 1], (count,) float64."""
    return _unit_interval(_hash(key, start, count, device))


def _unit_interval(bits: torch.Tensor) -> torch.Tensor:
    """The top 53 bits as numbers in (0, 1], float64."""
    return (_logical_shift(bits, 11) + 1).double() * 2.0**-53
