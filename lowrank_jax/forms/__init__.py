"""Forms, the kinds of tasks (`next_token`, `label`): each gives batch shapes, objective, stream and evaluations."""
