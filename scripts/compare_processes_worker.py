"""One process of compare_processes.py: trains each method on each mesh; process 0 saves losses and trained leaves."""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from compare_processes import ADAM, ADAM_RATE, COMMON, MESHES, METHODS, PLACE, SGD

from experiments.cli import complete_file, set_xla_flags


def main() -> None:
    """Joins the other processes and runs everything."""
    set_xla_flags()
    import jax
    import numpy as np

    methods, steps, to = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    coordinator, processes, process = (os.environ[name] for name in PLACE)
    if int(processes) > 1:
        jax.distributed.initialize(coordinator, int(processes), int(process))
    found: dict[str, Any] = {}
    for method in methods:
        for mesh in MESHES[jax.device_count()]:
            for optimizer, rate, count in (("sgd", SGD, steps), ("adam", ADAM_RATE, ADAM)):
                name = f"{method}|{'x'.join(map(str, mesh))}|{optimizer}"
                found |= {
                    f"{name}|{leaf}": value for leaf, value in trained(method, mesh, optimizer, rate, count).items()
                }
    if process == "0":
        np.savez(to, **found)


def trained(method: str, mesh: tuple[int, int, int], optimizer: str, rate: float, steps: int) -> dict[str, Any]:
    """{"losses": [steps], path of a leaf: its values after the last step}."""
    import jax
    import numpy as np
    import optax

    from experiments.config.plain import to_plain
    from experiments.config.schema import unpack_run
    from experiments.session.build import build
    from lowrank_jax.core.paths import flatten
    from lowrank_jax.train.step import make_step

    config = complete_file("configs/mora_uuid.py")
    given = COMMON | METHODS[method] | dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), mesh, strict=True))
    for path, value in (given | {"optimizer.learning_rate": rate}).items():
        config.update_from_flattened_dict({path: value})
    experiment = build(unpack_run(to_plain(config)))
    state, frozen, _ = experiment.load()
    step = experiment.step
    if optimizer == "sgd":
        plain, layout = optax.identity(), jax.tree.map(lambda leaf: leaf.sharding, state)
        state = state._replace(opt_state=plain.init(state.trainable))
        layout = layout._replace(opt_state=plain.init(state.trainable))
        step = jax.jit(make_step(experiment.objective, plain, lambda _: 1.0), out_shardings=(layout, None))
    losses, batches = [], experiment.batches()
    for _ in range(steps):
        state, metrics = step(state, frozen, experiment.place(next(batches)))
        losses.append(float(metrics["loss"]))  # waits: steps in flight on two processes of four devices can deadlock
    batches.close()
    return {"losses": np.array(losses), **{path: whole(leaf) for path, leaf in flatten(state.trainable).items()}}


def whole(leaf: Any) -> Any:
    """The whole array, on every process."""
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(leaf if leaf.is_fully_addressable else process_allgather(leaf, tiled=True))


if __name__ == "__main__":
    main()
