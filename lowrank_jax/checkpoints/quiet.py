"""Keeps orbax from printing errors that a run reports in one line."""

import logging
import os
import sys


def quieten_orbax() -> None:
    """Suppresses orbax's output on errors that we report in one line.

    That is log records below CRITICAL (tracebacks), and the unraisable exceptions of its abandoned reads of a damaged
    file ("Event loop is closed", "never retrieved").
    """
    logger = logging.getLogger("absl")
    if _not_orbax in logger.filters:
        return
    logger.addFilter(_not_orbax)
    logging.getLogger("asyncio").addFilter(_not_abandoned)
    previous = sys.unraisablehook

    def hook(unraisable):
        text, reader = str(unraisable.exc_value), repr(unraisable.object)
        if text != "Event loop is closed" and "_read_array_index_and_device_put" not in reader:
            previous(unraisable)

    sys.unraisablehook = hook


def _not_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname or record.levelno >= logging.CRITICAL


def _not_abandoned(record: logging.LogRecord) -> bool:
    return "never retrieved" not in record.getMessage() or "tensorstore" not in record.getMessage()
