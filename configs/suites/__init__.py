"""Rows of recorded speed tables, for experiments.bench --suite."""
