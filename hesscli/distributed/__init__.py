"""The processes of one run, or of several in turn: who they are, sums over them, and one failure for all of them."""

from hesscli.distributed.failure import GoneError, LostError
from hesscli.distributed.meeting import decline, in_turn, joined
from hesscli.distributed.ranks import ALONE, Coming, Ranks, ranks

__all__ = ["ALONE", "Coming", "GoneError", "LostError", "Ranks", "decline", "in_turn", "joined", "ranks"]
