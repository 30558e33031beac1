"""LoRA's Table 2: GLUE."""
