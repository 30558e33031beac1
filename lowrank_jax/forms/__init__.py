"""What kind of task a task is, once: its batch, objective, stream and evaluations (`next_token`, `label`)."""
