"""The machine: versions, devices, threads, switches of arithmetic, the hub's settings, room on the disk."""

import importlib.util
import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch

from hesscli import __version__
from hesscli.checkpoint.memory import available_bytes
from hesscli.run.doctor.document import Device, Trouble
from hesscli.run.environment import precisions

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "huggingface-hub", "safetensors", "numpy", "scipy")
_EXTRAS = {
    "peft": "adapters",
    "tensorboard": "--log-to tensorboard",
    "wandb": "--log-to wandb",
    "mlflow": "--log-to mlflow",
}
_ON = {"1", "ON", "YES", "TRUE"}  # as the hub's client reads its switches
_FP32_ERROR = 1e-5  # float32 gives 1e-7, TF32 3e-4
_LITTLE_DISK = 1 << 30
_LITTLE_MEMORY = 1 << 30


def versions() -> dict[str, str]:
    """Versions of what can change a figure."""
    found = {"hess": __version__, "python": platform.python_version()}
    return found | {name: _version(name) or "missing" for name in _PACKAGES}


def extras() -> dict[str, str | None]:
    """Optional packages and their versions; None for one that is not there."""
    return {name: _version(name) or _version(f"{name}-skinny") for name in _EXTRAS}


def devices() -> list[Device]:
    """The host, then the GPUs, each with its memory and the error of a float32 matrix product."""
    memory = psutil.virtual_memory()
    host = torch.device("cpu")
    found = [(host, platform.processor() or platform.machine(), int(memory.total))]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        found.append((torch.device("cuda", i), str(properties.name), int(properties.total_memory)))
    return [
        Device(
            name=str(device),
            hardware=hardware,
            total_bytes=total,
            free_bytes=available_bytes(device),
            fp32_error=_fp32_error(device),
        )
        for device, hardware, total in found
    ]


def settings(found: list[str]) -> dict[str, str]:
    """Threads, switches, the hub, the disk; `found` is what the switches of arithmetic were before hess set them."""
    environment = os.environ
    offline = any(environment.get(name, "").upper() in _ON for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return {
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "TF32 switches": f"{' '.join(found)} at the start, {' '.join(precisions())} in runs (matmul conv rnn)",
        "deterministic algorithms": "on" if torch.are_deterministic_algorithms_enabled() else "off",
        "hub": "offline" if offline else "online where a checkpoint is not in the cache",
        "hub token": "set" if environment.get("HF_TOKEN") else "not in HF_TOKEN",
        "hub cache": "HF_HOME" if environment.get("HF_HOME") else "where the hub's client has it",
        "temporary disk": f"{_free_disk() / 2**30:.1f} GiB free",
    }


def troubles(devices: list[Device], extras: dict[str, str | None]) -> list[Trouble]:
    """What of it stands in the way."""
    found = []
    for device in devices:
        if device.fp32_error > _FP32_ERROR:
            text = f"a float32 matrix product on {device.name} is wrong by {device.fp32_error:.1g}"
            remedy = "unset NVIDIA_TF32_OVERRIDE and TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
            found.append(Trouble(failed=True, text=text, remedy=remedy))
        if device.free_bytes < _LITTLE_MEMORY:
            text = f"{device.name} has {device.free_bytes / 2**20:.0f} MiB free"
            found.append(Trouble(failed=False, text=text, remedy="end what holds its memory, or plan with hess plan"))
    if _free_disk() < _LITTLE_DISK:
        text = f"{_free_disk() / 2**20:.0f} MiB are free in the folder for temporary files"
        remedy = "set TMPDIR to a larger disk: bases and offloaded weights go there"
        found.append(Trouble(failed=False, text=text, remedy=remedy))
    for name, use in _EXTRAS.items():
        if extras[name] is None:
            found.append(
                Trouble(failed=False, text=f"{name} is not here: no {use}", remedy=f"pip install 'hess[{name}]'")
            )
        elif importlib.util.find_spec(name) is None:
            found.append(Trouble(failed=False, text=f"{name} cannot be imported", remedy=f"install {name} again"))
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _free_disk() -> int:
    return shutil.disk_usage(tempfile.gettempdir()).free


def _fp32_error(device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    truth = a.double() @ b.double()
    found = (a.to(device) @ b.to(device)).cpu().double()
    return float((found - truth).norm() / truth.norm())
