"""Finds recorded results in files and folders, and reads the fields that tables need."""

import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from experiments.config.vary import seeds_alone
from experiments.records import run_folder, run_record
from experiments.records.checks import is_finite
from experiments.records.lines import SUFFIX, files_of, read_lines
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import refuse_special

LOSSES = ("loss", "perplexity", "loss_per_byte", "bits_per_byte", "text_loss")  # scores that are better when smaller


def load_results(places: Iterable[str | Path]) -> list[dict]:
    """Every record at or below the places, the first found of each name, from .jsonl and .json files and run folders.

    Scores and losses that are too large to compute with are None in it, as those are that were not finite.

    Args:
      places: folders; .jsonl files; or a name without the suffix, whose .jsonl file and folder are both read.

    Raises:
      UserError: there is nothing at a place.
    """
    found: dict[str, dict] = {}
    for place in places:
        file, folder = files_of(place)
        refuse_special(file)
        below = () if Path(place).suffix == SUFFIX else _below(folder)
        if not file.is_file() and (below == () or not folder.is_dir()):
            raise UserError(f"--results: there is no folder {str(place)!r} and no {file.name}")
        for result in (*_of_file(file), *below):
            if isinstance(result.get("labels"), dict) and "name" in result:
                found.setdefault(result["name"], _finite(result))
    return list(found.values())


def _finite(result: dict) -> dict:
    result.setdefault("config", {})
    for one in result.get("evaluations") or []:
        one.update({name: None for name, value in one.items() if not is_finite(value)})
    if "losses" in result:
        result["losses"] = [[step, loss if is_finite(loss) else None] for step, loss in result["losses"]]
    return result


def _of_file(path: Path) -> Iterator[dict]:
    if path.is_file():
        yield from read_lines(path).values()


def _below(folder: Path) -> Iterator[dict]:
    for place, subfolders, files in os.walk(folder):
        subfolders.sort()
        if run_folder.CONFIG in files or run_folder.RESULT in files:
            files, subfolders[:] = [name for name in files if name == run_folder.RESULT], []  # no deeper
        for name in sorted(files):
            if name.endswith(SUFFIX):
                yield from _of_file(Path(place, name))
            elif name.endswith(".json") and (result := run_record.read_result(Path(place, name))):
                yield result


def stage_of(result: dict) -> str:
    """labels.stage; "full" for a run outside a grid."""
    return result["labels"].get("stage") or "full"


def rate_of(result: dict) -> float | None:
    """The peak learning rate."""
    return (result["config"].get("optimizer") or {}).get("learning_rate")


def at_step(result: dict) -> str:
    """ " at step 480", the last step with a recorded loss."""
    return f" at step {result['losses'][-1][0]}" if result.get("losses") else ""


def scores(results: Sequence[dict]) -> str:
    """One line a run; then, where they differ in seeds alone, last, best and median of each score."""
    lines = [
        f"{result['name']}: {result['status']}; {result.get('message') or run_record.summary(result)}"
        for result in results
    ]
    done = [result for result in results if result["status"] == "finished" and result.get("evaluations")]
    if not seeds_alone([result["config"] for result in results]):
        done = []
    names = [name for name in run_record.last_evaluation(done[0]) if name not in ("nonfinite",)] if done else []
    for name in names:
        last = [run_record.last_evaluation(result).get(name) for result in done]
        better = min if name.rpartition("/")[2] in LOSSES else max
        each = [[value for one in result["evaluations"] if is_finite(value := one.get(name))] for result in done]
        best = [better(values) for values in each if values]
        known = [value for value in last if value is not None and is_finite(value)]
        shown = ", ".join(f"{value:.4f}" if is_finite(value) else "not finite" for value in last)
        median = (
            f"; median {statistics.median(known):.4f} (last), {statistics.median(best):.4f} (best)" if known else ""
        )
        lines.append(f"{run_record.score_name(name)}: last {shown}{median}")
    return "\n".join(lines)
