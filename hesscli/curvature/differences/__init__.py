"""Differences of gradients: the product, its steps, and what makes them another quantity."""
