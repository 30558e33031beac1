"""Calls the programs' own entry points in this process, and reports how each ended."""

import contextlib
import importlib
import io
import os
import signal
import sys
import traceback
from types import SimpleNamespace

from absl import flags

PROGRAMS = {"bench": "experiments.bench.__main__"}  # that are packages
SHARED = ("experiments.cli",)  # modules that define flags of several programs


class Hang(BaseException):
    """A program took longer than its limit."""


@contextlib.contextmanager
def limit(seconds):
    """Raises Hang in the main thread after so many seconds, where the program is in Python by then; 0: never."""

    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop) if seconds else None
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if seconds:
            signal.signal(signal.SIGALRM, before)


def import_alone(path):
    """A program's module, with no other program's flags defined: two that run in one process may have one of a name.

    What is put away is kept in the program's own module, for the next that calls it, whichever test that is.
    """
    defined = flags.FLAGS.flags_by_module_dict()
    for name in [n for n in defined if n.startswith("experiments.") and n not in (path, *SHARED)]:
        kept = vars(sys.modules[name]).setdefault("put_away", [])
        for flag in [*defined[name]]:
            kept.append(flag)
            delattr(flags.FLAGS, flag.name)
    module = importlib.import_module(path)
    for flag in vars(module).get("put_away", ()):
        flags.FLAGS[flag.name] = flag
        flags.FLAGS.register_flag_by_module(path, flag)
    vars(module)["put_away"] = []
    return module


def call(name, *words, main=None, seconds=0):
    """(status, out, err, fault) of a program; `fault` is the traceback of anything but a SystemExit, otherwise "".

    Args:
      main: is called through the front door instead of a program's own flags and main.
    """
    from experiments.cli import launch
    from lowrank_jax.core.errors import front_door

    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    module = None if main else import_alone(PROGRAMS.get(name, f"experiments.{name}"))
    status, fault = 0, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limit(seconds):
        try:
            if main:
                with front_door():
                    sys.exit(main())
            sys.argv = [f"experiments/{name}.py", *map(str, words)]
            launch(module.main)
        except SystemExit as ended:
            status = ended.code or 0
        except (Exception, Hang):
            fault = traceback.format_exc()
        finally:
            sys.argv = argv
            if module:
                forget(module.__name__)
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue(), fault=fault)


def forget(module):
    """Unsets every flag of a program, and drops those of its config: the next call starts afresh.

    absl's own flagsaver would drop grain's flags for ever.
    """
    for flag in [f for f in flags.FLAGS if f.partition(".")[0] == "config"]:
        delattr(flags.FLAGS, flag)
    defined = flags.FLAGS.flags_by_module_dict()
    for one in (module, *SHARED):
        for flag in defined.get(one, ()):
            flag.unparse()
    flags.FLAGS.unparse_flags()


def verdict(ended):
    """ "" where a program ended as it should: with success, or with one line and status 2; otherwise what is wrong."""
    if ended.fault:
        return "traceback: " + ended.fault.strip().splitlines()[-1]
    if ended.status == 0:
        return ""
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.status != 2:
        return f"status {ended.status}: {ended.err[-300:]}"
    if len(lines) != 1 or not ended.err.rstrip("\n").endswith(lines[0]):
        return f"not one line: {ended.err[:300]!r}"
    return ""


def environment():
    """Settings before jax is imported: one CPU device, no W&B, quick compilations."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["WANDB_MODE"] = "disabled"
