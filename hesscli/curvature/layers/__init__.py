"""One layer at a time: exact products through a stack of layers that is found by running the model."""
