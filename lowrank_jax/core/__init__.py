"""Paths, rules and trees: jax and numpy only."""
