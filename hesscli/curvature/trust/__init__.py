"""What is held against a product before a run: identities, the loss itself, and what the model's code does."""
