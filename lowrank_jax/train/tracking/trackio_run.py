"""A run in trackio, a tracker that keeps its records on this machine, with the calls that W&B's runs have."""

import contextlib
import contextvars
import importlib.util
import io
from collections.abc import Mapping
from typing import Any

from lowrank_jax.core.errors import UserError


def installed() -> bool:
    """Whether trackio can be imported."""
    return importlib.util.find_spec("trackio") is not None


def check_installed() -> None:
    """Refuses tracking.backend="trackio" where it is not installed.

    Raises:
      UserError: it is not.
    """
    if not installed():
        raise UserError("tracking.backend is 'trackio', which is not installed; pip install trackio, or use 'wandb'")


class TrackioRun:
    """One run; trials of one program are several of a process, so each is begun in a context of its own.

    Args:
      project, name, group, config: as trackio shows them; the tags and the kind of the run are part of the config.
    """

    def __init__(self, project: str, name: str, group: str | None, config: Mapping[str, Any]):
        import trackio  # pyright: ignore[reportMissingImports]

        self._context = contextvars.Context()  # trackio ends the run that its context has when another begins
        self._run = self._quietly(
            trackio.init, project=project, name=name, group=group, config=dict(config), resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        self.summary: dict[str, Any] = {}

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Adds one record, if it has values."""
        if values:
            self._quietly(self._run.log, dict(values), step=step)

    def finish(self, exit_code: int = 0) -> None:
        """Ends the run; its summary is a last record, for trackio has none."""
        shown = {**{f"summary/{key}": value for key, value in self.summary.items()}, "summary/exit_code": exit_code}
        self.log(shown)
        self._quietly(self._run.finish)

    def _quietly(self, call: Any, *values: Any, **named: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return self._context.run(call, *values, **named)
