"""Prints what a run trains and its step's memory, without weights: `python -m experiments.plan --config=...`."""

from typing import Any

from absl import flags

from experiments.cli import define_seq_len, launch, load_config, reads_config
from experiments.config.arguments import in_its_words, spoken

define_seq_len("Tokens a row, without data or tokenizer; by default the task's.")
flags.declare_key_flag("seq_len")  # shown by --help
flags.DEFINE_string("topology", None, "Plan for a slice that is not here: v5e:16x16, v6e:8x8, v5p:4x4x4, h200:8, ...")
FLAGS = flags.FLAGS


@reads_config
@in_its_words
def main(_) -> None:
    """Prints the plan, the parameters and the compiled step's memory."""
    config, _plain = load_config()
    if FLAGS.topology is not None:
        return plan_slice(config, FLAGS.topology)
    from experiments.session.build import build
    from experiments.session.fit import remarks, with_sizes
    from lowrank_jax.train.compiled import memory

    experiment = build(config, seq_len=FLAGS.seq_len or config.labels.get("seq_len"))
    describe(experiment)
    for line in remarks(config, experiment.task, experiment.config):
        print(spoken(line))
    with with_sizes(experiment.config, experiment.task):
        memory.check_fits(experiment.compile(counted=True))
        if (merge := experiment.compile_merge()) is not None:
            memory.check_fits(merge, what="merge")


def describe(experiment: Any) -> None:
    """Prints the adapters' sites, what was left to the data, the parameters and their bytes."""
    from experiments.papers import gpt3
    from experiments.planning.claim import claim
    from experiments.session.fit import described
    from lowrank_jax.core.trees import nbytes

    print(experiment.plan)
    if experiment.task is not None and experiment.chosen:
        print(described(experiment.chosen, experiment.task, experiment.config))
    parameters = experiment.parameters
    print(f"trainable {parameters['trainable']:,}, frozen {parameters['frozen']:,} parameters")
    print(
        f"trainable and optimizer {nbytes(experiment.abstract_state) / 2**20:,.1f} MiB, "
        f"frozen {nbytes(experiment.abstract_frozen) / 2**20:,.1f} MiB over {experiment.mesh.size} device(s)"
    )
    if experiment.base.name == gpt3.MODEL:
        print("\n".join(claim()), flush=True)


def plan_slice(config: Any, name: str) -> None:
    """Prints what the step needs on a named slice, and the smallest slice of that kind that is enough.

    Raises:
      UserError: an unknown slice, or one that the config's mesh or batch cannot be divided over.
    """
    from experiments.planning import topology

    asked = topology.parse(name)
    topology.prepare(asked)  # before jax starts its devices

    from experiments.planning import needs, slices
    from experiments.session.build import build
    from lowrank_jax.core.errors import UserError

    seq_len = FLAGS.seq_len or config.labels.get("seq_len")
    target = topology.target(asked)
    with topology.planning_for(asked, target):
        experiment = build(config, seq_len, devices=list(target.devices))
        describe(experiment)
        print(f"compiling for {asked} ...", flush=True)
        found = needs.needs(experiment)
        print("\n".join(needs.described(experiment, asked, target, found)), flush=True)

        def on(other: topology.Topology) -> Any:
            devices = list(topology.target(other).devices)
            return build(config, seq_len, experiment.task, devices)

        def given(other: topology.Topology) -> int | None:
            try:
                return needs.arguments(on(other)).total
            except UserError:  # the mesh, the batch, or too few simulated devices
                return None

        def compiled(other: topology.Topology) -> Any:
            print(f"looking for the smallest slice that fits: compiling for {other} ...", flush=True)
            return needs.needs(on(other))

        best = slices.smallest(asked, found, given, compiled)
        if best is None:
            print(f"no slice of {asked.kind.name} that this config can be divided over is enough; {REMEDY}")
        else:
            print(f"smallest slice of {asked.kind.name} that fits: {best[0]}, {needs.verdict(best[1], best[0])}")


REMEDY = (
    "mesh.data copies the weights and mesh.fsdp divides them (--config.mesh.data=1 --config.mesh.fsdp=-1), "
    "train.batch_size must be a multiple of both, and base.remat and base.quantize need less memory"
)

if __name__ == "__main__":
    launch(main)
