"""A run: the one place that sees a recipe, a checkpoint, a slice, an operator, a probe and a report."""
