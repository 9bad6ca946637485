"""Algebra over spaces of vectors; it knows nothing of models."""
