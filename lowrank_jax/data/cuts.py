"""One line about rows cut at a length limit: how many rows and tokens are lost, and what length keeps all."""

from collections.abc import Callable, Sequence

import numpy as np

SHOWN = 3  # places named in a line


def describe_cuts(
    name: str,
    key: str,
    limit: int,
    lengths: Sequence[int] | np.ndarray,
    left_out: Sequence[int] = (),
    place: Callable[[int], str] = lambda row: f"row {row + 1}",
) -> str | None:
    """The line about rows that are cut at `limit` tokens; None where none is.

    Args:
      name: what the rows are called, "task.path".
      key: the config's key that sets the limit, "task.seq_len".
      limit: most tokens of a row.
      lengths: [rows] tokens of each row as it was encoded.
      left_out: rows that are left out as they keep no target: all their tokens are lost.
      place: row -> file and line.
    """
    tokens = np.asarray(lengths, np.int64)
    lost = np.maximum(tokens - limit, 0)
    lost[list(left_out)] = tokens[list(left_out)]
    long, rows, words = int((tokens > limit).sum()), len(tokens), []
    if long:
        words.append(f"{long} of {rows} row(s) longer than {key}={limit}")
    if lost.any():
        words.append(f"{lost.sum():,} of {tokens.sum():,} tokens are lost")
    if long:
        words.append(f"{key}={tokens.max()} keeps all")
    if len(left_out):
        shown = "; ".join(place(row) for row in left_out[:SHOWN])
        more = f"; and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
        words.append(f"{len(left_out)} of {rows} row(s) left out, as no target remains: {shown}{more}")
    return f"{name}: {'; '.join(words)}" if words else None
