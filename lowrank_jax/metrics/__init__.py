"""Scores, as thin wrappers over kept libraries."""
