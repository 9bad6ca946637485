"""Damped linear systems by Krylov methods, with the bounds that go with their iterates."""
