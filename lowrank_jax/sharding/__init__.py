"""One named mesh and the path rules that lay trees out on it."""
