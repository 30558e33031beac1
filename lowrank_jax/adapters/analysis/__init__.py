"""Measures trained updates: their singular values."""
