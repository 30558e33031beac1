"""What trained updates look like."""
