"""What a step would need on devices that are not here: named slices, its bytes, work and transfers, and what fits."""
