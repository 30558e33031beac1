"""What models are made of: attention, caches, rotary positions, named layers, heads, and the stack of layers."""
