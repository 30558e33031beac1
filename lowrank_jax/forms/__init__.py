"""Forms, the kinds of tasks (`next_token`, `label`, `choice`): batch shapes, objective, stream and evaluations."""
