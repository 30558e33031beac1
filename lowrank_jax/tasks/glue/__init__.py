"""GLUE: its splits as a config asks, and the task of classifying a sentence or a pair."""
