"""The compiled step: XLA's options for it, its memory compared with the device's, and steps kept for later starts."""
