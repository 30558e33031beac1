"""Prints what a run trains and its step's memory, without weights: `python -m experiments.plan --config=...`."""

from absl import flags

from experiments.cli import define_seq_len, launch, load_config, reads_config

define_seq_len("Tokens a row, without data or tokenizer; by default the task's.")
flags.declare_key_flag("seq_len")  # shown by --help
FLAGS = flags.FLAGS


@reads_config
def main(_) -> None:
    """Prints the plan, the parameters and the compiled step's memory."""
    config, _plain = load_config()
    from experiments.session.build import build
    from experiments.session.fit import described
    from lowrank_jax.core.trees import nbytes
    from lowrank_jax.train import memory

    experiment = build(config, seq_len=FLAGS.seq_len or config.labels.get("seq_len"))
    print(experiment.plan)
    if experiment.task is not None and experiment.chosen:
        print(described(experiment.chosen, experiment.task, experiment.config))
    parameters = experiment.parameters
    print(f"trainable {parameters['trainable']:,}, frozen {parameters['frozen']:,} parameters")
    print(
        f"trainable and optimizer {nbytes(experiment.abstract_state) / 2**20:,.1f} MiB, "
        f"frozen {nbytes(experiment.abstract_frozen) / 2**20:,.1f} MiB over {experiment.mesh.size} device(s)"
    )
    memory.check_fits(experiment.compile())
    if (merge := experiment.compile_merge()) is not None:
        memory.check_fits(merge, what="merge")


if __name__ == "__main__":
    launch(main)
