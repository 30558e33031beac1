"""The records of a run: JSON lines in its folder, and the same in W&B, written by process 0 alone."""

import contextlib
import json
import math
import netrc
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, TextIO
from urllib.parse import urlsplit

import jax
import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import read_bytes
from lowrank_jax.core.json_text import parse
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.train.trackio_run import TrackioRun, check_installed

METRICS, SAMPLES, DECODED = "metrics.jsonl", "samples.jsonl", "decoded.jsonl"
WANDB_ID = "wandb_id"
Mode = Literal["online", "offline", "disabled"]
Wanted = Literal["auto", "online", "offline", "disabled"]
SHOWN = 32  # decoded texts that W&B's table has; the file has all
GROUP_VARIABLE = "WANDB_RUN_GROUP"  # of W&B; a sweep sets it for its runs
INIT_SECONDS, FINISH_SECONDS = 30.0, 120.0  # W&B's own: 90, and no end


@dataclass(frozen=True)
class TrackingConfig:
    """Where records go besides metrics.jsonl.

    Attributes:
      wandb: `auto` (online when logged in, otherwise offline; nothing if wandb is not installed), `online`, `offline`
        or `disabled`.
      project, group: as W&B shows them; the group of a sweep's runs is the sweep.
      tags: your own; a run's method, rank, rate, seed, task and base are added.
      backend: `wandb`, or `trackio`, which keeps records on this machine alone; then the key `wandb` says nothing.
      observe_every: steps between records of MFU, memory and so on (docs/reliability.md); 0: none.
    """

    wandb: Wanted = "auto"
    project: str = "lowrank_jax"
    group: str | None = None
    tags: tuple[str, ...] = ()
    backend: Literal["wandb", "trackio"] = "wandb"
    observe_every: Annotated[int, Range(least=0)] = 0

    def __post_init__(self):
        check_ranges(self, "tracking")


class Tracker:
    """Writes the records of one run. Use as a context manager; on processes other than 0 every method does nothing.

    A failure of W&B is printed once and ends W&B, never the run.

    Args:
      run_folder: metrics.jsonl and wandb/ go there.
      name: of the run.
      config: JSON-able, shown by W&B.
      tracking: where records go.
      resumed_step: records after this step are dropped, as they will be written again; 0 starts an empty file.
      kind: of the run, W&B's job type: its method.
      more: (step, values of a record) -> values that are added to it.

    Raises:
      UserError: metrics.jsonl cannot be written or is damaged, or W&B was set to a mode that is not available.
    """

    def __init__(
        self,
        run_folder: str | os.PathLike,
        name: str,
        config: Mapping[str, Any],
        tracking: TrackingConfig,
        resumed_step: int = 0,
        kind: str | None = None,
        more: Callable[[int, Mapping[str, Any]], Mapping[str, Any]] = lambda step, values: {},
    ):
        self._more = more
        self.path = Path(run_folder) / METRICS
        self._samples, self._decoded = Path(run_folder) / SAMPLES, Path(run_folder) / DECODED
        self._file: TextIO | None = None
        self._run: Any = None
        self._wandb: Any = None
        self._backend = "trackio" if tracking.backend == "trackio" else "W&B"
        if jax.process_index() != 0:
            return
        mode = mode_of(tracking)
        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            readers = {self.path: read_metrics, self._samples: read_samples, self._decoded: read_decoded}
            for path, read in readers.items():
                _cut(path, read, resumed_step)
            self._file = open(self.path, "a")  # noqa: SIM115
        if tracking.backend == "trackio":
            self._start_trackio(name, config, tracking, kind)
        elif mode != "disabled":
            self._start(mode, name, config, tracking, kind)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one record; several records may share a step. Non-finite numbers become null.

        Raises:
          UserError: the record cannot be written (a full disk).
        """
        if self._file is None:
            return
        values = {key: _plain(value) for key, value in {**values, **self._more(step, values)}.items()}
        record = {"step": int(step), "time": time.time(), **values}
        with _writing(self.path):
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        self._try(lambda run: run.log(values, step=int(step)))

    def samples(self, step: int, name: str, texts: Sequence[Mapping[str, str]]) -> None:
        """Appends the texts of an evaluation to samples.jsonl, and logs them to W&B as a table.

        Args:
          step: updates so far.
          name: of the evaluation.
          texts: {"prompt", "continuation", "reference" if there is one} of each.

        Raises:
          UserError: they cannot be written (a full disk).
        """
        self._append(self._samples, step, name, texts)
        self._show(step, name, texts)

    def decoded(self, step: int, name: str, texts: Sequence[Mapping[str, Any]]) -> None:
        """Appends the texts that an evaluation has scored to decoded.jsonl, and shows the first SHOWN in W&B.

        Args:
          step: updates so far.
          name: of the evaluation.
          texts: {"prompt", "continuation", "references": a list} of each.

        Raises:
          UserError: they cannot be written (a full disk).
        """
        self._append(self._decoded, step, name, texts)
        shown = [
            {key: "\n".join(value) if isinstance(value, list) else value for key, value in text.items()}
            for text in texts[:SHOWN]
        ]
        self._show(step, name, shown)

    def _append(self, path: Path, step: int, name: str, texts: Sequence[Mapping[str, Any]]) -> None:
        if self._file is None:
            return
        lines = [json.dumps({"step": int(step), "name": name, **text}, ensure_ascii=False) + "\n" for text in texts]
        with _writing(path), open(path, "a", encoding="utf-8") as file:
            file.writelines(lines)

    def _show(self, step: int, name: str, texts: Sequence[Mapping[str, str]]) -> None:
        if self._file is None:
            return
        columns = ("step", *dict.fromkeys(key for text in texts for key in text))
        data = [[int(step), *(text.get(key) for key in columns[1:])] for text in texts]
        self._try(
            lambda run: run.log({f"eval/{name}": self._wandb.Table(columns=list(columns), data=data)}, step=int(step))
        )

    def summary(self, values: Mapping[str, Any]) -> None:
        """Sets the run's headline values in W&B."""
        self._try(lambda run: run.summary.update({key: _plain(value) for key, value in values.items()}))

    def image(self, name: str, path: str | os.PathLike) -> None:
        """Shows a picture in W&B."""
        self._try(lambda run: run.log({name: self._wandb.Image(str(path))}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Shows a table in W&B."""
        data = [[_plain(cell) for cell in row] for row in rows]
        self._try(lambda run: run.log({name: self._wandb.Table(columns=list(columns), data=data)}))

    def close(self, failed: bool = False) -> None:
        """Ends the records; W&B shows the run as failed or finished."""
        self._try(lambda run: run.finish(exit_code=int(failed)))
        self._run = None
        file, self._file = self._file, None
        if file is not None:
            with _writing(self.path):  # what an earlier write has left
                file.close()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=error is not None)

    def _start_trackio(self, name: str, config: Mapping[str, Any], tracking: TrackingConfig, kind: str | None) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._wandb = trackio  # its Table and Image have W&B's names
        more = {"tags": list(tracking.tags), "kind": kind}
        group = os.environ.get(GROUP_VARIABLE, tracking.group)
        try:
            self._run = TrackioRun(tracking.project, name, group, {**config, **more})
        except Exception as error:
            _warn(f"trackio did not start ({_first_line(error)}); records go to {self.path} alone")

    def _start(
        self, mode: Mode, name: str, config: Mapping[str, Any], tracking: TrackingConfig, kind: str | None
    ) -> None:
        import wandb

        self._wandb = wandb
        folder = self.path.parent
        # A sweep's agent has already chosen the run's id and project.
        chosen: dict[str, Any] = (
            {} if "WANDB_SWEEP_ID" in os.environ else {"id": _wandb_id(folder, name), "project": tracking.project}
        )
        settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS)
        try:
            wandb.setup(settings=wandb.Settings(silent=True))
            self._run = wandb.init(
                mode=mode,
                dir=str(folder),
                name=name,
                resume="allow",
                reinit="create_new",  # trials of one program are several runs of one process
                config=dict(config),
                group=os.environ.get(GROUP_VARIABLE, tracking.group),
                job_type=kind,
                tags=list(tracking.tags),
                settings=settings,
                **chosen,
            )
        except Exception as error:
            if mode == "online":
                _warn(f"W&B cannot be reached ({_first_line(error)}); its records stay in {folder / 'wandb'}")
                wandb.teardown()  # its service still has the run's id
                self._start("offline", name, config, tracking, kind)
            else:
                _warn(f"W&B did not start ({_first_line(error)}); records go to {self.path} alone")

    def _try(self, action: Any) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            self._run = None
            _warn(f"{self._backend} stopped ({_first_line(error)}); records go to {self.path} alone")


def read_metrics(run_folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a run, in the order they were written; a half-written last line is left out.

    Raises:
      UserError: there is no metrics.jsonl, or a line other than the last is damaged.
    """
    return _read(Path(run_folder) / METRICS, str | list | dict)


def read_samples(run_folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The samples of a run: {"step", "name", "prompt", "continuation", "reference" if there is one} of each text.

    Raises:
      UserError: as `read_metrics`, of samples.jsonl.
    """
    return _read(Path(run_folder) / SAMPLES, list | dict)


def read_decoded(run_folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The scored texts of a run: {"step", "name", "prompt", "continuation", "references": a list} of each.

    Raises:
      UserError: as `read_metrics`, of decoded.jsonl.
    """
    return _read(Path(run_folder) / DECODED, dict, "copy the file again, or train the run again")


def _read(path: Path, refused: Any, remedy: str = "delete that line") -> list[dict[str, Any]]:
    """The records of a file; a line without a step, or with a value of a refused type, is damaged."""
    lines = read_bytes(path, f"no {path.name} in {path.parent}; give the folder of a run").split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse(line, finite=True)
            record["step"] = int(record["step"])
            if any(isinstance(value, refused) for value in record.values()):
                raise TypeError("a record has no such values")
            records.append(record)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) and lines[number:] != [b""]:
                raise UserError(f"line {number} of {path} is damaged; {remedy}") from error
    return records


def _cut(path: Path, read: Callable[[Path], list[dict[str, Any]]], step: int) -> None:
    """Keeps the complete records up to `step`, and drops the others."""
    if not path.exists():
        return
    records = [record for record in read(path.parent) if record["step"] <= step] if step else []
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    os.replace(partial, path)


def mode_of(tracking: TrackingConfig) -> Mode:
    """`wandb_mode` of a section; disabled for another backend.

    Raises:
      UserError: the backend is not available, or not in the mode that was set.
    """
    if tracking.backend == "wandb":
        return wandb_mode(tracking.wandb)
    check_installed()
    return "disabled"


def wandb_mode(wanted: Wanted) -> Mode:
    """online, offline or disabled; never one that would prompt.

    Args:
      wanted: `TrackingConfig.wandb`.

    Raises:
      UserError: W&B was set to a mode and is not installed, or is online without a key.
    """
    if wanted == "disabled":
        return wanted
    if not _installed():
        if wanted != "auto":
            raise UserError(
                f"tracking.wandb is {wanted!r} and wandb is not installed; pip install wandb, or use 'disabled'"
            )
        _warn(f"wandb is not installed: records go to {METRICS} alone")
        return "disabled"
    if wanted == "online" and not _logged_in():
        raise UserError("tracking.wandb is 'online' and there is no key; run `wandb login`, or use 'offline'")
    if wanted != "auto":
        return wanted
    asked = os.environ.get("WANDB_MODE")
    if asked in ("offline", "disabled", "dryrun"):
        return "disabled" if asked == "disabled" else "offline"
    return "online" if _logged_in() else "offline"


def _installed() -> bool:
    try:
        import wandb
    except ImportError:
        return False
    return hasattr(wandb, "init")  # a folder wandb/ in the working directory imports as an empty package


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(host):
                return True
    return False


def _wandb_id(folder: Path, name: str) -> str:
    """The run's id in W&B, kept in its folder: a resumed run continues with it, a --fresh one gets a new id."""
    path = folder / WANDB_ID
    if not path.exists():
        with _writing(path):
            path.write_text(f"{re.sub('[^A-Za-z0-9_-]', '-', name)[:100]}-{uuid.uuid4().hex[:8]}")
    return path.read_text()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _writing(path: Path):
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); free space there or choose another folder") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _warn(line: str) -> None:
    print(line, flush=True)
