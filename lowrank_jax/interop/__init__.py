"""Pretrained weights and tokenizers from other people's files."""
