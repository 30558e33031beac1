"""A profile of some of a run's steps."""

from types import TracebackType

import jax


class Trace:
    """A profile of steps [first, last], or of as many as this session runs; closed whatever ends the loop."""

    def __init__(self, steps: tuple[int, int] | None, folder: str):
        self.steps, self.folder, self.running = steps, folder, False

    def before(self, step: int):
        if self.steps and not self.running and self.steps[0] <= step <= self.steps[1]:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def ends_with(self, step: int) -> bool:
        return self.running and self.steps is not None and step == self.steps[1]

    def stop(self):
        if self.running:
            self.running = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
