"""Several processes that make one run: started together, agreed, and ended together."""
