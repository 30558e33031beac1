"""Run-time layouts of the frozen parameters: segments, fused, unstacked; each applied and undone."""
