"""The experiments: the only place with flags and config files."""
