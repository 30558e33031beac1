"""Run folders, claims on them, and records of results."""
