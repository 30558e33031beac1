"""What a benchmark means: examples to features, loss, prompts and scores."""
