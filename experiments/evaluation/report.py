"""lm-eval's results as rows: each share with its count and Wilson's interval."""

from collections.abc import Iterator, Mapping
from typing import Any

from experiments.records.text_table import number
from lowrank_jax.metrics.interval import wilson

SHARES = ("acc", "acc_norm", "exact_match", "math_verify")  # metrics that are the mean of right and wrong answers


def rows_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{"task", "metric", "filter", "value", "n"} of each metric; of a share also "correct", "low" and "high" (95%)."""
    found = []
    for task, metrics in results["results"].items():
        n = sum(_counts(results, task))
        for name, value in metrics.items():
            metric, comma, chosen = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            row = {"task": task, "metric": metric, "filter": chosen, "value": float(value), "n": n}
            if metric in SHARES and n:
                row["correct"] = round(value * n)
                row["low"], row["high"] = wilson(row["correct"], n)
            found.append(row)
    return found


def table_of(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows as lines of text, with a header; shares in percent."""
    lines = [("task", "metric", "filter", "value", "95% interval", "n")]
    for row in rows:
        share = "low" in row
        value = number(row["value"] * 100, ".2f") if share else number(row["value"], ".4f")
        interval = f"{row['low'] * 100:.2f} to {row['high'] * 100:.2f}" if share else ""
        lines.append((row["task"], row["metric"], row["filter"], value, interval, str(row["n"])))
    return lines


def _counts(results: Mapping[str, Any], task: str) -> Iterator[int]:
    """Questions of a task, or of each task of a group."""
    if task in results["n-samples"]:
        yield results["n-samples"][task]["effective"]
        return
    for each in results.get("group_subtasks", {}).get(task, ()):
        yield from _counts(results, each)
