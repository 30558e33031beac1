"""Base models by name: location, weights, tokenizer and fingerprint."""
