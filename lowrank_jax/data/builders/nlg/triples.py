"""WebNLG 2017 and DART: texts from triples, "subject : property : object" joined by " | "."""

from collections.abc import Iterator
from pathlib import Path

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.nlg.files import read_value, take
from lowrank_jax.data.builders.nlg.rows import NlgRow

GOOD = "good"  # the comment of WebNLG's texts that are kept; the others are "toFix"
PARTS = ("subject", "property", "object")


def read_webnlg(path: Path) -> Iterator[NlgRow]:
    """The entries of a file, {"entries": [{"1": {"category", "modifiedtripleset", "lexicalisations"}}, ...]}.

    Entries without a good text are left out, as in LoRA's script.

    Raises:
      UserError: a key is missing or a text empty; names the entry.
    """
    for number, entry in enumerate(take(str(path), read_value(path), "entries", list), 1):
        where = f"{path}, entry {number}"
        row = take(where, entry, str(number), dict)
        triples = [
            [take(where, one, part, str) for part in PARTS] for one in take(where, row, "modifiedtripleset", list)
        ]
        texts = [
            take(where, one, "lex", str, empty=False).strip()
            for one in take(where, row, "lexicalisations", list)
            if take(where, one, "comment", str) == GOOD
        ]
        if texts:
            yield NlgRow(linear(where, triples), tuple(texts), where, take(where, row, "category", str))


def read_dart(path: Path, empty: bool = False) -> Iterator[NlgRow]:
    """The entries of a file, [{"tripleset": [[subject, relation, object], ...], "annotations": [{"text"}]}, ...].

    Args:
      empty: whether a text may be empty, as one of the official test file is.

    Raises:
      UserError: a key is missing, a triple has not three parts, or a text is empty; names the entry.
    """
    value = read_value(path)
    if not isinstance(value, list):
        raise UserError(f"{path}: is a JSON {type(value).__name__}, not a list of entries; use the official file")
    for number, row in enumerate(value, 1):
        where = f"{path}, entry {number}"
        triples = take(where, row, "tripleset", list)
        if wrong := [one for one in triples if not _is_triple(one)]:
            raise UserError(f"{where}: a triple is {str(wrong[0])[:60]}, not three texts; use the official file")
        texts = [take(where, one, "text", str, empty).strip() for one in take(where, row, "annotations", list)]
        if not texts:
            raise UserError(f"{where}: has no text in 'annotations'; remove the entry, or use the official file")
        yield NlgRow(linear(where, [[first, name.lower(), last] for first, name, last in triples]), tuple(texts), where)


def linear(where: str, triples: list[list[str]]) -> str:
    """[[s, p, o], ...] -> "s : p : o | s : p : o".

    Raises:
      UserError: there is no triple.
    """
    if not triples:
        raise UserError(f"{where}: has no triples; remove the entry, or use the official file")
    return " | ".join(" : ".join(triple) for triple in triples)


def _is_triple(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(part, str) for part in value)
