"""What each metric is, in one line: for a page, and for whoever meets it in a monitor without its report."""

MEANING = {
    "lambda_max": "largest eigenvalue",
    "lambda_min": "smallest eigenvalue, the most negative one where there is one",
    "spectral_radius": "largest size of an eigenvalue",
    "trace": "sum of the eigenvalues",
    "mean_eigenvalue": "trace over the number of parameters",
    "frobenius_norm": "root of the sum of the squared eigenvalues",
    "negative_mass": "share of the eigenvalues that lie below zero",
    "effective_rank": "squared Frobenius norm over squared spectral radius",
    "condition_number": "largest over smallest size of an eigenvalue (a bound from below if there is no interval)",
    "tail_exponent": "exponent of a power law for the largest eigenvalues",
    "effective_dimension": "sum over eigenvalues of eigenvalue over eigenvalue plus damping",
    "max_stable_learning_rate": "2 over the largest eigenvalue: gradient descent with a larger step leaves the minimum",
    "relative_error": "how much of a product a block alone misses, mean over blocks: 0 if the matrix is block-diagonal",
    "cosine": "between a product and that of a block alone, mean over blocks: 1 if the matrix is block-diagonal",
    "relative_error_std": "spread of the relative error over blocks",
    "cosine_std": "spread of the cosine over blocks",
    "off_block_fraction": "share of the squared Frobenius norm outside the diagonal blocks",
    "top_curvature_inside": "share of the largest eigenvalue that the diagonal blocks give",
    "diagonal_resolved": "share of the diagonal's entries that are told apart from zero",
    "share": "share of the squares in a block's rows that lie in the block itself",
    "quadratic_form": "b.x, the right-hand side times the solution",
    "relative_residual": "true residual over the right-hand side",
    "solution_norm": "length of the solution",
    "cg_iterations": "iterations of conjugate gradients",
    "minres_iterations": "iterations of MINRES",
    "lambda_max_held_out": "Rayleigh quotient of the largest eigenvalue's eigenvector on other sequences",
    "lambda_min_held_out": "Rayleigh quotient of the smallest eigenvalue's eigenvector on other sequences",
    "product_error": "largest estimated error of a product by finite differences, over the product's length",
    "eigenvalue": "eigenvalue of the matrix",
    "mean_diagonal": "mean of a parameter's entries of the diagonal",
}


def meaning(metric: str) -> str:
    """Return what the metric is; its own name in words where nothing is written of it here."""
    return MEANING.get(metric, metric.replace("_", " "))
