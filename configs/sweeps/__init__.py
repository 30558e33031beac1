"""Grids of cells for experiments.sweep."""
