"""What work holds, counted on tensors without data: by layer, by device, and for deep models from shallow ones."""
