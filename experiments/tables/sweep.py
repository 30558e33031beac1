"""The table of any grid: a row for each setting in which the configs differ, with medians over seeds."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from experiments.config.vary import SEED, shown, varying
from experiments.records.run_record import LOSS_WINDOW, final_loss, last_evaluation, score_name
from experiments.records.text_table import clock, number
from experiments.tables.table import Table, ended, median, no_figures, state_of
from lowrank_jax.core.errors import UserError

figures = no_figures
NO_SCORES = ("nonfinite", "distinct", "spread")  # numbers of an evaluation that only say whether a run collapsed
ALWAYS = ("method", "rank")
CAPTION = (
    "Training loss: mean of {steps}. Scores: of its last evaluation. Time: in steps alone, "
    "over all sessions. Columns: what differs between the configs, seeds aside."
)
TOGETHER = "Runs that were trials of one program have the time of the whole program."


def table(results: Sequence[dict], options: Any) -> Table:
    """One row a setting.

    Raises:
      UserError: no record, or records of several experiments, whose scores cannot stand side by side.
    """
    if not results:
        raise UserError(f"--results={','.join(options.results)} has no record of a run; a run writes it when it ends")
    experiments = sorted({result["config"].get("experiment") or "?" for result in results})
    if len(experiments) > 1:
        raise UserError(f"--results has runs of {' and '.join(experiments)}; name the files or folders of one of them")
    return of(results)


def of(results: Sequence[dict]) -> Table:
    """The table of one experiment's records, at least one."""
    settings = _settings(results)
    names = list(dict.fromkeys(name for _, runs in settings for run in runs for name in last_evaluation(run)))
    scores = [name for name in names if name not in NO_SCORES]
    keys = list(settings[0][0])
    header = [*keys, "seeds", "training loss", *map(score_name, scores), "trainable", "training time", "note"]
    lines = [header, *(_line(values, runs, scores) for values, runs in settings)]
    lines = [line if any(line[-1] for line in lines[1:]) else line[:-1] for line in lines]
    count = f"{len(results)} runs" if len(results) > 1 else "1 run"
    title = f"{results[0]['config'].get('experiment')}: {count} in {len(settings)} setting(s), medians over seeds"
    shared = (TOGETHER,) if any(run.get("together", 1) > 1 for run in results) else ()
    return Table(title, tuple(lines), (CAPTION.format(steps=_averaged(results)), *shared), data=settings)


def _averaged(results: Sequence[dict]) -> str:
    """Which steps of a run `final_loss` averages, in words; a run may have fewer than its window."""
    lengths = [run["losses"][-1][0] for run in ended(results) if run.get("losses")]
    short = sorted({steps for steps in lengths if steps < LOSS_WINDOW})
    if not short:
        return f"a run's last {LOSS_WINDOW} steps"
    counts = f"{short[0]}-{short[-1]}" if len(short) > 1 else f"{short[0]}"
    if len(short) == len(set(lengths)):
        return f"all steps of a run ({counts})"
    return f"a run's last {LOSS_WINDOW} steps, or of all where it has fewer ({counts})"


def _settings(results: Sequence[dict]) -> list[tuple[dict[str, Any], list[dict]]]:
    """(values, runs) of each setting, sorted by its values."""
    groups: dict[str, tuple[dict[str, Any], list[dict]]] = {}
    for result, values in zip(results, varying([result["config"] for result in results]), strict=True):
        labels = {name: result["labels"].get(name) for name in ALWAYS}
        values = labels | {key: value for key, value in values.items() if key != SEED}
        groups.setdefault(json.dumps(values), (values, []))[1].append(result)
    return sorted(groups.values(), key=lambda group: [_place(value) for value in group[0].values()])


def _place(value: Any) -> tuple:
    """The order of values in a column: None first, numbers by size, the rest by name."""
    if isinstance(value, int | float):
        return 1, value, ""
    return (0, 0, "") if value is None else (2, 0, str(value))


def _line(values: dict[str, Any], runs: Sequence[dict], scores: Sequence[str]) -> list[str]:
    done = ended(runs)
    seeds = len({run["config"].get(SEED) for run in done})
    times = [run["train_seconds"] for run in done if run.get("train_seconds")]
    notes = [state_of(run) for run in runs if run["status"] != "finished"]
    counts = [run.get("parameters") or {} for run in runs]
    trainable = sorted({one["trainable"] for one in counts if "trainable" in one})
    return [
        *map(shown, values.values()),
        str(seeds) if seeds == len(done) else f"{seeds} ({len(done)} runs)",
        number(median([loss for run in done if math.isfinite(loss := final_loss(run))]), ".4f"),
        *(number(_score(done, name), ".4g") for name in scores),
        "-".join(f"{count:,}" for count in trainable) or "-",
        clock(statistics.median(times)) if times else "-",
        "; ".join(dict.fromkeys(notes)),
    ]


def _score(runs: Sequence[dict], name: str) -> float | None:
    found = [last_evaluation(run).get(name) for run in runs]
    return median([value for value in found if isinstance(value, int | float)])
