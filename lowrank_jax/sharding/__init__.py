"""One named mesh, and the path rules that shard trees over it."""
