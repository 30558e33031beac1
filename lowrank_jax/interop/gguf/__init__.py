"""Reads GGUF files, llama.cpp's format: header, tensors, model config, tokenizer and its settings."""
