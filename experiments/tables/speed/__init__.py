"""Tables of speed and memory: training steps, forward latency, decoding, quantised bases."""
