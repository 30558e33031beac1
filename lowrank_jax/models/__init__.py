"""Flax Linen models under canonical parameter names."""
