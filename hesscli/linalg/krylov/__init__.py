"""Krylov methods for extreme eigenvalues: recurrence, restarts, certification and what may be missing."""
