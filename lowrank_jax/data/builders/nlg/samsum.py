"""SAMSum (Gliwa et al., 2019): summaries of conversations; lists of {"id", "dialogue", "summary"}."""

from collections.abc import Iterator
from pathlib import Path

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.nlg.files import read_value, take
from lowrank_jax.data.builders.nlg.rows import NlgRow


def read_samsum(path: Path) -> Iterator[NlgRow]:
    """The rows of a file: the utterances, a line each, and a blank line are the input (Hu et al., appendix C).

    One official training row has no utterance.

    Raises:
      UserError: a key is missing, or a summary is empty; names the row.
    """
    value = read_value(path)
    if not isinstance(value, list):
        raise UserError(f"{path}: is a JSON {type(value).__name__}, not a list of rows; use the official file")
    for number, row in enumerate(value, 1):
        where = f"{path}, row {number}"
        lines = take(where, row, "dialogue", str).splitlines()
        summary = take(where, row, "summary", str, empty=False)
        yield NlgRow("\n".join(line.strip() for line in lines) + "\n\n", (" ".join(summary.split()),), where)
