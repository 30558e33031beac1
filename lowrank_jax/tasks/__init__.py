"""Benchmarks: from examples to features, prompts and scores."""
