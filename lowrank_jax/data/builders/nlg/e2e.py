"""E2E: descriptions of restaurants from attributes (Novikova et al., 2017); CSV files with the columns mr and ref."""

import re
from collections.abc import Iterator
from pathlib import Path

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.nlg.files import check_reference, read_table
from lowrank_jax.data.builders.nlg.rows import NlgRow

# The attributes as Li & Liang's and Hu et al.'s files have them.
NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


def read_e2e(path: Path) -> Iterator[NlgRow]:
    """The rows of a file, one text each.

    Raises:
      UserError: a column is missing, a text is empty, or an input has no attributes; names the row.
    """
    known: dict[str, str] = {}  # each input has about nine texts
    for where, row in read_table(path, ("mr", "ref")):
        check_reference(where, "ref", row["ref"])
        if row["mr"] not in known:
            known[row["mr"]] = linear(where, row["mr"])
        yield NlgRow(known[row["mr"]], (row["ref"].strip(),), where)


def linear(where: str, attributes: str) -> str:
    """ "name[Blue Spice], eatType[pub]" -> "name : Blue Spice | Type : pub".

    Raises:
      UserError: the text has another form; names the row.
    """
    found = re.findall(r"\s*([^\[\],]+)\[([^\]]*)\](?:,|$)", attributes)
    if not found or re.sub(r"[^\[\],]+\[[^\]]*\](,|$)", "", attributes).strip():
        raise UserError(f"{where}: 'mr' is {attributes[:60]!r}; it must be like name[Blue Spice], eatType[pub]")
    return " | ".join(f"{NAMES.get(name, name)} : {value}" for name, value in found)
