"""The folder of a run: its name, its files, whether it can be resumed, and its result."""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from experiments.config.plain import changes, content_hash
from experiments.records import data_record, forgetting
from experiments.records.checks import check_chosen, check_record, is_finite
from experiments.records.environment import environment_record
from lowrank_jax.core import json_text
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of, read_bytes, refuse_special

CONFIG, METRICS, RESULT, CHECKPOINTS = "config.json", "metrics.jsonl", "result.json", "checkpoints"
SAMPLES, DECODED = "samples.jsonl", "decoded.jsonl"
# What a run writes as files and as folders.
FILES = (CONFIG, METRICS, RESULT, SAMPLES, DECODED, "curves.png")
FOLDERS = (CHECKPOINTS, "adapter", "peft", "model", "wandb", "profile")
DATA = "data"  # key in config.json and result.json: digests of the training data
CHOSEN = "chosen"  # the same: {"train.steps": 100, ...}, keys that the config left to the data; see session.fit
ENDED = ("finished", "diverged")  # a diverged run would diverge again: it is a result, not a fault
LOSS_POINTS = 400  # a figure of 9 inches shows no more, and a record stays near 10 kB
LOSS_WINDOW = 20  # steps over which a final training loss is averaged
EVALUATION = "eval/"  # what an evaluation's keys start with in metrics.jsonl


def run_name(plain: dict) -> str:
    """The default name of a run: experiment, scale, model, task, method, rank, rate, seed, stage unless full, hash."""
    labels = plain.get("labels") or {}
    rate = (plain.get("optimizer") or {}).get("learning_rate")
    parts = [plain.get("experiment") or "run", *(labels.get(name) for name in ("scale", "model", "task", "method"))]
    parts.append(f"r{labels['rank']}" if labels.get("rank") is not None else None)
    parts.append(f"lr{rate:g}" if isinstance(rate, int | float) else "lrbest" if rate is not None else None)
    parts.append(f"seed{plain.get('seed', 0)}")
    parts.append(labels["stage"] if labels.get("stage") not in (None, "", "full") else None)
    parts.append(content_hash(plain))
    return "-".join(str(part) for part in parts if part)


def run_folder(workdir: str | Path, name: str) -> Path:
    """workdir/name, for a name that stays inside workdir.

    Raises:
      UserError: the name is not a plain folder name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,200}", name):
        raise UserError(f"run name {name!r}: use letters, digits and -_.+=, with a letter, a digit or _ first")
    return Path(workdir) / name


def look(folder: str | Path, plain: dict, fresh: bool = False, known: dict | None = None) -> str:
    """The state of a run's folder for a config: "new", "resume" or "finished". Only reads.

    Args:
      folder: runs/<name>.
      plain: the config as `plain.to_plain` gives it.
      fresh: to start again from nothing.
      known: digests of what was read already; see `data_record.make`.

    Raises:
      UserError: the folder has a run of another config or on other data, or no run at all.
    """
    return _look(Path(folder), plain, fresh, known)[0]


def open_run(
    folder: str | Path, plain: dict, fresh: bool = False, known: dict | None = None, chosen: dict | None = None
) -> str:
    """`look`, which also writes config.json of a new or resumed run. Call it on process 0 alone, with the run's claim.

    `fresh` first removes that run's folder, and nothing else. Prints a note where a resumed run has no digests.
    `chosen` has the values that the data decided, see `session.fit`; the other arguments are those of `look`.
    """
    folder = Path(folder)
    verdict, data = _look(folder, plain, fresh, known)
    if verdict == "resume" and (names := data_record.unknown(plain, data_of(folder).get(DATA, {}))):
        print(f"{folder} has no digest of {', '.join(names)}: taken as what the run was trained on so far", flush=True)
    if fresh and folder.exists():
        shutil.rmtree(folder)
    if verdict != "finished":  # the bookkeeping (labels, tracking, ...) may have changed
        data = data or data_record.make(plain, known=known)
        more = {DATA: data, CHOSEN: chosen}
        write_json(folder / CONFIG, {**plain, **{key: value for key, value in more.items() if value}})
    return verdict


def data_of(folder: str | Path) -> dict:
    """{DATA: ..., CHOSEN: ...} of a run's config.json, for its result.json; {} where it has none."""
    there = read_config(Path(folder) / CONFIG, remedy="start again with --fresh")
    return {key: there[key] for key in (DATA, CHOSEN) if key in there}


def chosen_of(folder: str | Path, fresh: bool = False) -> dict[str, int]:
    """The values that the data decided when the run began, which a resumed run keeps; {} for a new run."""
    file = Path(folder) / CONFIG
    return {} if fresh or not file.is_file() else data_of(folder).get(CHOSEN, {})


def _look(folder: Path, plain: dict, fresh: bool, known: dict | None) -> tuple[str, dict]:
    """(verdict, the data's record, {} of a new run)."""
    check_no_link(folder, fresh)
    if (kind := kind_of(folder)) not in (None, "folder"):
        raise UserError(f"{folder} is a {kind}; choose another --name")
    entries = {path.name for path in folder.iterdir()} if folder.exists() else set()
    entries = {name for name in entries if not name.endswith(".tmp")}  # left by a process killed during the first write
    if entries and CONFIG not in entries:
        raise UserError(f"{folder} exists and is no run (it has no {CONFIG}); choose another --name")
    if fresh or not entries:
        return "new", {}
    for name in FILES:
        refuse_special(folder / name)
    for name in FOLDERS:
        if (kind := kind_of(folder / name)) not in (None, "folder"):
            raise UserError(
                f"{folder / name} is a {kind} where a run has a folder; move it away, or choose another --name"
            )
    there = read_config(folder / CONFIG, remedy="start again with --fresh, or choose another --name")
    changed = changes(there, plain)
    if changed:
        shown = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise UserError(
            f"{folder} has a run of another config ({shown}); choose another --name, or --fresh to delete that run"
        )
    result, earlier = read_result(folder / RESULT), there.get(DATA) or {}
    ended = bool(result) and result["status"] in ENDED and not falls_short(result, plain)
    now = data_record.make(plain, earlier, known)
    data_record.check(plain, earlier, now, ended, str(folder))
    return "finished" if ended else "resume", {**earlier, **now}


def check_no_link(folder: Path, fresh: bool) -> None:
    """Refuses a link to nothing, and with `fresh` any link: what it points at may not be the run's to delete.

    Raises:
      UserError: names the link and where it points.
    """
    if folder.is_symlink() and (fresh or not folder.exists()):
        target, gone = os.readlink(folder), "" if folder.exists() else ", which is not there"
        remedy = "remove the link, or name what it points at" if fresh and not gone else "remove the link"
        what = "--fresh deletes folders and no links; " if fresh and not gone else ""
        raise UserError(f"{folder} is a link to {target}{gone}; {what}{remedy}")


def falls_short(result: dict, plain: dict) -> bool:
    """Whether a finished run ended, by its train.stop_at, before this config's last step: it is then resumed."""
    return result["status"] == "finished" and last_step(result.get("config") or {}) < last_step(plain)


def last_step(plain: dict) -> float:
    """The step a plain config ends at: train.stop_at, or train.steps; infinity where only the data tell."""
    train = plain.get("train") or {}
    if train.get("stop_at"):
        return train["stop_at"]
    return math.inf if train.get("epochs") or train.get("steps") == 0 else train.get("steps") or 0


def continue_from(source: Path, target: Path, plain: dict) -> bool:
    """Starts run `target` of config `plain` from run `source`, if that is the same run stopped early.

    Returns:
      whether it did; not if target exists, source has no checkpoint, or the configs differ in more than bookkeeping.
    """
    if target.exists() or not (source / CHECKPOINTS).is_dir() or not (source / CONFIG).is_file():
        return False
    there = read_config(source / CONFIG, remedy="remove that run")
    if content_hash(there) != content_hash(plain) or last_step(there) >= last_step(plain):
        return False
    partial = target.with_name(target.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copytree(source / CHECKPOINTS, partial / CHECKPOINTS)
    shutil.copy(source / METRICS, partial / METRICS)
    for name in (SAMPLES, DECODED):
        if (source / name).is_file():
            shutil.copy(source / name, partial / name)
    write_json(partial / CONFIG, {**plain, **{key: there[key] for key in (DATA, CHOSEN) if key in there}})
    os.replace(partial, target)
    return True


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON; a reader sees either the old file or the complete new one. Non-finite numbers become null.

    Raises:
      UserError: the disk is full or the folder is not writable; the previous file is kept.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    text = json.dumps(finite(value), indent=1, allow_nan=False) + "\n"
    # A list of plain values on one line; no string holds a raw newline, so none is touched.
    text = re.sub(r"\[\n\s*([^\[\]{}]*?)\n\s*\]", lambda found: "[" + re.sub(r"\n\s*", " ", found[1]) + "]", text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        remedy = "free some space" if error.errno == errno.ENOSPC else "check the folder"
        raise UserError(f"cannot write {path}: {error.strerror}; {remedy} and run again: it resumes") from error


def read_json(path: str | Path, remedy: str) -> Any:
    """Reads JSON; raises UserError with the given remedy for one that cannot be read."""
    return json_text.read_json(path, remedy, f"cannot read {path}: there is no such file; {remedy}", finite=True)


def read_config(path: str | Path, remedy: str) -> dict:
    """A run's config.json; raises UserError with the given remedy for anything else."""
    plain = read_json(path, remedy)
    if not isinstance(plain, dict):
        raise UserError(f"{path} is no config of a run, but a JSON {type(plain).__name__}; {remedy}")
    data_record.check_digests(plain.get(DATA), str(path), remedy)
    check_chosen(plain.get(CHOSEN), str(path), remedy)
    return plain


def read_result(path: str | Path) -> dict | None:
    """A result.json; None where there is no file, or one that is not the record of a run (half of one, for example).

    Raises:
      UserError: it is a folder or a pipe, or a record with a field of another type than a run writes.
    """
    if kind_of(path) is None:
        return None
    try:
        result = json_text.parse(read_bytes(path), finite=True)
    except json_text.NotJson:
        return None
    if not isinstance(result, dict) or "status" not in result:
        return None
    check_record(result, str(path), "remove it, and the run goes on from its last checkpoint")
    return result


def result_record(
    name: str,
    plain: dict,
    status: str,
    *,
    wall_seconds: float,
    train_seconds: float,
    parameters: dict[str, int],
    evaluations: list[dict],
    losses: list,
    environment: dict | None = None,
    **more: Any,
) -> dict:
    """The content of result.json.

    Args:
      name: the run's name.
      plain: its plain config; its labels are repeated outside it.
      status: "finished", "diverged", or another end.
      wall_seconds, train_seconds: whole run, and optimizer steps alone, over all resumptions.
      parameters: {"trainable": ..., "frozen": ...}.
      evaluations: [{"step", "char_accuracy", "exact_match", ...}], fractions of 1.
      losses: (step, loss) pairs; thinned to LOSS_POINTS.
      environment: by default that of `environment_record()`.
    """
    return {
        "name": name,
        "status": status,
        "labels": plain.get("labels") or {},
        "config": plain,
        "environment": environment_record() if environment is None else environment,
        "wall_seconds": wall_seconds,
        "train_seconds": train_seconds,
        "parameters": parameters,
        "evaluations": evaluations,
        "losses": thin(losses),
        **more,
    }


def finish_run(
    folder: str | Path,
    name: str,
    plain: dict,
    status: str,
    parameters: dict[str, int],
    started: float,
    train_seconds: float,
    message: str = "",
    **more: Any,
) -> dict:
    """Writes result.json from the content of metrics.jsonl, and returns it.

    Args:
      started: time.time() at the start of this session. An earlier session that was killed left no end time, and
        wall_seconds is this session's alone; train_seconds covers all.
      more: further keys of the record; the others are those of `result_record`.
    """
    from lowrank_jax.train.tracking import read_metrics  # imports jax, which the sweep and the tables do not need

    losses, evaluations = split_metrics(read_metrics(folder))
    record = result_record(
        name,
        plain,
        status,
        wall_seconds=time.time() - started,
        train_seconds=train_seconds,
        parameters=parameters,
        evaluations=evaluations,
        losses=losses,
        message=message,
        **forgetting.rises(plain, evaluations),
        **more,
    )
    write_json(Path(folder) / RESULT, record)
    return record


def split_metrics(records: list[dict]) -> tuple[list[tuple[int, float]], list[dict]]:
    """(step, loss) pairs and evaluations of metrics.jsonl, by step; of a step recorded twice the last record counts."""
    losses, evaluations = {}, {}
    for record in records:
        step = record["step"]
        if record.get("loss") is not None:
            losses[step] = record["loss"]
        scores = {key.removeprefix(EVALUATION): value for key, value in record.items() if key.startswith(EVALUATION)}
        if scores:
            evaluations.setdefault(step, {"step": step}).update(scores)
    return sorted(losses.items()), [evaluations[step] for step in sorted(evaluations)]


def last_evaluation(result: dict) -> dict[str, float]:
    """The scores of the last evaluation, without its step."""
    last = (result.get("evaluations") or [{}])[-1]
    return {name: value for name, value in last.items() if name != "step"}


def score_name(name: str) -> str:
    """A score's name in text: "held-out loss" for an evaluation's "loss", to tell it from the training loss."""
    entry, _, score = name.rpartition("/")
    return f"{entry}{'/' if entry else ''}{'held-out loss' if score == 'loss' else score}"


def summary(result: dict) -> str:
    """A result in a few words: training loss over the last steps, scores of the last evaluation, times."""
    words, losses = [], result.get("losses") or []
    if math.isfinite(loss := final_loss(result)):
        steps = min(LOSS_WINDOW, losses[-1][0])
        words = [f"training loss {loss:.4f} (mean of the last {steps} step{'s' if steps > 1 else ''})"]
    elif losses and losses[-1][1] is not None:  # the last finite one of a run that diverged
        words = [f"training loss {losses[-1][1]:.4f} (of step {losses[-1][0]})"]
    words += [
        f"{score_name(name)} {value:.4g}"
        for name, value in last_evaluation(result).items()
        if isinstance(value, int | float)
    ]
    whole = f", {wall:.1f} s from start to end" if (wall := result.get("wall_seconds")) else ""
    return ", ".join([*words, f"{result.get('train_seconds') or 0:.1f} s of training{whole}"])


def thin(points: list, limit: int = LOSS_POINTS) -> list[list]:
    """At most `limit` points: the last LOSS_WINDOW and the rest evenly spread with the first."""
    points = [[int(step), round(float(loss), 6)] for step, loss in points]
    if len(points) <= limit:
        return points
    head, tail = points[:-LOSS_WINDOW], points[-LOSS_WINDOW:]
    keep = limit - len(tail)
    return [head[i * len(head) // keep] for i in range(keep)] + tail


def final_loss(result: dict, window: int = LOSS_WINDOW) -> float:
    """Training loss averaged over the last `window` steps; infinite for a run that diverged or has no losses."""
    losses = result.get("losses") or []
    if result.get("status") == "diverged" or not losses:
        return math.inf
    last = losses[-1][0]
    values = [loss for step, loss in losses if step > last - window]
    if not all(map(is_finite, values)):
        return math.inf
    return statistics.fmean(values)


def finite(value: Any) -> Any:
    """A value for JSON: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
