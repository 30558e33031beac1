"""Starts this process as one of several, from flags, from JAX_* variables, or as jax detects it in a cluster."""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Sequence
from typing import Any

from lowrank_jax.core.errors import MENDABLE, UserError

# The three that say where a process stands: by the flag's name, the variable. jax itself reads the first alone.
VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}
EXAMPLE = "--coordinator=HOST:PORT --processes=N --process=I"
QUIET = "TF_CPP_MIN_LOG_LEVEL"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where this process stands among several; what is None is detected by jax (SLURM, a TPU pod, Open MPI, ...).

    Attributes:
      coordinator: host and port at which process 0 listens.
      processes: how many there are.
      process: which of them this is, from 0.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def place(multihost: bool | None, given: dict[str, Any]) -> Place | None:
    """Where this process stands; None: it is alone.

    Args:
      multihost: --multihost; False: alone, whatever the variables say.
      given: {name of VARIABLES: the flag's value, or None}; a flag wins over its variable.

    Raises:
      UserError: a part of the three is missing or out of range.
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
    """Keeps jaxlib's own error messages out, which say in many lines what ours say in one; before jax is imported.

    Args:
      words: of the command line; nothing changes where neither they nor the variables ask for several processes.
    """
    asked = any(word.lstrip("-").partition("=")[0] in ("multihost", *VARIABLES) for word in words)
    asked = asked or any(variable in os.environ for variable in VARIABLES.values())
    if asked and os.environ.get(QUIET, "1") == "1":  # jax's own default; another choice is the user's
        os.environ[QUIET] = "3"  # fatal ones alone


def refuse_several(program: str, remedy: str) -> None:
    """Makes sure that the variables do not ask for several processes, for a program that runs in one.

    Raises:
      UserError: they do; `remedy` says what to do in place of it.
    """
    if (_number("processes", os.environ.get(VARIABLES["processes"]), True) or 1) > 1:
        raise UserError(
            f"{program} runs in one process, and {VARIABLES['processes']} asks for several; unset it and {remedy}"
        )


def start(place: Place | None, heartbeat_seconds: int, start_seconds: int) -> contextlib.AbstractContextManager:
    """Connects to the other processes; the run goes in the context returned, which ends all where one ends or dies.

    Args:
      place: None: there are no others.
      heartbeat_seconds: a process that is silent for so long counts as dead.
      start_seconds: how long the processes wait for each other to start.

    Raises:
      UserError: they do not come together.
    """
    if place is None:
        return contextlib.nullcontext()
    import jax

    from experiments.session import lost
    from experiments.session.peers import Peers, leave_with

    if place.process == 0 and place.coordinator is not None and not _is_free(_host_and_port(place.coordinator)[1]):
        raise UserError(_taken(place.coordinator))
    peers = Peers(heartbeat_seconds)
    try:
        with lost.told(peers.lost):
            jax.distributed.initialize(
                place.coordinator, place.processes, place.process,
                initialization_timeout=start_seconds, heartbeat_timeout_seconds=heartbeat_seconds,
            )  # fmt: skip
    except ValueError as error:  # of a number or an address that jax did not find
        raise UserError(
            f"one of several processes, but without {_missing(place)}, and jax finds no cluster (SLURM, a TPU pod, "
            f"Open MPI); give {EXAMPLE}"
        ) from error
    except RuntimeError as error:
        peers.know()
        leave_with(MENDABLE)
        raise UserError(_apart(peers, start_seconds, error)) from error
    peers.know()
    return peers


def _apart(peers: Any, seconds: int, error: Exception) -> str:
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
    """Whether nobody has the port; jaxlib ends in a segmentation fault where somebody has, listening or not."""
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
