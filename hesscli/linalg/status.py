"""How a run ended: the text of each member says what happened, why that can be, and what to change."""

from enum import Enum


class Status(Enum):
    """The end of an iterative method."""

    CONVERGED = "every wanted pair has converged"
    BUDGET_SPENT = (
        "the budget of products was spent before every wanted pair converged. Likely: (a) eigenvalues lie close "
        "together, (b) the wanted end of the spectrum merges into the bulk, (c) the product is noisy. Raise --steps, "
        "lower --k, or look at the preflight; pairs that did not converge are marked"
    )
    NOT_CERTIFIED = (
        "every wanted pair converged in the Krylov run, and the products that certify them left residuals above the "
        "tolerance. Likely: (a) the basis is not as accurate as the tolerance asks, (b) the product is noisy. Leave "
        "--basis-product and --basis-dtype out, raise --tolerance, or look at the preflight; pairs that did not "
        "converge are marked"
    )
    SPACE_EXHAUSTED = "the Krylov space is the whole space: the spectrum is complete"
