"""Products, losses and codes with hand-written backward passes; names of values that remat keeps."""
