"""What a model is, and what an exported one is."""
