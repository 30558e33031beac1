"""Grids of cells and how they are run."""
