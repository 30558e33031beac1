"""The folder of a run: its name, its files, whether it can be resumed, and its end."""

import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from experiments.config.plain import changes, content_hash
from experiments.records import data_record, forgetting
from experiments.records.checks import check_chosen
from experiments.records.json_files import read_json, write_json
from experiments.records.run_record import read_result, result_record, split_metrics
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of, refuse_special

CONFIG, METRICS, RESULT, CHECKPOINTS = "config.json", "metrics.jsonl", "result.json", "checkpoints"
SAMPLES, DECODED = "samples.jsonl", "decoded.jsonl"
# What a run writes as files and as folders.
FILES = (CONFIG, METRICS, RESULT, SAMPLES, DECODED, "curves.png")
FOLDERS = (CHECKPOINTS, "adapter", "peft", "model", "wandb", "profile")
DATA = "data"  # key in config.json and result.json: digests of the training data
CHOSEN = "chosen"  # the same: {"train.steps": 100, ...}, keys that the config left to the data; see session.fit
ENDED = ("finished", "diverged")  # a diverged run would diverge again: it is a result, not a fault


def run_name(plain: dict) -> str:
    """The default name of a run: experiment, scale, model, task, method, rank, rate, seed, stage unless full, hash.

    Of a label that is a path or a Hub name, as a base's may be, only the last part is used; the hash tells runs apart.
    """
    labels = plain.get("labels") or {}
    rate = (plain.get("optimizer") or {}).get("learning_rate")
    parts = [plain.get("experiment") or "run", *(labels.get(name) for name in ("scale", "model", "task", "method"))]
    parts.append(f"r{labels['rank']}" if labels.get("rank") is not None else None)
    parts.append(f"lr{rate:g}" if isinstance(rate, int | float) else "lrbest" if rate is not None else None)
    parts.append(f"seed{plain.get('seed', 0)}")
    parts.append(labels["stage"] if labels.get("stage") not in (None, "", "full") else None)
    parts.append(content_hash(plain))
    return "-".join(_in_a_name(str(part)) for part in parts if part)


def _in_a_name(label: str) -> str:
    last = label.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._+=-]+", "_", last) if "/" in label else label  # others are named as they always were


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


def read_config(path: str | Path, remedy: str) -> dict:
    """A run's config.json; raises UserError with the given remedy for anything else."""
    plain = read_json(path, remedy)
    if not isinstance(plain, dict):
        raise UserError(f"{path} is no config of a run, but a JSON {type(plain).__name__}; {remedy}")
    data_record.check_digests(plain.get(DATA), str(path), remedy)
    check_chosen(plain.get(CHOSEN), str(path), remedy)
    return plain


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
