"""experiments.run in processes forked from one that has imported it, for half of the CPU time of a new one."""

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# One CPU device each, the suite's flags with which programs compile in half the time, and one compilation cache.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1 --xla_force_host_platform_device_count=1",
    "NPROC": "8",
    "TF_CPP_MIN_LOG_LEVEL": "3",  # as `cluster.quieten` sets it before jax is imported
    "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "lowrank_jax_drills_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def preload() -> None:
    """Imports what a run imports, and starts none of jax's devices. Call it before anything imports jax."""
    assert "jax" not in sys.modules, "jax has read its variables already"
    for name in [name for name in os.environ if name.startswith(("JAX_", "WANDB_"))]:
        del os.environ[name]
    os.environ.update(ENVIRONMENT)
    import grain.python  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import orbax.checkpoint  # noqa: F401

    from experiments.config.sections import experiment_types
    from experiments.records import data_record, run_folder  # noqa: F401
    from experiments.session import build, fit, training  # noqa: F401

    experiment_types()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder. Python's own would be removed by the first child that exits."""
    folder = Path(tempfile.mkdtemp(prefix="lowrank_jax_drill_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Forked:
    """One such process.

    Args:
      words: of its command line.
      prepare: called in it before the program.
    """

    def __init__(self, words: Sequence[str], prepare: Callable[[], None]):
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self._status: int | None = None
        self.pid = os.fork()
        if not self.pid:
            self._run(words, prepare)

    def poll(self) -> int | None:
        """Its exit status, minus the signal that ended it, or None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def said(self) -> list[list[str]]:
        """The lines of its stdout and stderr."""
        lines = []
        for file in self._files:
            file.seek(0)
            lines.append(file.read().decode(errors="replace").splitlines(True))
            file.close()
        return lines

    def _run(self, words: Sequence[str], prepare: Callable[[], None]) -> None:
        """The child: what the interpreter does with `-m experiments.run`, from the program's start to its exit."""
        status = 1
        try:
            for number, file in enumerate(self._files, 1):
                os.dup2(file.fileno(), number)
            os.chdir(ROOT)
            sys.argv = ["experiments/run.py", *words]
            from experiments import run
            from experiments.cli import launch

            prepare()
            try:
                launch(run.main)
                status = 0
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException as error:
            sys.last_value = error
            traceback.print_exc()
        finally:
            threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
