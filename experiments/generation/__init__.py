"""What `experiments.generate` is made of: the model, its prompts, and what is printed and written."""
