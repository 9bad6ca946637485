"""A loaded checkpoint: the model, what it is, and its tokenizer when one is asked for."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hesscli.checkpoint.identity import Identity
from hesscli.checkpoint.listing import has_tokenizer, names_in
from hesscli.checkpoint.quiet import in_short, quiet
from hesscli.errors import UnavailableError, UsageError

# Of a config: where it came from and who wrote it, which decide nothing.
_ORIGIN = {"_name_or_path", "base_model_name_or_path", "revision", "transformers_version", "peft_version"}
_PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model in eval mode whose parameters require gradients but for its constants, and are there but for `reads`."""

    model: PreTrainedModel
    identity: Identity
    folder: Path
    """Where its files lie, also for a hub id."""
    trust_remote_code: bool
    adapter_parameters: tuple[str, ...] = ()
    """The names of what an adapter trains, none for a whole model."""
    reads: Mapping[str, Callable[[], torch.Tensor]] = field(default_factory=dict)
    """By parameter name how a weight is read that is not where the model computes: NaN stands in for it there."""
    offload_folder: Path | None = None
    """Where vectors go when weights stay on disk; None is the host's memory."""
    copies: object | None = None
    """The folder of weights that were copied to be read; it goes with the checkpoint."""

    @property
    def input_device(self) -> torch.device:
        """Where inputs go: the device of the input embeddings, or of an image model's first layer."""
        embeddings = self.model.get_input_embeddings() if self.reads_tokens else self.model
        return next(embeddings.parameters()).device

    @property
    def placement(self) -> str:
        """`single`; `layerwise` on several devices, `offloaded` with layers on none, `fsdp` shared by processes."""
        if self.reads:
            return "offloaded"
        if any(isinstance(p, DTensor) for p in self.model.parameters()):
            return "fsdp"
        return "layerwise" if len({p.device for p in self.model.parameters()}) > 1 else "single"

    @property
    def vocab_size(self) -> int:
        """Token ids are below this; 0 for a model of images."""
        if not self.reads_tokens:
            return 0
        size = getattr(self._text_config, "vocab_size", None)
        return int(size) if size else int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model has positions for; None where it has no such limit."""
        config = self._text_config
        longest = getattr(config, "max_position_embeddings", None)
        if not isinstance(longest, int) or longest <= 0 or getattr(config, "alibi", False):
            return None
        return longest - self._first_position

    @property
    def _first_position(self) -> int:
        """RoBERTa and its kin count positions from behind the pad token's id, and have so many fewer of them."""
        for module in self.model.modules():
            table = getattr(module, "position_embeddings", None)
            first = getattr(module, "padding_idx", None)
            if isinstance(table, torch.nn.Embedding) and isinstance(first, int):
                return first + 1
        return 0

    @property
    def config_sha256(self) -> str:
        """A hash of the config, an adapter's too: with equal weights it still decides what the model computes."""
        adapters = getattr(self.model, "peft_config", None) or {}
        whole = [self.model.config.to_dict(), *(adapters[name].to_dict() for name in sorted(adapters))]
        return hashlib.sha256(json.dumps(_settings(whole), sort_keys=True).encode()).hexdigest()

    @property
    def reads_tokens(self) -> bool:
        """Whether its inputs are token ids, rather than images."""
        return self.identity.task != "image-classification"

    @property
    def pad_token_id(self) -> int | None:
        """The id that the model itself takes for padding, None where its config names none."""
        found = getattr(self._text_config, "pad_token_id", None)
        return found if isinstance(found, int) and 0 <= found < self.vocab_size else None

    @property
    def one_row_a_batch(self) -> bool:
        """Whether rows of different lengths must not share a batch.

        A classifier on a decoder looks for the end of each row by the pad token; one on an encoder-decoder wants the
        same number of eos tokens in every row.
        """
        if self.identity.task != "sequence-classification":
            return False
        return self.pad_token_id is None or bool(getattr(self.model.config, "is_encoder_decoder", False))

    @property
    def num_token_types(self) -> int:
        """How many values `token_type_ids` may have, 0 where the model or its task does not read them."""
        reads = "token_type_ids" in inspect.signature(self.model.forward).parameters
        reads = reads and self.identity.task in ("masked-lm", "sequence-classification")
        return int(getattr(self.model.config, "type_vocab_size", 0) or 0) if reads else 0

    @property
    def _text_config(self) -> PreTrainedConfig:
        return self.model.config.get_text_config(decoder=True)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer saved with the checkpoint; read anew at each call.

        Raises:
            UsageError: none was saved with it.
            UnavailableError: its files cannot be read.
        """
        if not has_tokenizer(names_in(self.folder, id=self.identity.id)):
            what = f"'{self.identity.id}' has no tokenizer"
            raise UsageError("model", what, "give a dataset with a column input_ids")
        try:
            with quiet():
                return AutoTokenizer.from_pretrained(
                    self.folder, local_files_only=True, trust_remote_code=self.trust_remote_code
                )
        except Exception as error:  # each tokenizer class fails in its own way
            what = f"the tokenizer of '{self.identity.id}' cannot be read: {in_short(error)}"
            remedy = "save it again, or give a dataset with a column input_ids"
            raise UnavailableError("model", what, remedy) from error

    def image_processor(self) -> Callable[..., Any]:
        """What turns an image into `pixel_values`, as it was saved with the checkpoint; read anew at each call.

        It runs on the host through Pillow wherever it is, so that a slice is the same on every machine.

        Raises:
            UsageError: none was saved with it.
            UnavailableError: its file cannot be read.
        """
        if _PROCESSOR not in names_in(self.folder, id=self.identity.id):
            what = f"'{self.identity.id}' has no {_PROCESSOR}, which says how images are resized and scaled"
            raise UsageError("model", what, "save it with the checkpoint, or give a dataset with a column pixel_values")
        try:
            with quiet():
                processor: Callable[..., Any] = AutoImageProcessor.from_pretrained(
                    self.folder, local_files_only=True, backend="pil", trust_remote_code=self.trust_remote_code
                )
        except Exception as error:  # each processor class fails in its own way
            what = f"the image processor of '{self.identity.id}' cannot be read: {in_short(error)}"
            remedy = "save it again, or give a dataset with a column pixel_values"
            raise UnavailableError("model", what, remedy) from error
        return processor

    def decoder_input_ids(self, labels: torch.Tensor) -> torch.Tensor:
        """What the decoder reads to predict `labels` (length,): the same shifted right, by the model's own rule.

        Raises:
            UsageError: the checkpoint does not say which token a decoder starts from.
        """
        shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        try:
            with quiet():
                if shift is not None:
                    return shift(labels=labels.unsqueeze(0)).view(-1)
                start = int(self.model.config.decoder_start_token_id)
        except (TypeError, ValueError, AttributeError) as error:
            what = f"config.json of '{self.identity.id}' lacks decoder_start_token_id or pad_token_id"
            raise UsageError("model", what, "add the ids that it was trained with") from error
        fill = self.pad_token_id if self.pad_token_id is not None else 0
        shifted: torch.Tensor = torch.cat([labels.new_tensor([start]), labels[:-1]])
        return shifted.masked_fill(shifted == -100, fill)


def _settings(value: Any) -> Any:
    """A config as JSON has it, the same in every process: without its origin, sets in order."""
    if isinstance(value, dict):
        return {str(key): _settings(part) for key, part in value.items() if key not in _ORIGIN}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_settings(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
