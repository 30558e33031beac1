"""The config of a toy run: toy-llama with random weights, 20 pairs in batches of 8, so that every batch is another."""

# Two sites of the seven: the draws of all and their step take half of a toy run's compilation.
TOY = {
    "base.name": "toy-llama",
    "base.random_init": True,
    "adapter.rank": 4,
    "adapter.targets": '("query","down")',
    "task.pairs": 20,
    "task.eval_pairs": 2,
    "train.batch_size": 8,
    "schedule.warmup_steps": 1,
    "tracking.wandb": "disabled",
}
