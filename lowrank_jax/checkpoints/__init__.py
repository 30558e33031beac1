"""Saving and restoring: whole training states, and adapters alone."""
