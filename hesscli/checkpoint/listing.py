"""What the names in a checkpoint's folder say before any file is fetched or read."""

from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from hesscli.errors import UnavailableError

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
# In transformers' own order of preference: what it would load is what is checked and hashed.
_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTER_SAFE, _ADAPTER_PICKLED = ("adapter_model.safetensors",), ("adapter_model.bin",)
_FOREIGN = (".h5", ".msgpack", ".pt", ".pth", ".ckpt", ".onnx", ".npz")
_SMALL = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".vocab")
_TOKENIZER = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "source.spm")


def names_in(folder: Path, *, id: str) -> set[str]:
    """The names in the folder.

    Raises:
        UnavailableError: it cannot be read.
    """
    try:
        return {file.name for file in folder.iterdir()}
    except OSError as error:
        what = f"the folder of '{id}' cannot be read ({error.strerror})"
        raise UnavailableError("model", what, "check that it exists and that you may read it") from error


def is_adapter(names: Collection[str]) -> bool:
    """Whether the names are those of an adapter, which needs a base model, rather than of a whole model."""
    return ADAPTER_CONFIG in names


def weights_entry(names: Collection[str], *, id: str, allow_pickle: bool) -> str:
    """The file that loading starts from: the weights themselves, or the index of their shards.

    Raises:
        UnavailableError: there is no checkpoint of ours here; the line says what is here instead.
    """
    adapter = is_adapter(names)
    if any(name.startswith("adapter_") for name in names) and (not adapter or {*_SAFE, *_PICKLED} & {*names}):
        # transformers would take the base model that the adapter names, not the weights beside it.
        what = f"'{id}' holds an adapter {'and a whole model' if adapter else f'without {ADAPTER_CONFIG}'}"
        raise UnavailableError(
            "model", what, "give the adapter in a folder of its own, or merge it into its base model"
        )
    if any(name.startswith("shard-") and name.endswith(".safetensors") for name in names):
        # transformers would load these before model.safetensors, each process its part.
        what = f"'{id}' holds the shards of a distributed checkpoint"
        raise UnavailableError("weights", what, "save it whole with save_pretrained and give that folder")
    entry = next((name for name in (_ADAPTER_SAFE if adapter else _SAFE) if name in names), None)
    pickled = next((name for name in (_ADAPTER_PICKLED if adapter else _PICKLED) if name in names), None)
    if entry is None and pickled is not None:
        if not allow_pickle:
            what = f"'{id}' holds only {pickled}, a pickle, which can run code when it is read"
            raise UnavailableError("weights", what, "use a safetensors revision, or --allow-pickle if you trust it")
        entry = pickled
    if entry is None and adapter:
        what = f"'{id}' holds {ADAPTER_CONFIG} but no {_ADAPTER_SAFE[0]}"
        raise UnavailableError("weights", what, "fetch or save the adapter again")
    if entry is None:
        _refuse_what_is_there(names, id=id)
    if CONFIG not in names and not adapter:
        what = f"'{id}' holds weights but no {CONFIG}"
        raise UnavailableError("model", what, "give the folder that save_pretrained wrote")
    return entry


def _refuse_what_is_there(names: Collection[str], *, id: str) -> NoReturn:
    if any(name.endswith(".gguf") for name in names):
        what = f"'{id}' holds GGUF weights only"
        raise UnavailableError("weights", what, "use the safetensors checkpoint that they were made from")
    foreign = sorted(name for name in names if name.endswith(_FOREIGN))
    if foreign:
        what = f"'{id}' holds no safetensors, only {foreign[0]}"
        raise UnavailableError("weights", what, "convert it with save_pretrained and give that folder")
    if CONFIG not in names:
        what = f"'{id}' holds no checkpoint: neither {CONFIG} nor weights"
        raise UnavailableError("model", what, "give the folder that save_pretrained wrote, a hub id or demo")
    what = f"'{id}' holds no weights: no {_SAFE[0]} and no {_SAFE[1]}"
    raise UnavailableError("weights", what, "give the folder that save_pretrained wrote")


def small_files(names: Collection[str], *, code: bool) -> list[str]:
    """The files beside the weights that loading and tokenising read; with `code` also the model's own code."""
    suffixes = (*_SMALL, ".py") if code else _SMALL
    return sorted(
        name for name in names if name.endswith(suffixes) and "/" not in name and not name.endswith(".index.json")
    )


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether a tokenizer was saved here; without its files transformers may make up an empty one."""
    return any(name.startswith(_TOKENIZER) or name.endswith(".tiktoken") for name in names)
