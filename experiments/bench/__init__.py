"""Benchmarks: training steps and suites of them, decoding, and reading a base; one folder or module a subject."""
