"""What a run leaves: its folder, its claim, its environment and results, and tables as text."""
