"""Many reports side by side: what they differ in, one table, and figures over what was varied."""
