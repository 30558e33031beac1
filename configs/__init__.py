"""Experiment configs: data, one file a table of a paper."""
