"""The clock of the loop's tests."""

import pytest
from loop_parts import Clock

from lowrank_jax.train import meter


@pytest.fixture
def clock(monkeypatch):
    """The loop's clock, which moves on when a step or an evaluation says: no test of it waits or measures."""
    now = Clock()
    monkeypatch.setattr(meter.time, "perf_counter", now)
    return now
