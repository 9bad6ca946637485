"""From a probe's name to its figures in the report's terms."""
