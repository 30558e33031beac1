"""The leaves of a plan: made, read by a step, folded into kernels and taken out again."""
