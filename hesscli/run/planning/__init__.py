"""What a run will need, from a config alone: bytes on each device, products, and a command that fits."""
