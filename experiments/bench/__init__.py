"""Benchmarks: training steps and suites of them, forward latency, decoding, and reading a base; a subject a module."""
