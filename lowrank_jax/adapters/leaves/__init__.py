"""The arrays of adapters: created, prepared for a step, merged into kernels and taken out again."""
