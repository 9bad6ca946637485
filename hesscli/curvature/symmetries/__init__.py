"""Products with a known answer on any checkpoint, from the network's own continuous symmetries.

Where scaling channels of some weights, and the channels that meet them by the opposite factors, leaves the loss
unchanged, L(S_t theta) = L(theta) with S_t = exp(t C), differentiating twice gives (Kunin et al. 2021,
arXiv 2012.04728)

    H (C theta) = -C grad L(theta).

So the error of a product is measured, not guessed. C has a random entry for each channel: with one common factor
the terms cancel bit for bit, and the error of any product reads 0. `search` proposes by the gradient,
`orbit` decides by the loss.
"""

from hesscli.curvature.symmetries.symmetry import Symmetry, find_symmetry

__all__ = ["Symmetry", "find_symmetry"]
