"""Benchmarks of training steps: speed and memory of one step, or of a suite of rows compared with a peer."""
