"""The records of a run, in its folder and in W&B or trackio."""

from lowrank_jax.train.tracking.lines import read_decoded, read_metrics, read_samples
from lowrank_jax.train.tracking.modes import TrackingConfig, mode_of
from lowrank_jax.train.tracking.tracker import Tracker

__all__ = ["Tracker", "TrackingConfig", "mode_of", "read_decoded", "read_metrics", "read_samples"]
