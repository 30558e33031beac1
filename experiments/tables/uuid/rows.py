"""The rows of MoRA's Table 2 from records: a row for each method and rank, by setting of the UUID experiment."""

import dataclasses
import statistics
from collections.abc import Sequence

from experiments.config.plain import config_hash, diff
from experiments.papers import mora
from experiments.records.results import at_step, rate_of, stage_of
from experiments.records.run_record import final_loss
from experiments.tables.table import Row, ended, median, medians, rates_of, state_of

ACCURACY, EXACT = "char_accuracy", "exact_match"  # as tasks.uuid scores them
# Rows that a table has at each scale, run or not.
ROWS = {
    "laptop": (("fft", None), ("lora", 8), ("mora", 8)),
    "gpu": (("fft", None), ("lora", 8), ("mora", 8), ("lora", 32), ("mora", 32), ("lora", 256), ("mora", 256)),
    "paper": (("fft", None), ("lora", 8), ("mora", 8), ("lora", 256), ("mora", 256)),
}
GPU_BASE = "smollm2-135m"  # of scale=gpu, where another is not named
# (base, method, rank) -> why scale=gpu has no such row. Kernels from d to f at r=256 give round(sqrt((d + f) 256)).
EMPTY = {
    (base, method, 256): f"r=256: {what}square {square} > width {width}{end}"
    for base, square, width in ((GPU_BASE, 735, 576), ("gemma3-270m", 830, 640))
    for method, what, end in (("mora", "", ""), ("lora", "no MoRA of this size to compare with (", ")"))
}


@dataclasses.dataclass(frozen=True)
class UuidRow(Row):
    """One (method, rank): the median over its seeds, or why it is empty."""

    parameters: int | None = None
    rate: float | None = None
    tried: tuple[float, ...] = ()
    accuracy: dict[int, float] = dataclasses.field(default_factory=dict)  # step -> %
    exact: float | None = None  # %, at the last evaluation
    wall_seconds: float | None = None
    seeds: int = 0
    note: str = ""
    losses: tuple = ()


@dataclasses.dataclass(frozen=True)
class Setting:
    """The rows of one setting (base, task, length) at one scale; `name` says how it differs from the first."""

    scale: str
    name: str
    base: str
    rows: tuple[UuidRow, ...]

    @property
    def same_steps(self) -> bool:
        """Whether ours were evaluated at the paper's steps."""
        return any(step in mora.TABLE2_STEPS for row in self.rows for step in row.accuracy)

    @property
    def steps(self) -> list[int]:
        """Evaluation steps of our columns: the paper's and the last one, or our own."""
        ours = sorted({step for row in self.rows for step in row.accuracy})
        return sorted({*mora.TABLE2_STEPS, *ours[-1:]}) if self.same_steps else ours


def settings(results: Sequence[dict], scale: str) -> list[Setting]:
    """The settings that have full runs at one scale, the one with most rows first; one without runs where none has."""
    groups: dict[str, list[dict]] = {}
    for result in results:
        if is_of(result, scale):
            groups.setdefault(config_hash(setting_of(result), ()), []).append(result)
    full = [group for group in groups.values() if any(stage_of(r) == "full" for r in group)]
    full.sort(key=lambda group: -len({key_of(r) for r in group if stage_of(r) == "full"}))
    found = []
    for group in full or [[]]:
        keys = [] if found else [(*key, "") for key in ROWS.get(scale, ())]
        keys += sorted({key_of(r) for r in group if stage_of(r) == "full"} - {*keys}, key=str)
        base = group[0]["config"].get("base", {}).get("name", "?") if group else ""
        rows = tuple(make_row(key, [r for r in group if key_of(r) == key], _why(scale, base, key)) for key in keys)
        found.append(Setting(scale, _setting_name(group, full), base, rows))
    return found


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
    """The settings that must be equal for two runs in one table."""
    config = result["config"]
    train, task = config.get("train") or {}, dict(config.get("task") or {})
    for where_only in ("data_dir", "eval_pairs"):
        task.pop(where_only, None)
    base = (config.get("base") or {}).get("name")
    return {"base": base, "task": task, "steps": train.get("steps"), "batch_size": train.get("batch_size")}


def _why(scale: str, base: str, key: tuple) -> str:
    """Why a row cannot be run; "" where it can."""
    method, rank, _ = key
    return EMPTY.get((base or GPU_BASE, method, rank), "") if scale == "gpu" else ""


def make_row(key: tuple, group: Sequence[dict], why: str = "") -> UuidRow:
    """The row of one key from its records: rates and full runs of one setting."""
    full, tried = [r for r in group if stage_of(r) == "full"], rates_of(group)
    if not full:
        not_run = "not run" if not tried else f"not run (only {len(tried)} rates tried)"
        return UuidRow(*key, tried=tried, note=why or not_run)
    done = ended(full)
    if not done:
        states = sorted({f"{state_of(r)}, lr {rate_of(r):g}" for r in full})
        return UuidRow(*key, tried=tried, note="; ".join(states))
    by_rate: dict[float, list[dict]] = {}
    for result in done:
        by_rate.setdefault(rate_of(result), []).append(result)  # pyright: ignore[reportArgumentType] every run has a rate
    # Of several full rates the one with most seeds, then the sweep's own rule.
    rate, best = min(by_rate.items(), key=lambda item: (-len(item[1]), _mean_loss(item[1]), -item[0]))
    scores = [one for r in best for one in r.get("evaluations") or [] if one.get(ACCURACY) is not None]
    lost = [r for r in full if rate_of(r) == rate and r not in best]
    stopped = [r for r in best if r["status"] == "interrupted"]
    notes = [f"stopped{at_step(stopped[0])}, to be resumed"] if stopped else []
    notes += [f"and {len(lost)} seeds {lost[0]['status']}"] if lost else []
    notes += [] if scores else ["no evaluation recorded"]
    # A resumed run has the wall time of its last session alone, and the training time of all.
    walls = [max(r.get("wall_seconds") or 0, r.get("train_seconds") or 0) for r in best]
    losses = [(step, loss) for r in best for step, loss in r.get("losses") or [] if loss is not None]
    return UuidRow(
        *key,
        parameters=(best[0].get("parameters") or {}).get("trainable"),
        rate=rate,
        tried=tried,
        accuracy=medians((one["step"], 100 * one[ACCURACY]) for one in scores),
        exact=median([100 * r["evaluations"][-1][EXACT] for r in best if _has_exact(r)]),
        wall_seconds=median(walls) or None,
        seeds=len(best),
        note="; ".join(notes),
        losses=tuple(medians(losses).items()),
    )


def _mean_loss(results: Sequence[dict]) -> float:
    return statistics.fmean(final_loss(result) for result in results)


def _has_exact(result: dict) -> bool:
    return bool(result.get("evaluations")) and result["evaluations"][-1].get(EXACT) is not None


def _setting_name(group: Sequence[dict], all_groups: Sequence[Sequence[dict]]) -> str:
    """How a second setting differs from the first, for its title."""
    if not group or len(all_groups) < 2:
        return ""
    parts = sorted({r["labels"].get("setting") for r in group} - {None, ""})
    if group is not all_groups[0]:
        parts += diff(setting_of(all_groups[0][0]), setting_of(group[0]))
    return f" ({'; '.join(parts)})" if parts else ""
