"""Scores, most of them thin wrappers over kept libraries: classes, correlations, generated texts, WikiSQL's queries."""
