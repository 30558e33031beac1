"""Drills: programs killed at random moments, and what is left of their work. Counts stand in docs/reliability.md."""
