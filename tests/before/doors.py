"""The package as these tests enter it: the one file here to edit when what it imports moves to another place.

Commands, config files and files on disk stay as they are; what is imported below may get other names and homes, as long
as every function here still gives what it says.
"""

import functools
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"


# --- configs ---


def plain_config(words: str) -> dict:
    """The whole plain config of "--config=FILE:ARG --config.key=value ...", as a run would write it down."""
    from experiments.cli import complete_file
    from experiments.config.labels import with_labels
    from experiments.config.plain import to_plain

    first, *rest = shlex.split(words)
    config = complete_file(f"{ROOT}/{first.removeprefix('--config=')}")
    for word in rest:
        path, _, text = word.removeprefix("--config.").partition("=")
        *sections, key = path.split(".")
        node = config
        for section in sections:
            node = node[section]
        node[key] = _typed(text, node[key])
    return with_labels(to_plain(config))


def _typed(text: str, old: Any) -> Any:
    if isinstance(old, bool):
        return text.lower() == "true"
    return text if old is None else type(old)(text)


def name_of(plain: dict) -> str:
    """The default name of a run; it ends with the content hash."""
    from experiments.records.run_folder import run_name

    return run_name(plain)


def hash_of(plain: dict) -> str:
    """The content hash of a plain config."""
    from experiments.config.plain import content_hash

    return content_hash(plain)


def labels_of(plain: dict) -> dict:
    """The labels of a run, by its plain config."""
    return plain["labels"]


def sections() -> dict[str, type]:
    """Section of a config -> its dataclass; tasks as "task.NAME"."""
    from experiments.config.sections import experiment_types

    types = experiment_types()
    tasks = types.pop("task")
    return types | {f"task.{name}": cls for name, cls in tasks.items()}


def plain(value: Any) -> Any:
    """A value's JSON form."""
    from experiments.config.plain import to_plain

    return to_plain(value)


def suite_words(suite: str) -> dict[str, tuple[str, ...]]:
    """Row -> its arguments of experiments.bench, of a file of configs/suites."""
    from experiments.bench.suites.rows import load_suite

    return {row.name: row.words for row in load_suite(suite).rows}


def grid_cells(config: str, grid: str) -> dict[str, dict]:
    """Name -> labels of every cell of a grid file over a config file."""
    from experiments.sweeps.grid import Grid

    cells = Grid(f"{ROOT}/{config}", grid if Path(grid).is_absolute() else f"{ROOT}/{grid}").cells
    return {name: labels_of(cell.plain) for name, cell in cells.items()}


@functools.cache
def recorded() -> list[dict]:
    """Every recorded result of a run, {"name", "config", "labels", ...} each."""
    from experiments.records.results import load_results

    return load_results([RESULTS])


# --- tables ---


def table(name: str, **options: str) -> str:
    """What `python -m experiments.tables NAME --option=value` prints.

    Results are read once for all tables, and LoRA's table is made once for both its formats: 2 s each.
    """
    from experiments import tables

    given = {"results": [str(RESULTS)], "scale": "laptop", "model": "minilm-l6"} | options
    if only := given.pop("only", ""):  # of the records' files, those that there were when the text was kept
        given["results"] = [str(RESULTS / file) for file in only.split(",")]
    form = given.pop("format", "text")
    module = tables.find([name])
    own = hasattr(module, "load")  # its results are no records of runs
    made = tables.make(module, SimpleNamespace(**given)) if own else _once(module, given["scale"], given["model"])
    return made.text(form) + "\n"


@functools.cache
def _once(module: Any, scale: str, model: str) -> Any:
    return module.table(recorded(), SimpleNamespace(results=[str(RESULTS)], scale=scale, model=model))


# --- adapters ---


def logits(base_folder: str | Path, adapter_folder: str | Path, tokens: Any) -> Any:
    """The logits of a base with an adapter, ours or PEFT's, as scripts/merge_adapter.py reads them."""
    import jax
    import numpy as np

    from lowrank_jax.adapters import attach, make_plan, read_configs
    from lowrank_jax.bases.base import architecture_of
    from lowrank_jax.checkpoints.adapters_only import load_adapter
    from lowrank_jax.interop.peft.folder import load_peft

    base = _base(base_folder)
    if (Path(adapter_folder) / "adapter_config.json").exists():
        rows, layers = architecture_of(base.config).interop.hf_table(base.config), base.config.num_hidden_layers
        held = load_peft(adapter_folder, base.params, rows, layers, fingerprint=base.fingerprint)
        plan, variables = held.plan, held.variables
    else:
        trained, scales, description = load_adapter(adapter_folder, base.fingerprint)
        plan = make_plan(base.params, read_configs(description["config"], str(adapter_folder)))
        variables = {"params": base.params, "scales": scales, **trained}
    return np.asarray(jax.jit(attach(base.model, plan))(variables, tokens))


@functools.cache
def _base(folder: str | Path) -> Any:
    from lowrank_jax.bases.base import BaseConfig, load_base

    return load_base(BaseConfig(str(folder)))


# --- compiled programs ---


def lower(words: str, seq_len: int | None, trials: int = 1) -> Any:
    """The traced step of a config on shapes, on one device: .jaxpr, .lower().

    Args:
      words: see `plain_config`.
      seq_len: tokens a row; None takes the config's.
      trials: in one program, with rates as experiments.bench gives them.
    """
    import dataclasses

    import jax

    from experiments.config.schema import unpack_run
    from experiments.session.build import build
    from experiments.session.trial_group import TrialGroup

    config = unpack_run(plain_config(words))
    seq_len = seq_len or config.labels["seq_len"]
    if trials == 1:
        one = build(config, seq_len=seq_len, devices=jax.devices()[:1])
        return one.step.trace(one.abstract_state, one.abstract_frozen, one.abstract_batch)
    rates = [config.optimizer.learning_rate * (trial + 1) / trials for trial in range(trials)]
    optimizers = [dataclasses.replace(config.optimizer, learning_rate=rate) for rate in rates]
    group = TrialGroup([dataclasses.replace(config, optimizer=one) for one in optimizers], seq_len)
    return _trace_trials(group)


def _trace_trials(group: Any) -> Any:
    """As TrialGroup.compile lowers it."""

    class Asked(Exception):
        pass

    class Traced:
        def lower(self, *given):
            raise Asked(given)

    step, group.step = group.step, Traced()
    try:
        group.compile()
    except Asked as asked:
        return step.trace(*asked.args[0])
    finally:
        group.step = step
    raise AssertionError("TrialGroup.compile lowers nothing")


def place() -> dict[str, Any]:
    """What the last bits of a run depend on beside this code.

    Its instruction sets belong to it: virtual machines call processors of several generations "AMD EPYC".
    """
    import hashlib
    import os
    import platform

    import jax
    import jaxlib

    described = Path("/proc/cpuinfo")  # of Linux
    about = described.read_text().splitlines() if described.exists() else []
    cpu, flags = (next((line for line in about if line.startswith(key)), "") for key in ("model name", "flags"))
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "devices": len(jax.devices()),
        "cpu": cpu.partition(":")[2].strip() or platform.machine(),
        "instructions": hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:10],
        "cores": os.cpu_count(),
    }
