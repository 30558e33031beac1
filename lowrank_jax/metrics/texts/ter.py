"""TER, the edits and shifts that turn a text into a reference, by pyter in several processes."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lowrank_jax.metrics.texts.processes import ProgramFailed, processors
from lowrank_jax.metrics.texts.rows import Texts

ROWS = 8  # fewest rows of a process
Row = tuple[str, tuple[str, ...]]  # a prediction and its references
Known = dict[Row, float]


def ter(texts: Texts, known: Known | None = None) -> float:
    """Mean over the rows of the least TER of a row's references; an empty reference counts as 1.

    Edits divided by the reference's words: 0 for the reference itself, and may exceed 1.

    Args:
      texts: predictions and references, split into words by spaces.
      known: the TER of rows that were scored before. The other rows are computed and added to it.

    Raises:
      ModuleNotFoundError: pyter3 is not installed.
      ProgramFailed: a process ended early.
    """
    import pyter  # noqa: F401  (where it is missing, this fails at once and not in each process)

    known = {} if known is None else known
    rows = [(text, tuple(references)) for text, references in zip(texts.predictions, texts.references, strict=True)]
    new = list(dict.fromkeys(row for row in rows if row not in known))
    count = max(1, min(processors(), len(new) // ROWS))
    with ThreadPoolExecutor(count, "ter") as pool:
        shares = [new[i::count] for i in range(count)] if new else []
        for share, found in zip(shares, pool.map(_in_process, shares), strict=True):
            known.update(zip(share, found, strict=True))
    return statistics.fmean(known[row] for row in rows)


def _in_process(rows: Sequence[Row]) -> list[float]:
    # This file as a program: a forked or spawned copy of the caller would have to import jax, or share its devices.
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        input=json.dumps(rows),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ProgramFailed("TER", done.returncode, done.stderr)
    return json.loads(done.stdout)


def least(prediction: str, references: Sequence[str]) -> float:
    """The least TER of the references."""
    import pyter

    words, texts = prediction.split(), dict.fromkeys(references)  # a repeated one changes no least
    return min(pyter.ter(words, text.split()) if text else 1.0 for text in texts)


if __name__ == "__main__":
    json.dump([least(*row) for row in json.load(sys.stdin)], sys.stdout)
