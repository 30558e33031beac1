"""The compiled step: XLA's options for it, its memory beside the device's, and steps kept for later starts."""
