"""Reads and writes config.json and key names of Llama, and of the model families that are a Llama with flags."""
