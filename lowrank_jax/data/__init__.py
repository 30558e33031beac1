"""Data sets, tokenizers and the input pipeline."""
