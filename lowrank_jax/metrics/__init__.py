"""Scores, as thin wrappers over scikit-learn and scipy."""
