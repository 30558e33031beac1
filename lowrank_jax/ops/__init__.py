"""Products and losses with hand-written backward passes, quantised kernels, names of saved values."""
