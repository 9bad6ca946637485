"""A checkpoint: found, checked before a byte is trusted, loaded for second derivatives, and named by its content."""

from hesscli.checkpoint.checkpoint import Checkpoint
from hesscli.checkpoint.identity import Identity
from hesscli.checkpoint.load import load_checkpoint

__all__ = ["Checkpoint", "Identity", "load_checkpoint"]
