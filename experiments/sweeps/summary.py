"""A sweep's summary in W&B, as one run at its end: the table of its records and a figure of their losses."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.records import claims, json_files, leases, offline_runs, run_folder
from experiments.tables import sweep as sweep_table
from experiments.tables.figures import draw_losses

DIGEST = "summary.json"  # of the records that were shown
SUMMARIES = "summaries"


def show(name: str, results: Sequence[dict], workdir: str | Path, plain: dict, root: leases.Root | None = None) -> str:
    """Shows the records of a sweep in W&B, once for the same records, whatever number of workers ends.

    Args:
      name: of the sweep, which is the group of its runs.
      results: of its cells.
      workdir: the summary is a folder there, as a run is.
      plain: the config of a cell; its `tracking` says where records go.
      root: of the workers, if they share one.

    Returns:
      one line that says where it is; "" where nothing is shown: no tracking, or another worker shows it.
    """
    tracking = plain.get("tracking") or {}
    if not results or (tracking.get("wandb") == "disabled" and tracking.get("backend", "wandb") == "wandb"):
        return ""
    import jax

    jax.config.update("jax_platforms", "cpu")  # a sweep leaves the devices to its runs
    from lowrank_jax.train.tracking import Tracker, TrackingConfig, mode_of

    own = {key: tracking[key] for key in ("wandb", "project", "backend") if key in tracking}
    wanted = TrackingConfig(**own, group=name, tags=("summary",))
    if mode_of(wanted) == "disabled" and wanted.backend == "wandb":
        return ""
    folder = run_folder.run_folder(workdir, f"{name}-summary")
    content = json.dumps(sorted((result["name"], result["status"], result.get("losses")) for result in results))
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    claim = claims.claim_of(folder, "experiments.sweep")
    if not claim.take():
        return ""
    try:
        file = folder / DIGEST
        if file.is_file() and json_files.read_json(file, "remove it") == digest:
            return ""
        if root and not root.store.create(f"{SUMMARIES}/{name}-{digest}", str(folder.absolute()).encode()):
            return ""
        lines = sweep_table.of(results).lines
        with Tracker(folder, folder.name, {"sweep": name, "cells": len(results)}, wanted, kind="summary") as tracker:
            tracker.table("cells", lines[0], lines[1:])
            tracker.image("losses", draw_losses(results, folder / "losses.png"))
            tracker.summary(_counts(results))
        json_files.write_json(file, digest)
        if root:
            offline_runs.put(root.store, folder)
    finally:
        claim.release()
    return f"summary of the sweep: {folder}"


def _counts(results: Sequence[dict]) -> dict[str, Any]:
    states = [result["status"] for result in results]
    return {"cells": len(results), **{state: states.count(state) for state in sorted({*states})}}
