"""Sweeps: many runs of one recipe, each of them once, whatever becomes of the others."""
