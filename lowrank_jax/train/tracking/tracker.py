"""Writes the records of a run: JSON lines in its folder, and the same in W&B or trackio, by process 0 alone."""

import json
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import jax
import numpy as np

from lowrank_jax.train.tracking.lines import (
    DECODED,
    METRICS,
    SAMPLES,
    cut,
    read_decoded,
    read_metrics,
    read_samples,
    writing,
)
from lowrank_jax.train.tracking.modes import Mode, TrackingConfig, mode_of
from lowrank_jax.train.tracking.trackio_run import TrackioRun

WANDB_ID = "wandb_id"
SHOWN = 32  # decoded texts that W&B's table has; the file has all
GROUP_VARIABLE = "WANDB_RUN_GROUP"  # of W&B; a sweep sets it for its runs
INIT_SECONDS, FINISH_SECONDS = 30.0, 120.0  # W&B's own: 90, and no end


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
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            readers = {self.path: read_metrics, self._samples: read_samples, self._decoded: read_decoded}
            for path, read in readers.items():
                cut(path, read, resumed_step)
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
        with writing(self.path):
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
        with writing(path), open(path, "a", encoding="utf-8") as file:
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
        """Sets the run's headline values in W&B, in place of what was logged under these names."""

        def set_values(run: Any) -> None:
            run.log({})  # ends the open step, whose values W&B would otherwise write over these
            run.summary.update({key: _plain(value) for key, value in values.items()})

        self._try(set_values)

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
            with writing(self.path):  # what an earlier write has left
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


def _wandb_id(folder: Path, name: str) -> str:
    """The run's id in W&B, kept in its folder: a resumed run continues with it, a --fresh one gets a new id."""
    path = folder / WANDB_ID
    if not path.exists():
        with writing(path):
            path.write_text(f"{re.sub('[^A-Za-z0-9_-]', '-', name)[:100]}-{uuid.uuid4().hex[:8]}")
    return path.read_text()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _warn(line: str) -> None:
    print(line, flush=True)
