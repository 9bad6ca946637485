"""The curvature of a loss term in the scores of the classes: what a Gauss-Newton or Fisher matrix has in its middle.

With p = softmax(scores), on why the last must not pass for the second see Kunstner, Balles and Hennig 2019:

    GGN               diag p - p p^T (Schraudolph 2002), positive semi-definite
    Fisher            (p - e_y)(p - e_y)^T at a label y drawn from p; in the mean the same
    empirical Fisher  (p - e_y)(p - e_y)^T at the label of the data
"""

from typing import Protocol

import torch

from hesscli.curvature.losses import positions_at_once
from hesscli.data.slice import IGNORED, Batch
from hesscli.linalg.random import element_key, uniform


class ScoreCurvature(Protocol):
    """A positive semi-definite matrix for each position."""

    def multiply(self, logits: torch.Tensor, tangents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The matrix times `tangents` at each position; all (positions, classes), in float32 or wider."""

    def labels(self, batch: Batch, positions: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The labels of the terms at these places of the flattened targets, (positions,)."""


class SoftmaxCurvature:
    """The cross-entropy's Hessian in the scores."""

    def multiply(self, logits: torch.Tensor, tangents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """(diag p - p p^T) t."""
        p = torch.softmax(logits, dim=-1)
        return p * (tangents - (p * tangents).sum(dim=-1, keepdim=True))

    def labels(self, batch: Batch, positions: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Those of the data, which it does not look at."""
        return batch.targets.flatten().to(logits.device)[positions]


class LabelCurvature(SoftmaxCurvature):
    """The outer product of a term's gradient in the scores, at the label of the data."""

    def multiply(self, logits: torch.Tensor, tangents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(p - e_y) ((p - e_y) . t)."""
        residual = torch.softmax(logits, dim=-1)
        residual[torch.arange(len(labels), device=labels.device), labels] -= 1.0
        return residual * (residual * tangents).sum(dim=-1, keepdim=True)


class SampledLabelCurvature(LabelCurvature):
    """The same at labels drawn once: a draw depends on (seed, row, position) alone, so the matrix stays the same."""

    def __init__(self, *, seed: int) -> None:
        self._seed = seed

    def labels(self, batch: Batch, positions: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """One label from p at each place."""
        rows, length = batch.targets.shape
        keys = [element_key(self._seed, batch.first_row + row, "labels") for row in range(rows)]
        points = torch.cat([uniform(key, 0, length, device=logits.device) for key in keys])[positions]
        cumulative = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
        places = torch.searchsorted(cumulative, points.unsqueeze(1) * cumulative[:, -1:])
        return places.squeeze(1).clamp_(max=logits.shape[-1] - 1)


def curve(
    curvature: ScoreCurvature, batch: Batch, positions: torch.Tensor, logits: torch.Tensor, tangents: torch.Tensor
) -> torch.Tensor:
    """C t at these places of the flattened targets; logits and tangents (positions, classes)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(wide)
    labels = curvature.labels(batch, positions.to(logits.device), logits)  # the head may be on another device
    return curvature.multiply(logits, tangents.to(wide), labels).to(tangents.dtype)


def curve_all(curvature: ScoreCurvature, batch: Batch, logits: torch.Tensor, tangents: torch.Tensor) -> torch.Tensor:
    """C t at each position of a batch, (positions, classes), by chunks; zero where there is no term."""
    out = torch.zeros_like(tangents)
    terms = (batch.targets.flatten() != IGNORED).nonzero().squeeze(1).to(logits.device)
    for chunk in terms.split(positions_at_once(logits.shape[-1])):
        out[chunk] = curve(curvature, batch, chunk, logits[chunk], tangents[chunk])
    return out
