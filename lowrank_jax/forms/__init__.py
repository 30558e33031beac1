"""What kind of task a task is: its batch, objective, stream and evaluators."""
