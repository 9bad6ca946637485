"""The model without weights that layered sweeps run, with weights that come from the shards."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from hesscli.curvature.layers.stack import Stack, UnknownStructureError, find_stack
from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk
from hesscli.curvature.sharded.residence import ShardedResidence
from hesscli.data.slice import Batch
from hesscli.linalg.space import ParameterSpace


class SweptRisk(EmpiricalRisk):
    """A risk for sweeps alone: its parameters have no numbers but where its residence is open."""

    residence: ShardedResidence
    """One that is told which product it is for."""

    def __init__(
        self,
        bare: nn.Module,
        batches: Sequence[Batch],
        *,
        shards: Mapping[str, torch.Tensor],
        space: ParameterSpace,
        input_device: torch.device,
    ) -> None:
        named = dict(bare.named_parameters())
        chosen = [named[name] for name in space.names]
        super().__init__(bare, batches, names=space.names, parameters=chosen, input_device=input_device)
        self.space, self.residence = space, ShardedResidence(bare, shards, space)
        self._found: Stack | None = None

    def find_stack(self) -> Stack:
        """The layers, by a run of one short row on every rank, and a look at a longer one; looked for once.

        Raises UnknownStructureError where the model cannot be taken layer by layer.
        """
        if self._found is not None:
            return self._found
        row = self.first_row(most=LOOKED_AT)
        with self.residence.outside():
            try:
                stack = find_stack(row)
            except (UnknownStructureError, torch.OutOfMemoryError):
                raise
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise UnknownStructureError(" ".join(str(error).split())[:120]) from error
            longest = max((b for b in self.batches if b.num_terms), key=lambda b: b.targets.shape[1])
            if stack.count_calls(self.inputs(longest)) != len(stack.outputs):
                msg = "it does not run its layers as often on a longer row"
                raise UnknownStructureError(msg)
        self._found = stack
        return stack
