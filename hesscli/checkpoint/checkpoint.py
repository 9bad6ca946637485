"""A loaded checkpoint: the model, what it is, and its tokenizer when one is asked for."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hesscli.checkpoint.identity import Identity
from hesscli.checkpoint.listing import has_tokenizer, names_in
from hesscli.checkpoint.quiet import in_short, quiet
from hesscli.errors import UnavailableError, UsageError


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model in eval mode whose parameters all require gradients and all lie on a real device."""

    model: PreTrainedModel
    identity: Identity
    folder: Path
    """Where its files lie, also for a hub id."""
    trust_remote_code: bool

    @property
    def input_device(self) -> torch.device:
        """Where `input_ids` go: the device of the input embeddings."""
        return self.model.get_input_embeddings().weight.device

    @property
    def placement(self) -> str:
        """`single`, or `layerwise` where the parameters lie on several devices."""
        return "layerwise" if len({p.device for p in self.model.parameters()}) > 1 else "single"

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        size = getattr(self._text_config, "vocab_size", None)
        return int(size) if size else int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model has positions for; None where it has no such limit."""
        config = self._text_config
        longest = getattr(config, "max_position_embeddings", None)
        if not isinstance(longest, int) or longest <= 0 or getattr(config, "alibi", False):
            return None
        return longest

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
