"""Where a run's records go besides its folder, and W&B's mode: online, offline or disabled, never one that prompts."""

import contextlib
import netrc
import os
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.train.tracking.lines import METRICS
from lowrank_jax.train.tracking.trackio_run import check_installed

Mode = Literal["online", "offline", "disabled"]
Wanted = Literal["auto", "online", "offline", "disabled"]


@dataclass(frozen=True)
class TrackingConfig:
    """Where records go besides metrics.jsonl.

    Attributes:
      wandb: `auto` (online when logged in, otherwise offline; nothing if wandb is not installed), `online`, `offline`
        or `disabled`.
      project, group: as W&B shows them; the group of a sweep's runs is the sweep.
      tags: your own; a run's method, rank, rate, seed, task and base are added.
      backend: `wandb`, or `trackio`, which keeps records on this machine alone; then the key `wandb` is ignored.
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
        print(f"wandb is not installed: records go to {METRICS} alone", flush=True)
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
