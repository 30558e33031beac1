"""Configs: typed sections, plain JSON form, hashes and defaults."""
