"""What `experiments.evaluate` is made of: a model as lm-eval asks it, its log-likelihoods, tasks over local files."""
