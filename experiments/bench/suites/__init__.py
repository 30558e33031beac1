"""Tables of speed: rows of experiments.bench compared with a peer, measured in separate processes."""
