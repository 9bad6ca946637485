"""Assertions on reports: from a line such as `lambda_max <= base * 1.10` to pass, fail or inconclusive."""
