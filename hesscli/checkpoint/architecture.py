"""What config.json says: which class, whether it is ours to measure, and with what code."""

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hesscli.checkpoint.head import Brought, fit_config
from hesscli.checkpoint.listing import CONFIG
from hesscli.checkpoint.quiet import in_short, quiet
from hesscli.checkpoint.tasks import Task, find_task
from hesscli.errors import UnavailableError


def read_architecture(
    folder: Path, *, id: str, task: str, trust_remote_code: bool, brought: Brought | None = None
) -> tuple[PreTrainedConfig, Task]:
    """The checkpoint's config and its task, once it is known to be in floating point and ours to measure.

    `task` is the one that was asked for, or `auto`. Config and task are as an adapter needs them that brings a head or
    embeddings of its own.

    Raises:
        UnavailableError: config.json is unreadable, quantised weights, an architecture that the installed transformers
            does not know, or one that needs its own code.
        UsageError: the checkpoint is for another task, or for one that hess does not know.
    """
    raw = _read(folder / CONFIG, id=id)
    _refuse_quantised(raw, id=id)
    own_code = isinstance(raw.get("auto_map"), dict)
    model_type = raw.get("model_type")
    version = f"transformers {transformers.__version__}"
    if model_type not in CONFIG_MAPPING and not (own_code and trust_remote_code):
        if own_code:
            raise _needs_code(id)
        if not model_type:
            what = f"{CONFIG} of '{id}' names no model_type"
            raise UnavailableError("model", what, "give a checkpoint that save_pretrained wrote")
        what = f"{version} does not know the architecture '{model_type}' of '{id}'"
        raise UnavailableError("model", what, "upgrade transformers, or check model_type in config.json")
    if "transformers_weights" in raw:
        what = f"{CONFIG} of '{id}' keeps its weights in '{raw['transformers_weights']}', which hess does not read"
        raise UnavailableError("weights", what, "save it again with save_pretrained")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # each architecture validates its config in its own way
        what = f"{CONFIG} of '{id}' is not a valid config for '{model_type}': {in_short(error)}"
        raise UnavailableError("model", what, f"mend it, or try another version than {version}") from error
    if brought is None:
        found = find_task(config, raw, asked=task, id=id)
    else:
        found = fit_config(config, raw, brought, asked=task, id=id, code=trust_remote_code)
    if not found.class_names(config) and not trust_remote_code:
        raise _needs_code(id)
    return config, found


def _read(file: Path, *, id: str) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        what = f"'{id}' has no {CONFIG} that can be read"
        raise UnavailableError("model", what, "give the folder that save_pretrained wrote") from error
    except ValueError as error:
        what = f"{CONFIG} of '{id}' is not JSON ({in_short(error)})"
        raise UnavailableError("model", what, "fetch or save it again") from error
    if not isinstance(raw, dict):
        raise UnavailableError("model", f"{CONFIG} of '{id}' is not a JSON object", "fetch or save it again")
    return raw


def _refuse_quantised(raw: dict[str, Any], *, id: str) -> None:
    parts = [raw, *(part for part in raw.values() if isinstance(part, dict))]  # text_config and the like
    for part in parts:
        quantisation = part.get("quantization_config") or part.get("compression_config")
        if not isinstance(quantisation, dict) or not quantisation:
            continue
        method = str(quantisation.get("quant_method") or "method not named")
        bits = quantisation.get("bits") or next(
            (bits for bits in (4, 8) if quantisation.get(f"load_in_{bits}bit")), None
        )
        detail = f"{method} {bits}bit" if bits else method
        what = f"'{id}' is quantised ({detail}), and quantised weights have no exact curvature"
        raise UnavailableError("weights", what, "use the unquantised checkpoint")


def _needs_code(id: str) -> UnavailableError:
    what = f"'{id}' needs its own code, which is not run unasked"
    return UnavailableError("model", what, "read it, then --trust-remote-code if you trust it")
