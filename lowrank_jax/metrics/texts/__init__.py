"""Metrics of generated text, as the official scripts of E2E, WebNLG, DART and SAMSum compute them."""

from lowrank_jax.metrics.texts.scores import Scores, score

__all__ = ["Scores", "score"]
