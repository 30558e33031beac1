"""Text from a model: greedy decoding with a key/value cache."""
