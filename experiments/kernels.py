"""Prints milliseconds and launches of a traced GPU step by kind of kernel, as one JSON line.

python -m experiments.bench --config=configs/bench.py:shape=smollm2-135m,batch=64,seq=64 --trace=FOLDER
python -m experiments.kernels --profile=FOLDER
"""

import json

from absl import flags

from experiments.bench.training.kernels import find, summarise
from experiments.cli import launch
from lowrank_jax.core.errors import UserError

flags.DEFINE_string("profile", None, "A folder of experiments.bench --trace, or its .xplane.pb.")
flags.DEFINE_integer("top", 30, "Number of kinds to list, by time.", lower_bound=1)
FLAGS = flags.FLAGS


def main(_) -> None:
    """Prints {"span_ms", "busy_ms", "launches", "kernels": [[kind, ms, launches], ...]}, all of one step."""
    from jax.profiler import ProfileData

    file = find(FLAGS.profile)
    try:
        data = ProfileData.from_file(str(file))
    except RuntimeError as error:
        raise UserError(f"--profile: {file} is no profile ({error}); make one with experiments.bench --trace") from None
    print(json.dumps(summarise(data, FLAGS.top)))


if __name__ == "__main__":
    launch(main)
