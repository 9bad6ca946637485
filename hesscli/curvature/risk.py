"""The empirical risk: a model's mean loss over the terms of a slice. The batch loop is written here, once."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hesscli.curvature.layers.residence import Residence, Resident
from hesscli.curvature.layers.stack import Stack, find_stack
from hesscli.curvature.losses import constant_inputs, cross_entropy, scores, twice_differentiable_attention
from hesscli.curvature.substituted import run_with
from hesscli.data.slice import IGNORED, Batch
from hesscli.linalg.space import ParameterSpace, ParameterVector

if TYPE_CHECKING:
    from typing import Self

LOOKED_AT = 32  # positions of the row that a model and its products are looked at on: a graph small beside the weights


@dataclass(frozen=True, slots=True)
class LossValue:
    """The mean loss in nats per term."""

    value: float
    stderr: float | None
    """One standard error over rows, None for a single row."""


class EmpiricalRisk:
    """A model's loss on batches: terms are summed, and divided once by their global number.

    So neither batch size nor padding nor the order of rows changes the answer. Only the selected parameters
    take part in derivatives; the others are constants.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        *,
        names: Sequence[str],
        parameters: Sequence[nn.Parameter],
        input_device: torch.device,
    ) -> None:
        self.model, self.input_device = model, input_device
        self.parameters = tuple(parameters)
        self.space = ParameterSpace(names, parameters)
        self.residence: Residence = Resident(names, parameters)
        self._take(batches)
        self._constant = constant_inputs(model)
        _keep_no_cache(model)
        _differentiate_embeddings_as_written(model)
        chosen = {id(p) for p in parameters}
        for p in model.parameters():
            p.requires_grad_(id(p) in chosen)

    def _take(self, batches: Sequence[Batch]) -> None:
        self.batches, self.num_terms = tuple(batches), sum(b.num_terms for b in batches)

    def on(self, batches: Sequence[Batch]) -> "Self":
        """The same model, parameters and residence on other batches, with their own number of terms as divisor.

        What is known of the model stays known: to find its layers again would run, fetch or gather each.
        """
        other = copy(self)
        other._take(batches)
        return other

    def first_row(self, *, most: int | None = None) -> "Self":
        """The risk on the first row that has a loss term; of it, `most` positions about its first term.

        A row whose inputs are not one for each target, as an image and its label, is taken whole.
        """
        batch = next(b for b in self.batches if b.num_terms)
        row, term = (int(i) for i in (batch.targets != IGNORED).nonzero()[0])
        if most is None or any(value.shape != batch.targets.shape for value in batch.inputs.values()):
            inputs = {name: value[row : row + 1] for name, value in batch.inputs.items()}
            return self.on([Batch(inputs, batch.targets[row : row + 1])])
        start = max(0, term - most // 2)
        columns = slice(start, start + most)
        inputs = {name: value[row : row + 1, columns] for name, value in batch.inputs.items()}
        return self.on([Batch(inputs, batch.targets[row : row + 1, columns])])

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model's forward is called with for a batch."""
        return {name: value.to(self.input_device) for name, value in batch.inputs.items()} | self._constant

    def terms(self, batch: Batch, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """The loss in nats at each position of a batch, (rows, positions), 0 where there is no term.

        `weights` by name stand in for the model's own. Without a graph, many scores are taken chunk by chunk.
        """
        stack = None if torch.is_grad_enabled() else self._by_tokens(batch)
        if stack is not None:
            return self._terms_by_tokens(stack, batch, dict(weights or {}))

        found = scores(lambda **inputs: run_with(self.model, weights or {}, kwargs=inputs), self.inputs(batch))
        return cross_entropy(found.flatten(0, 1), batch.targets.flatten()).view(batch.targets.shape)

    @cached_property
    def _stack(self) -> Stack | None:
        try:
            return find_stack(self.first_row(most=LOOKED_AT))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the model's own code, run in another way than it was written for
            return None

    def _by_tokens(self, batch: Batch) -> Stack | None:
        """The stack, where its head takes tokens alone and a batch has more of them than one chunk."""
        stack = self._stack if batch.targets.shape[1] > 1 else None
        return stack if stack and stack.token_inputs and len(stack.chunks(batch.targets.flatten())) > 1 else None

    def _terms_by_tokens(self, stack: Stack, batch: Batch, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = stack.last_hidden(self.inputs(batch), weights).flatten(0, 1)
        labels = batch.targets.flatten().to(hidden.device)
        parts = [
            cross_entropy(stack.head(hidden[chunk], weights), labels[chunk])
            for chunk in stack.chunks(torch.arange(len(labels), device=hidden.device))
        ]
        return torch.cat(parts).view(batch.targets.shape)

    def batch_loss(self, batch: Batch) -> torch.Tensor:
        """The sum of the loss over one batch's terms, with a graph."""
        return self.terms(batch).sum()

    def loss(self) -> LossValue:
        """The mean loss and its standard error over rows: one forward pass."""
        total, count = self._row_losses()
        value = float(total.sum() / count.sum())
        if len(total) < 2:
            return LossValue(value, None)
        deviations = total - value * count
        spread = float(np.sqrt(np.square(deviations).sum() * len(total) / (len(total) - 1)))
        return LossValue(value, spread / float(count.sum()))

    def _row_losses(self) -> tuple[np.ndarray, np.ndarray]:
        """The sum of the loss over each row's terms, float64, and their number; (rows,) each, in order."""
        sums, counts = [], []
        with torch.no_grad(), twice_differentiable_attention():
            for batch in self.batches:
                terms = self.terms(batch)
                sums.append(terms.sum(dim=1, dtype=torch.float64).cpu().numpy())
                counts.append((batch.targets != IGNORED).sum(dim=1).numpy())
        return np.concatenate(sums), np.concatenate(counts)

    def gradient(self) -> ParameterVector:
        """The gradient of the mean loss: one forward and one backward pass, one vector."""
        total = self.space.zeros()
        with twice_differentiable_attention():
            for batch in self.batches:
                self.add_gradient(batch, self.parameters, total)
        self.space.scale(1.0 / self.num_terms, total)
        return total

    def weight(self, place: int) -> torch.Tensor:
        """A selected weight, whole."""
        return self.space.whole(place, self.parameters[place].detach())

    def weights(self) -> Mapping[str, torch.Tensor]:
        """The selected weights by name, each whole."""
        return {name: self.weight(i) for i, name in enumerate(self.space.names)}

    def weights_norm(self) -> float:
        """The Euclidean length of the selected weights."""
        return self.space.norm([p.detach().to(self.space.dtype) for p in self.parameters])

    def loss_along(self, u: ParameterVector, step: float) -> float:
        """The mean loss at theta + step u: one forward pass, and a displaced copy of the weights."""
        total = 0.0
        with torch.no_grad(), twice_differentiable_attention():
            moved = {
                name: torch.add(p.detach(), part, alpha=step)
                for name, p, part in zip(self.space.names, self.parameters, u, strict=True)
            }
            for batch in self.batches:
                total += float(self.terms(batch, moved).sum(dtype=torch.float64))
        return total / self.num_terms

    def add_gradient(
        self,
        batch: Batch,
        leaves: Sequence[torch.Tensor],
        total: ParameterVector,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Add the gradient of a batch's summed loss to `total`.

        `leaves` are the selected parameters, or what stands in for them in `weights`. Many scores are taken by chunks
        of tokens: (tokens, classes) is never whole.
        """
        stack = self._by_tokens(batch)
        if stack is None:
            loss = self.terms(batch, weights).sum()
            if loss.requires_grad:  # it does not where no selected weight is reached, as an expert without tokens
                add_into(total, torch.autograd.grad(loss, leaves, allow_unused=True))
            return
        given = dict(weights or {})
        last = stack.last_hidden(self.inputs(batch), given)
        hidden = last.detach().flatten(0, 1)
        g = torch.zeros_like(hidden)
        labels = batch.targets.flatten().to(hidden.device)
        for chunk in stack.chunks((labels != IGNORED).nonzero().squeeze(1)):
            h = hidden[chunk].requires_grad_()
            loss = cross_entropy(stack.head(h, given), labels[chunk]).sum()
            g[chunk], *parts = torch.autograd.grad(loss, [h, *leaves], allow_unused=True)
            add_into(total, parts)
        if last.requires_grad:
            add_into(total, torch.autograd.grad(last, leaves, g.view_as(last), allow_unused=True))


def _keep_no_cache(model: nn.Module) -> None:
    """Where forward does not take `use_cache`, the config says it: a cache would hold, and go on, between passes."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False


def _differentiate_embeddings_as_written(model: nn.Module) -> None:
    """Switch off what makes an embedding's gradient another thing than the derivative of the loss.

    torch leaves the row `padding_idx` out of every gradient, also where it is a real token: the end of text in a
    packed row, where it is the pad token too. Products would stay symmetric and be wrong. True padding needs no
    such rule: it is masked and has no loss term. A class of its own may count positions from padding_idx.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            forward = type(module).forward
            if forward is nn.Embedding.forward or "padding_idx" not in forward.__code__.co_names:
                module.padding_idx = None
            module.scale_grad_by_freq = False


def add_into(total: ParameterVector, parts: Sequence[torch.Tensor | None]) -> None:
    """Add the parts that exist; a parameter that the loss does not reach has none."""
    for t, part in zip(total, parts, strict=True):
        if part is not None:
            t.add_(part.to(t.dtype))
