"""Times measured by the benchmarks: training steps, decoding, quantised bases."""
