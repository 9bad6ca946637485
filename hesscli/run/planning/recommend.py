"""The fastest way that fits, exact before inexact, as a command that can be pasted."""

import json
import shlex
from collections.abc import Sequence

from hesscli.recipe import Recipe
from hesscli.recipe.schema import ModelSection
from hesscli.run.planning.document import Devices, Plan, Recommended, Way
from hesscli.run.planning.table import size

# Weights that are fetched for each product wait for the host: after everything that is resident.
_OFFLOADED = 100.0
_ORDER = ("single", "layerwise", "fsdp", "offloaded")


def recommended(
    recipe: Recipe, ways: Sequence[Way], devices: Devices, *, typed: Sequence[str], rows: int, lists: Sequence[str]
) -> Recommended | None:
    """The command for the way whose products take least time; None where none fits.

    `typed` are the words to keep, `rows` what a batch has if nothing is said of it, `lists` the names of the modules
    that the model's layers are in.
    """
    fitting = sorted((way for way in ways if way.fits), key=lambda way: _slowness(way, rows))
    if not fitting:
        return None
    best = fitting[0]
    words = ["hess", recipe.probe, *typed, "--product", best.product]
    if best.product == "jacobian":
        words = words[:-2]
    if best.placement == "fsdp":
        words = ["hess", "launch", "--nproc-per-node", str(best.num_devices), *words[1:]]
    words += _where(recipe.model, best, devices, lists)
    if best.batch_size != rows:
        words += ["--batch-size", str(best.batch_size)]
    kept = ", graph kept," if best.graph_kept else ""
    why = f"{best.product}{kept} at {best.gradients:.2g} gradients a product, {best.demand}"
    if best.placement != "single":
        why += f", {best.placement}" if best.num_devices == 1 else f", {best.placement} over {best.num_devices}"
    return Recommended(command=shlex.join(words), why=why if best.exact else f"{why}; not exact: nothing exact fits")


def _where(model: ModelSection, way: Way, devices: Devices, lists: Sequence[str]) -> list[str]:
    """The words for a placement, but for what was said of it already."""
    if way.placement in ("layerwise", "fsdp"):
        return ["--placement", way.placement] if model.placement == "auto" else []
    if way.placement == "single" or model.device_map is not None or model.max_memory:
        return []
    folder = ["--offload-dir", "."] if model.offload_dir is None else []
    if not devices.accelerate:
        return ["--device-map", "disk", *folder]
    # The first of them computes. What the host has may not be known: then layers and vectors lie in files.
    there, folder = ("disk", folder) if devices.host_bytes is None else ("cpu", [])
    return ["--device-map", json.dumps({"": 0, **dict.fromkeys(lists, there)}), *folder]


def none_fits(plan: Plan) -> tuple[str, str, str]:
    """Field, what and remedy where no way fits: the least that would."""
    least = min(plan.ways, key=lambda way: way.total_bytes)
    devices = plan.devices
    place = least.placement if least.num_devices == 1 else f"{least.placement} over {least.num_devices}"
    where = "here" if devices.found else f"on {devices.count} x {size(devices.bytes_each)}"
    more = "more than " if least.product_bytes is None else ""
    what = f"nothing fits {where}: the least is {more}{size(least.total_bytes)} a device ({least.product}, {place})"
    if plan.enough is not None:
        enough = plan.enough
        return "devices", what, f"{enough.num_devices} such devices hold it ({enough.product}, {enough.placement})"
    return "devices", what, "use --dtype bfloat16, fewer --params, a smaller --max-length, or larger devices"


def _slowness(way: Way, rows: int) -> tuple[bool, float, int, float]:
    speed = way.num_devices if way.placement == "fsdp" else 1  # layerwise devices wait for each other
    slow = way.gradients / speed * (_OFFLOADED if way.placement == "offloaded" else 1.0)
    if way.placement in ("fsdp", "offloaded"):  # weights come for each batch
        slow *= rows / way.batch_size
    return (not way.exact, slow, _ORDER.index(way.placement), way.basis_bytes)
