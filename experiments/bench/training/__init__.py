"""One training step: its speed and memory, its work in FLOPs, and the kernels that a GPU ran for it."""
