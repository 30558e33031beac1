"""The runs that share a program: the file that a sweep writes of them, and the line that is printed of them."""

from collections.abc import Sequence

from experiments.config.arguments import FILE
from experiments.config.files import name_by
from experiments.config.plain import to_plain
from experiments.config.schema import unpack_run
from experiments.config.vary import named, seeds_alone, varying
from experiments.records import json_files
from lowrank_jax.core.errors import UserError


def read_cells(path: str) -> list[tuple[str, dict]]:
    """(name, plain config) of every run in a file of --cells.

    Raises:
      UserError: it is not a list of such runs, is empty, lists a run twice, or has a wrong config.
    """
    remedy = "write it with experiments.sweep --together"
    listed = json_files.read_json(path, remedy)
    found = []
    for cell in listed if isinstance(listed, list) else []:
        if not (isinstance(cell, dict) and isinstance(cell.get("name"), str) and isinstance(cell.get("config"), dict)):
            raise UserError(f'{path} has an entry that is not {{"name": ..., "config": {{...}}}}; {remedy}')
        try:
            unpack_run(to_plain(cell["config"]))
        except UserError as error:
            raise UserError(f"{path}, {cell['name']}: {error}") from None
        found.append((cell["name"], cell["config"]))
    if not found or len({name for name, _ in found}) < len(found):
        raise UserError(f"{path} lists {'a run twice' if found else 'no runs'}; {remedy}")
    if isinstance(file := listed[0].get(FILE), str):
        name_by(file)
    return found


def described(names: Sequence[str], plains: Sequence[dict], trainable: Sequence[int], devices: int) -> str:
    """The trials of a program in one line; where they differ in more than seeds, with a further line for each."""
    counts = "-".join(f"{count:,}" for count in dict.fromkeys((min(trainable), max(trainable))))
    line = f"{len(names)} trials of {counts} trainable parameters over one base on {devices} device(s)"
    each = [named(values) for values in varying(plains)]
    if seeds_alone(plains):
        return f"{line}: {'; '.join(each)}" if len(names) > 1 else line
    note = f"{line}; above is the plan of the largest" if min(trainable) < max(trainable) else line
    rows = zip(names, each, trainable, strict=True)
    return "\n".join([note, *(f"  {name}: {words}; {count:,} trainable" for name, words, count in rows)])
