"""Merges an adapter (ours, PEFT's or the MoRA fork's) into its base and writes the model in Hugging Face's layout."""

import argparse
import contextlib
import dataclasses
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone that is not installed yet

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lowrank_jax.adapters import Plan, attach, check, merge
from lowrank_jax.adapters.leaves.merge import check_merges, is_tied
from lowrank_jax.bases.attached import check_adapter, load_attached
from lowrank_jax.bases.base import DTYPES, Base, BaseConfig, export_params, load_base
from lowrank_jax.bases.peft import headed, untied
from lowrank_jax.core.errors import UserError, front_door, report
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.trees import cast
from lowrank_jax.core.types import Report
from lowrank_jax.interop.carried import carry, with_tokenizer
from lowrank_jax.interop.peft.files import find_peft
from lowrank_jax.models.parts.heads import HEADS

UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}
TOKENS = 16  # that the drift is measured on


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for a fault that the user can fix)."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The sum is made in float32 and cast once; the drift that the cast costs is printed. On a terminal, a "
        "bar shows how far reading, merging and writing are.",
    )
    parser.add_argument(
        "--base", required=True, metavar="NAME_OR_FOLDER", help="as in a config: name, folder, Hub name"
    )
    parser.add_argument("--adapter", required=True, type=Path, metavar="FOLDER", help="a run's adapter/, or PEFT's")
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="new folder for the merged model")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the written weights (default: float32)")
    parser.add_argument("--shard_size", help="largest file, such as 2GB or 500MB (default: one file)")
    parser.add_argument("--revision", help="of a Hub base")
    parser.add_argument(
        "--head",
        choices=HEADS,
        help="of an encoder whose folder has none: the head that the adapter was trained with, and brings along",
    )
    parser.add_argument("--num_labels", "--num-labels", type=int, default=2, help="of that head (default: 2)")
    options = parser.parse_args(argv)
    try:
        run(**{name if name != "base" else "base_name": value for name, value in vars(options).items()})
        return 0
    except UserError as error:
        return report(error)
    except KeyboardInterrupt:
        print(
            "error: stopped; nothing was written to the target that could be taken for a whole model", file=sys.stderr
        )
        return 130


def run(
    base_name: str,
    adapter: Path,
    to: Path,
    dtype: str,
    shard_size: str | None = None,
    revision: str | None = None,
    head: str | None = None,
    num_labels: int = 2,
) -> float:
    """Merges an adapter and writes the model.

    Args:
      base_name, adapter, to, dtype, shard_size, revision, head, num_labels: the flags of the same names.

    Returns:
      The drift, see `measure_drift`.

    Raises:
      UserError: `to` has content, the base or the adapter cannot be read, they do not fit, or nothing can be written.
    """
    limit = read_size(shard_size)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} exists and is not empty; give another --to")
    ours = check_adapter(adapter)
    started = time.monotonic()

    def say(step: int, text: str) -> None:
        print(f"[{step}/4 {time.monotonic() - started:6.1f} s] {text}", flush=True)

    say(1, f"loading {base_name} in float32")
    with progress("reading", " values") as report:
        config = BaseConfig(base_name, revision=revision)
        if head is not None:
            config = headed(config, head, num_labels)
        base = load_base(config, jax.random.key(0), report=report)
    say(2, f"loading the adapter in {adapter} and adding it")
    base, plan, variables = _with_head(*load_attached(adapter, base), adapter)
    carried = carry(base.path, base.tokenizer)
    if (found := adapter if ours else find_peft(adapter)) is not None:
        carried = with_tokenizer(carried, found)
    check_merges(plan, flatten(variables["params"]))
    check(base.model, plan, variables, _tokens(base))
    with progress("merging", " kernels") as report:
        params = merge(variables, plan, report)
    say(3, "comparing the merged model with base and adapter")
    drift = measure_drift(base, plan, variables, params, dtype)
    print(f"{'':14}largest difference of a logit / largest logit, written as {dtype}: {drift:.2e}")
    say(4, f"writing {to}")
    with progress("writing", " values") as report:
        options = {"shard_size": limit, "tokenizer": base.tokenizer, "report": report, "carried": carried}
        export_params(params, base.config, to, dtype, **options)
    print(f"{to} has {plan.methods} of {len(plan.sites)} kernels merged into {base.name}")
    return drift


@contextlib.contextmanager
def progress(what: str, unit: str) -> Iterator[Report]:
    """A progress bar on stderr while the block runs, moved by its report function; only on a terminal."""
    with tqdm(desc=what, unit=unit, unit_scale=True, disable=None, leave=False, dynamic_ncols=True) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        yield report


def read_size(text: str | None) -> int | None:
    """Bytes of "2GB", "500MB", "1000"; None for none.

    Raises:
      UserError: it is no size.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
    if not found or float(found[1]) <= 0:
        raise UserError(f"--shard_size {text!r} is not a size; give one such as 2GB or 500MB")
    return int(float(found[1]) * UNITS[found[2]])


def measure_drift(base: Base, plan: Plan, variables: Any, params: Any, dtype: str) -> float:
    """Largest |merged - unmerged| over largest |unmerged| output, both computed in float32 from their weights."""
    tokens = _tokens(base)
    unmerged = np.asarray(jax.tree.leaves(jax.jit(attach(base.model, plan))(variables, tokens))[0])
    written = cast(cast(params, dtype), jnp.float32)
    merged = np.asarray(jax.tree.leaves(jax.jit(base.model.apply)({"params": written}, tokens))[0])
    return float(np.abs(merged - unmerged).max() / np.abs(unmerged).max())


def _tokens(base: Base) -> np.ndarray:
    return np.random.default_rng(0).integers(0, base.config.vocab_size, (1, TOKENS)).astype(np.int32)


def _with_head(base: Base, plan: Plan, variables: dict[str, Any], folder: Path) -> tuple[Base, Plan, dict[str, Any]]:
    """Unties the output layer from an embedding that has an adapter: the output layer must not get the update."""
    paths = set(flatten(variables["params"]))
    if not any(site.table and is_tied(site.path, paths) for site in plan.sites):
        return base, plan, variables
    base = untied(dataclasses.replace(base, params=variables["params"]), folder)
    return base, plan, {**variables, "params": base.params}


if __name__ == "__main__":
    with front_door():
        sys.exit(main())
