"""Gathers what the workers of a sweep have left below its root: records, and W&B's offline runs.

python -m experiments.gather --root=gs://BUCKET/PREFIX --results=NAME --wandb=FOLDER
"""

from absl import flags

from experiments.cli import launch
from experiments.records import leases, offline_runs
from experiments.records.lines import append, files_of
from lowrank_jax.core.errors import UserError


def define_flags() -> None:
    """The program's flags; not defined at import, as other programs have them too."""
    flags.DEFINE_string("root", None, "The root that the workers share: gs://..., s3://... or a folder")
    flags.DEFINE_string("results", None, "NAME or NAME.jsonl: the file to which the records are added that it lacks")
    flags.DEFINE_string("wandb", None, "Folder for W&B's offline runs, which `wandb sync` then uploads")
    flags.mark_flags_as_required(["root"])


def main(_) -> None:
    """Adds the records to the file and copies the offline runs; prints how many."""
    options = flags.FLAGS
    if not (options.results or options.wandb):
        raise UserError("give --results=NAME, --wandb=FOLDER or both")
    root = leases.Root(options.root)
    if options.results:
        file, _ = files_of(options.results)
        records = root.results()
        print(f"{len(records)} records below {root.url}; {append(file, records)} were new in {file}")
    if options.wandb:
        count = offline_runs.fetch(root.store, options.wandb)
        print(f"{count} offline runs in {options.wandb}; upload: wandb sync {options.wandb}/{offline_runs.PATTERN}")


if __name__ == "__main__":
    define_flags()
    launch(main)
