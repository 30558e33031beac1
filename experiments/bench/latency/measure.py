"""Times the variants of each cell in turn within one process, and keeps a record of each cell."""

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.bench.latency.cells import FIG5, OF_MAP, OF_TABLE, TABLE1, Cell, Variant, read_cells
from experiments.cli import complete_file
from experiments.config.plain import to_plain
from experiments.config.schema import unpack_run
from experiments.papers import lora_latency as paper
from experiments.records.environment import environment_record
from experiments.records.lines import Recorded, check_results
from experiments.tables.speed import latency as table

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "experiments" / "results" / table.FILE
PAPERS = f"configs/bench.py:shape={paper.MODEL}"  # the base without --config
EXPERIMENT = table.EXPERIMENT


def base_of(name: str = PAPERS) -> tuple[Any, dict]:
    """The unpacked config of a file of this repository, and its plain form."""
    plain = to_plain(complete_file(str(ROOT / name)))
    return unpack_run(plain), plain


def latency_main(options: Any, config: Any, plain: Mapping[str, Any]) -> None:
    """Measures the cells that are not recorded yet, writes a record after each, and prints the table.

    Args:
      options: flags of experiments.bench: cells, map, passes, warmup, results, again, table, format.
      config, plain: of the run whose base is measured; nothing but its section `base` is read.

    Raises:
      UserError: a wrong cell; a base that adapters cannot be merged into; a file that holds something else.
    """
    recorded = Recorded(options.results or RESULTS)
    if not options.table:
        check_results(recorded.path)
        setting = table.MAP if options.map else table.TABLE
        cells = read_cells(options.cells or (FIG5 if options.map else TABLE1))
        measure(config, plain, setting, cells, recorded, options)
    print(table.table(table.load([recorded.path]), options).text(options.format))


def measure(
    config: Any, plain: Mapping[str, Any], setting: str, cells: Sequence[Cell], recorded: Recorded, options: Any
) -> None:
    """Measures each cell that is not recorded, or all of them with `options.again`; see `latency_main`."""
    from experiments.bench.latency.programs import Model

    variants = OF_MAP if setting == table.MAP else OF_TABLE
    names = [name_of(config, setting, cell, options.passes) for cell in cells]
    missing = [pair for pair in zip(names, cells, strict=True) if options.again or recorded.get(pair[0]) is None]
    if not missing:
        return
    model, environment = Model(config.base), environment_record()
    for count, (name, cell) in enumerate(missing, 1):
        found = timed_cell(model, cell, variants, options.passes, options.warmup)
        recorded.put(
            {
                "name": name,
                "status": "finished",
                "labels": {"setting": setting, "model": config.base.name},
                "config": {"experiment": EXPERIMENT, "base": dict(plain["base"])},
                "latency": {**found, "passes": options.passes, "warmup": options.warmup},
                "environment": environment,
            }
        )
        print(f"[{count}/{len(missing)}] {cell.name}: {_told(found['variants'])}", flush=True)


def name_of(config: Any, setting: str, cell: Cell, passes: int) -> str:
    """The record's name: what was measured, and on what kind of device."""
    device = re.sub(r"[^A-Za-z0-9]+", "-", jax.devices()[0].device_kind)
    base, unroll = config.base, config.base.scan_unroll
    words = [EXPERIMENT, setting, Path(base.name).name, jax.numpy.dtype(base.dtype).name, f"unroll{unroll}"]
    return "-".join([*words, base.attention, cell.name, f"{passes}passes", device])


def timed_cell(model: Any, cell: Cell, variants: Sequence[Variant], passes: int, warmup: int) -> dict[str, Any]:
    """{"batch", "length", "size", "variants": [{"method", "merged", "rank", "parameters", "same", "mean_ms", ...}]}."""
    programs = model.programs(cell, variants)
    seconds = in_turn([one.run for one in programs], passes, warmup)
    found = [
        {
            "method": one.variant.method or "base",
            "merged": one.variant.merged,
            "rank": one.rank,
            "parameters": one.parameters,
            "same": one.same,
            "mean_ms": round(1e3 * statistics.fmean(times), 4),
            "std_ms": round(1e3 * statistics.stdev(times), 4),
            "median_ms": round(1e3 * statistics.median(times), 4),
        }
        for one, times in zip(programs, seconds, strict=True)
    ]
    return {"batch": cell.batch, "length": cell.length, "size": cell.size, "variants": found}


def in_turn(runs: Sequence[Callable[[], Any]], passes: int, warmup: int) -> list[list[float]]:
    """Seconds of each pass of each run, waited for: one pass of all runs, then the next, each time beginning one later.

    A drift of the machine, and what a run leaves in its caches for the one after it, then affect all alike.
    """
    for run in runs:
        for _ in range(warmup):
            jax.block_until_ready(run())
    seconds: list[list[float]] = [[] for _ in runs]
    for first in range(passes):
        for place in range(len(runs)):
            which = (first + place) % len(runs)
            began = time.perf_counter()
            jax.block_until_ready(runs[which]())
            seconds[which].append(time.perf_counter() - began)
    return seconds


def _told(variants: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{table.name_of(one)} {one['mean_ms']:.2f} ms" for one in variants)
