"""One process of compare_processes.py: trains each method on each mesh; process 0 saves losses and trained leaves.

A method's file appears when it is complete, for a later call to go on from.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from compare_processes import ADAM, ADAM_RATE, COMMON, MESHES, METHODS, PLACE, SGD, file_of

from experiments.cli import complete_file, set_xla_flags


def main() -> None:
    """Joins the other processes and runs everything."""
    set_xla_flags()
    import jax
    import numpy as np

    methods, steps, to = json.loads(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    coordinator, processes, process = (os.environ[name] for name in PLACE)
    if int(processes) > 1:
        jax.distributed.initialize(coordinator, int(processes), int(process))
    for method in methods:
        found: dict[str, Any] = {}
        for mesh in MESHES[jax.device_count()]:
            name = f"{method}|{'x'.join(map(str, mesh))}"
            found |= {f"{name}|{leaf}": value for leaf, value in trained(method, mesh, steps).items()}
        if process == "0":
            (half := file_of(to, method).with_suffix(".half")).unlink(missing_ok=True)
            with half.open("wb") as file:
                np.savez(file, **found)
            half.rename(file_of(to, method))


def trained(method: str, mesh: tuple[int, int, int], steps: int) -> dict[str, Any]:
    """{"sgd|losses": [steps], "sgd|path of a leaf": its values after the last step, "adam|...": the same}."""
    import jax
    import optax

    from experiments.config.plain import to_plain
    from experiments.config.schema import unpack_run
    from experiments.session.build import build
    from lowrank_jax.train.step import make_step

    config = complete_file("configs/mora_uuid.py")
    given = COMMON | METHODS[method] | dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), mesh, strict=True))
    config.update_from_flattened_dict(given | {"optimizer.learning_rate": ADAM_RATE})
    experiment = build(unpack_run(to_plain(config)))
    state, frozen, _ = experiment.load()
    plain, layout = optax.identity(), jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_step(experiment.objective, plain, lambda _: SGD / ADAM_RATE)  # the state has Adam's rate
    layout = layout._replace(opt_state=plain.init(state.trainable))
    descent = jax.jit(step, out_shardings=(layout, None))
    found = trajectory("sgd", experiment, descent, state._replace(opt_state=layout.opt_state), frozen, steps)
    return found | trajectory(
        "adam", experiment, experiment.step, state, frozen, ADAM
    )  # the last: it donates the state


def trajectory(name: str, experiment: Any, step: Any, state: Any, frozen: Any, steps: int) -> dict[str, Any]:
    """{"NAME|losses", "NAME|path of a leaf"} of so many steps."""
    import numpy as np

    from lowrank_jax.core.paths import flatten

    losses, batches = [], experiment.batches()
    for _ in range(steps):
        state, metrics = step(state, frozen, experiment.place(next(batches)))
        losses.append(float(metrics["loss"]))  # waits: steps in flight on two processes of four devices can deadlock
    batches.close()
    leaves = {path: whole(leaf) for path, leaf in flatten(state.trainable).items()}
    return {f"{name}|{leaf}": value for leaf, value in {"losses": np.array(losses), **leaves}.items()}


def whole(leaf: Any) -> Any:
    """The whole array, on every process."""
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(leaf if leaf.is_fully_addressable else process_allgather(leaf, tiled=True))


if __name__ == "__main__":
    main()
