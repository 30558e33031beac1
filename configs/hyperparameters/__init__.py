"""Hyperparameters of the papers as data."""
