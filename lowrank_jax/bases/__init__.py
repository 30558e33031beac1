"""The name of a base model -> where it lies, its weights, tokenizer and fingerprint."""
