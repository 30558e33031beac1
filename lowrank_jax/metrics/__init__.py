"""Scores of classes, correlations, generated texts and WikiSQL's queries, most of them thin wrappers over libraries."""
