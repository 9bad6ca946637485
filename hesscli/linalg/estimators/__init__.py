"""Random estimates of traces, norms, diagonals and quadratic forms, each with its error."""
