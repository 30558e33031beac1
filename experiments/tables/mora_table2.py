"""Turns recorded results into the papers' tables, ours beside theirs.

python -m experiments.tables mora_table2 [--scale=gpu] [--results=experiments/results,runs] [--figures=FOLDER]
python -m experiments.tables lora_table2 [--model=minilm-l6] [--results=...] [--figures=FOLDER]
python -m experiments.tables speed [--results=experiments/results/speed/h100_suite.json]
python -m experiments.tables quantized
python -m experiments.tables ledger
"""

import dataclasses
import statistics
import sys
from collections.abc import Sequence

from absl import app, flags

from experiments.bench import report
from experiments.config.schema import config_hash, diff
from experiments.papers import ledger, mora
from experiments.records import run_folder
from experiments.records.results import at_step, load_results, rate_of, stage_of
from experiments.records.text_table import clock, lay_out, number
from experiments.tables import lora_table2, lora_text, quantized
from lowrank_jax.core.errors import UserError

ACCURACY, EXACT = "char_accuracy", "exact_match"  # as tasks.uuid scores them
TABLES = ("mora_table2", "lora_table2", "speed", "quantized", "ledger")
NAMES = {"fft": "FFT", "lora": "LoRA", "mora": "MoRA"}
# Rows that a table has at each scale, run or not.
ROWS = {
    "laptop": (("fft", None), ("lora", 8), ("mora", 8)),
    "gpu": (("fft", None), ("lora", 8), ("mora", 8), ("lora", 32), ("mora", 32), ("lora", 256), ("mora", 256)),
    "paper": (("fft", None), ("lora", 8), ("mora", 8), ("lora", 256), ("mora", 256)),
}
# SmolLM2-135M: kernels 576 -> 1536 at r=256 give round(sqrt(2112 * 256)) = 735.
EMPTY = {
    ("gpu", "mora", 256): "r=256: square 735 > width 576",
    ("gpu", "lora", 256): "r=256: no MoRA of this size to compare with (square 735 > width 576)",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One (method, rank) of a table: the median over its seeds, or why it is empty."""

    method: str
    rank: int | None
    variant: str = ""
    parameters: int | None = None
    rate: float | None = None
    tried: tuple[float, ...] = ()
    accuracy: dict[int, float] = dataclasses.field(default_factory=dict)  # step -> %
    exact: float | None = None  # %, at the last evaluation
    wall_seconds: float | None = None
    seeds: int = 0
    note: str = ""
    losses: tuple = ()

    @property
    def label(self) -> str:
        """MoRA 8."""
        parts = [NAMES.get(self.method, self.method), "" if self.rank is None else f"{self.rank}", self.variant]
        return " ".join(part for part in parts if part)


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of one setting (base, task, length) at one scale."""

    scale: str
    setting: str
    base: str
    rows: tuple[Row, ...]

    @property
    def same_steps(self) -> bool:
        """Whether ours were evaluated at the paper's steps."""
        return any(step in mora.TABLE2_STEPS for row in self.rows for step in row.accuracy)

    @property
    def steps(self) -> list[int]:
        """Evaluation steps of our columns: the paper's and the last one, or our own."""
        ours = sorted({step for row in self.rows for step in row.accuracy})
        if not self.same_steps:
            return ours
        return sorted({*mora.TABLE2_STEPS, *ours[-1:]})


def mora_table2(results: Sequence[dict], scale: str) -> list[Table]:
    """Table 2 at one scale, one table for each setting that has full runs; the one with most rows first.

    Args:
      results: as `load_results` gives them.
      scale: the results' labels.scale.
    """
    ours = [result for result in results if is_of(result, scale)]
    settings: dict[str, list[dict]] = {}
    for result in ours:
        settings.setdefault(config_hash(setting_of(result), ()), []).append(result)
    full = [group for group in settings.values() if any(stage_of(r) == "full" for r in group)]
    full.sort(key=lambda group: -len({key_of(r) for r in group if stage_of(r) == "full"}))
    tables = []
    for group in full or [[]]:
        keys = list(ROWS.get(scale, ())) if not tables else []
        keys = [(*key, "") for key in keys]
        keys += sorted({key_of(r) for r in group if stage_of(r) == "full"} - {*keys}, key=str)
        rows = tuple(make_row(key, [r for r in group if key_of(r) == key], scale) for key in keys)
        base = group[0]["config"].get("base", {}).get("name", "?") if group else ""
        tables.append(Table(scale, _setting_name(group, full), base, rows))
    return tables


def is_of(result: dict, scale: str) -> bool:
    """Whether a record belongs to the UUID experiment at this scale."""
    experiment = (result.get("config") or {}).get("experiment") or result["labels"].get("experiment")
    return experiment == "mora_uuid" and result["labels"].get("scale") == scale


def key_of(result: dict) -> tuple[str, int | None, str]:
    """(method, rank, variant)."""
    labels = result["labels"]
    rank = None if labels.get("method") == "fft" else labels.get("rank")
    return labels.get("method") or "?", rank, labels.get("variant") or ""


def setting_of(result: dict) -> dict:
    """What must be equal for two runs to stand in one table."""
    config = result["config"]
    train, task = config.get("train") or {}, dict(config.get("task") or {})
    for where_only in ("data_dir", "eval_pairs"):
        task.pop(where_only, None)
    base = (config.get("base") or {}).get("name")
    return {"base": base, "task": task, "steps": train.get("steps"), "batch_size": train.get("batch_size")}


def make_row(key: tuple, group: Sequence[dict], scale: str) -> Row:
    """The row of one key from its records: rates and full runs of one setting."""
    method, rank, variant = key
    blank = Row(method, rank, variant)
    full = [r for r in group if stage_of(r) == "full"]
    tried = tuple(sorted({rate for r in group if (rate := rate_of(r)) is not None}))
    if not full:
        why = EMPTY.get((scale, method, rank), "not run" if not tried else f"not run (only {len(tried)} rates tried)")
        return dataclasses.replace(blank, tried=tried, note=why)
    # A run that a signal stopped shows how far it came, and says so; it gives way to any finished one.
    ended = [r for r in full if r["status"] == "finished"] or [r for r in full if r["status"] == "interrupted"]
    if not ended:
        states = sorted({f"{r['status']}{at_step(r)}, lr {rate_of(r):g}" for r in full})
        return dataclasses.replace(blank, tried=tried, note="; ".join(states))
    by_rate: dict[float, list[dict]] = {}
    for result in ended:
        by_rate.setdefault(rate_of(result), []).append(result)
    # Of several full rates the one with most seeds, then the sweep's own rule.
    rate, best = min(by_rate.items(), key=lambda item: (-len(item[1]), _mean_loss(item[1]), -item[0]))
    accuracy: dict[int, list[float]] = {}
    for result in best:
        for evaluation in result.get("evaluations") or []:
            if evaluation.get(ACCURACY) is not None:
                accuracy.setdefault(evaluation["step"], []).append(100 * evaluation[ACCURACY])
    lost = [r for r in full if rate_of(r) == rate and r not in best]
    stopped = [r for r in best if r["status"] == "interrupted"]
    notes = [f"stopped{at_step(stopped[0])}, to be resumed"] if stopped else []
    notes += [f"and {len(lost)} seeds {lost[0]['status']}"] if lost else []
    notes += [] if accuracy else ["no evaluation recorded"]
    exact = [100 * r["evaluations"][-1][EXACT] for r in best if _has_exact(r)]
    # A resumed run knows the wall time of its last session alone, and the training time of all.
    walls = [max(r.get("wall_seconds") or 0, r.get("train_seconds") or 0) for r in best]
    return Row(
        method,
        rank,
        variant,
        parameters=(best[0].get("parameters") or {}).get("trainable"),
        rate=rate,
        tried=tried,
        accuracy={step: statistics.median(values) for step, values in sorted(accuracy.items())},
        exact=statistics.median(exact) if exact else None,
        wall_seconds=statistics.median(walls) or None,
        seeds=len(best),
        note="; ".join(notes),
        losses=tuple(_median_losses(best)),
    )


def render(table: Table, form: str = "text") -> str:
    """The table as aligned text or Markdown."""
    header = ["method", "r", "trainable", "lr (tried)"]
    if table.same_steps:
        header += [f"step {step}" for step in table.steps]
    else:
        header += [f"step {step}" for step in table.steps] + [f"paper {step}" for step in mora.TABLE2_STEPS]
    header += ["exact", "wall", "seeds", "note"]
    lines = [header, *(_cells(row, table) for row in table.rows)]
    # A column that no row fills is left out, notes first of all.
    keep = [i for i in range(len(header)) if i < 4 or any(line[i].strip("-| ") for line in lines[1:])]
    lines = [[line[i] for i in keep] for line in lines]
    what = "accuracy %, ours | paper" if table.same_steps else "accuracy %, ours, then the paper's"
    title = f"MoRA Table 2, {table.scale} scale" + (f", {table.base}" if table.base else "") + table.setting
    title = f"{title}: {what}"
    return "\n".join([title, "", lay_out(lines, form), "", *_captions(table)])


def _cells(row: Row, table: Table) -> list[str]:
    paper = mora.TABLE2.get((row.method, row.rank)) if not row.variant else None
    theirs = dict(zip(mora.TABLE2_STEPS, paper or (), strict=bool(paper)))
    cells = [NAMES.get(row.method, row.method) + (f" {row.variant}" if row.variant else ""), number(row.rank, "d")]
    cells += [number(row.parameters, ",d"), _rates(row)]
    for step in table.steps:
        mine = number(row.accuracy.get(step), ".1f")
        cells.append(f"{mine} | {number(theirs.get(step), '.1f')}" if step in mora.TABLE2_STEPS else mine)
    if not table.same_steps:
        cells += [number(theirs.get(step), ".1f") for step in mora.TABLE2_STEPS]
    wall = "-" if row.wall_seconds is None else clock(row.wall_seconds)
    return [*cells, number(row.exact, ".1f"), wall, str(row.seeds) if row.seeds else "-", row.note]


def _captions(table: Table) -> list[str]:
    lines = [
        f"Accuracy: % of the 32 hexadecimal digits by greedy decoding (chance {mora.CHANCE}); exact: % of whole values "
        "at the last evaluation; median over seeds.",
    ]
    whose = f"{mora.BASE_MODEL}, {mora.PAIRS:,} pairs, {mora.STEPS:,} steps"
    if not table.same_steps:
        lines.append(
            f"The paper's columns are another base model and step scale ({whose}): compare the order of the methods, "
            "not the numbers."
        )
    elif table.scale != "paper":
        lines.append(f"The paper's base model is another ({whose}).")
    return lines


def _rates(row: Row) -> str:
    if row.rate is None:
        return "-"
    return f"{row.rate:g}" + (f" ({', '.join(f'{rate:g}' for rate in row.tried)})" if len(row.tried) > 1 else "")


def _mean_loss(results: Sequence[dict]) -> float:
    return statistics.fmean(run_folder.final_loss(result) for result in results)


def _has_exact(result: dict) -> bool:
    return bool(result.get("evaluations")) and result["evaluations"][-1].get(EXACT) is not None


def _median_losses(results: Sequence[dict]) -> list[tuple[int, float]]:
    by_step: dict[int, list[float]] = {}
    for result in results:
        for step, loss in result.get("losses") or []:
            if loss is not None:
                by_step.setdefault(step, []).append(loss)
    return [(step, statistics.median(losses)) for step, losses in sorted(by_step.items())]


def _setting_name(group: Sequence[dict], all_groups: Sequence[Sequence[dict]]) -> str:
    """What sets a second setting apart from the first, for its title."""
    if not group or len(all_groups) < 2:
        return ""
    named = {r["labels"].get("setting") for r in group} - {None, ""}
    parts = sorted(named)
    if group is not all_groups[0]:
        parts += diff(setting_of(all_groups[0][0]), setting_of(group[0]))
    return f" ({'; '.join(parts)})" if parts else ""


def define_flags() -> None:
    """The program's flags; not at import, for other programs have a --results too."""
    flags.DEFINE_list(
        "results", ["experiments/results"], "Folders searched for results, with commas: experiments/results,runs"
    )
    flags.DEFINE_enum("scale", "laptop", list(ROWS), "Scale of the runs to show (mora_table2)")
    flags.DEFINE_string("model", "minilm-l6", "Base model of the runs to show (lora_table2)")
    flags.DEFINE_enum("format", "text", ["text", "markdown"], "How the table is printed")
    flags.DEFINE_string("figures", None, "Folder to draw the figures into (PNG)")


def tables_main(names: Sequence[str], options) -> None:
    """Prints the named table; draws its figures if asked."""
    if len(names) != 1 or names[0] not in TABLES:
        raise UserError(f"name one table: {' or '.join(TABLES)}" + (f"; not {' '.join(names)}" if names else ""))
    if names[0] == "ledger":
        print(ledger.render())
        return
    if names[0] == "lora_table2":
        _print_lora(options)
        return
    if names[0] == "speed":
        suites = report.load_suites(options.results)
        print("\n\n".join(report.render(suite, options.format) for suite in suites))
        return
    if names[0] == "quantized":
        print(quantized.render(quantized.quantized(load_results(options.results)), options.format))
        return
    tables = mora_table2(load_results(options.results), options.scale)
    print("\n\n".join(render(table, options.format) for table in tables))
    if options.figures:
        from experiments.tables import figures  # matplotlib

        for number, table in enumerate(tables, 1):
            stem = f"{table.scale}_" if number == 1 else f"{table.scale}{number}_"
            for path in figures.draw(table, options.figures, stem):
                print(f"drew {path}")


def _print_lora(options) -> None:
    table = lora_table2.lora_table2(load_results(options.results), options.model)
    print(lora_text.render(table, options.format))
    if options.figures:
        from experiments.tables import lora_figure  # matplotlib

        if path := lora_figure.draw(table, options.figures):
            print(f"drew {path}")


def main(argv: Sequence[str]) -> int:
    """Entry point: 0, or 2 where the user can mend it."""
    try:
        tables_main(argv[1:], flags.FLAGS)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(main)
