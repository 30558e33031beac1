"""Starts this process as one of several: from flags, from JAX_* variables, or as jax detects it in a cluster."""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Sequence
from typing import Any

from lowrank_jax.core.errors import MENDABLE, UserError

# Flag -> variable, of the three settings that tell a process its place. jax itself reads only the first variable.
VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}
EXAMPLE = "--coordinator=HOST:PORT --processes=N --process=I"
QUIET = "TF_CPP_MIN_LOG_LEVEL"


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of this process among several; fields that are None are detected by jax (SLURM, a TPU pod, Open MPI).

    Attributes:
      coordinator: host and port at which process 0 listens.
      processes: how many there are.
      process: which of them this is, from 0.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def place(multihost: bool | None, given: dict[str, Any]) -> Place | None:
    """The place of this process among several; None where it is alone.

    Args:
      multihost: the flag; False is alone, whatever the variables say, and None is decided by the other settings.
      given: {name of VARIABLES: the flag's value, or None}; a flag wins over its variable.

    Raises:
      UserError: one of the three is missing or out of range.
    """
    if multihost is False:
        if flags := [f"--{name}" for name, value in given.items() if value is not None]:
            raise UserError(f"--nomultihost contradicts {', '.join(flags)}; leave one of them out")
        return None
    values = {
        name: os.environ.get(variable) if given[name] is None else given[name] for name, variable in VARIABLES.items()
    }
    if all(value is None for value in values.values()) and not multihost:
        return None
    found = Place(
        values["coordinator"], *(_number(name, values[name], given[name] is None) for name in ("processes", "process"))
    )
    if not multihost and (missing := _missing(found)):
        raise UserError(f"one of several processes, but without {missing}; all three are needed: {EXAMPLE}")
    if found.coordinator is not None:
        _host_and_port(found.coordinator)
    if found.processes is not None and found.process is not None and found.process >= found.processes:
        raise UserError(
            f"process {found.process} of {found.processes} is out of range; they count from 0 to {found.processes - 1}"
        )
    return found


def quieten(words: Sequence[str]) -> None:
    """Silences jaxlib's error messages, many lines where ours are one; to be called before jax is imported.

    Args:
      words: the command line. Nothing changes where neither it nor the variables ask for several processes.
    """
    if asked(words) and os.environ.get(QUIET, "1") == "1":  # jax's default; another value is the user's choice
        os.environ[QUIET] = "3"  # only fatal messages


def asked(words: Sequence[str]) -> bool:
    """Whether a command line or the variables speak of several processes."""
    flagged = any(word.lstrip("-").partition("=")[0] in ("multihost", *VARIABLES) for word in words)
    return flagged or any(variable in os.environ for variable in VARIABLES.values())


def refuse_several(program: str, remedy: str) -> None:
    """Refuses to run a program of one process where the variables ask for several.

    Raises:
      UserError: they do; `remedy` says what to do instead.
    """
    if (_number("processes", os.environ.get(VARIABLES["processes"]), True) or 1) > 1:
        raise UserError(
            f"{program} runs in one process, and {VARIABLES['processes']} asks for several; unset it and {remedy}"
        )


def start(place: Place | None, heartbeat_seconds: int, start_seconds: int) -> contextlib.AbstractContextManager:
    """Connects to the other processes; the run goes inside the context returned, which ends all when one ends or dies.

    Args:
      place: None: there are no others.
      heartbeat_seconds: a process that is silent for so long counts as dead.
      start_seconds: how long the processes wait for each other to start.

    Raises:
      UserError: the processes do not all connect.
    """
    if place is None:
        return contextlib.nullcontext()
    import jax

    from experiments.session.together import lost
    from experiments.session.together.peers import Peers, leave_with

    if place.process == 0 and place.coordinator is not None and not _is_free(_host_and_port(place.coordinator)[1]):
        raise UserError(_taken(place.coordinator))
    peers = Peers(heartbeat_seconds)
    try:
        with lost.calling(peers.lost):
            jax.distributed.initialize(
                place.coordinator, place.processes, place.process,
                initialization_timeout=start_seconds, heartbeat_timeout_seconds=heartbeat_seconds,
            )  # fmt: skip
    except ValueError as error:  # jax found no address or no number of processes
        raise UserError(
            f"one of several processes, but without {_missing(place)}, and jax finds no cluster (SLURM, a TPU pod, "
            f"Open MPI); give {EXAMPLE}"
        ) from error
    except RuntimeError as error:
        peers.connected()
        leave_with(MENDABLE)
        raise UserError(_not_connected(peers, start_seconds, error)) from error
    peers.connected()
    return peers


def _not_connected(peers: Any, seconds: int, error: Exception) -> str:
    """Why the processes did not come together."""
    if "Failed to start RPC server" in str(error):
        return _taken(peers.coordinator)
    if peers.process and not _answers(peers.coordinator):
        return (
            f"the coordinator, process 0 at {peers.coordinator}, cannot be reached within {seconds} s; "
            "start it, or correct --coordinator"
        )
    return (
        f"the {peers.processes} processes did not come together at {peers.coordinator} within {seconds} s; start "
        "each --process once, with the same --coordinator and --processes (--start_seconds waits longer)"
    )


def _taken(address: str) -> str:
    return f"process 0 cannot listen at {address}; another program uses the port: choose another one for all processes"


def _is_free(port: int) -> bool:
    """Whether no program uses the port; jaxlib ends in a segmentation fault where one does, listening or not."""
    family, host = (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "0.0.0.0")
    with socket.socket(family) as probe:
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier run's connections may be closing
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _answers(address: str) -> bool:
    try:
        socket.create_connection(_host_and_port(address), timeout=5).close()
    except OSError:
        return False
    return True


def _missing(found: Place) -> str:
    names = [name for name in VARIABLES if getattr(found, name) is None]
    return " and ".join(f"--{name} ({VARIABLES[name]})" for name in names)


def _number(name: str, value: Any, from_variable: bool) -> int | None:
    if value is None:
        return None
    least = 1 if name == "processes" else 0
    if isinstance(value, str) and (value := value.strip()).isdecimal():
        value = int(value)
    if not isinstance(value, int) or value < least:
        said = VARIABLES[name] if from_variable else f"--{name}"
        raise UserError(f"{said} is {value!r}; it must be a whole number from {least} on")
    return value


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"the coordinator is {address!r}; write HOST:PORT, e.g. --coordinator=10.0.0.1:8476")
    return host.strip("[]"), int(port)
