"""Converts a folder of recorded results, a .json file a run, to one JSON-lines file: FOLDER -> FOLDER.jsonl.

python scripts/convert_results.py experiments/results/uuid_gpu [--check]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone that is not installed yet

from experiments.records import json_files
from experiments.records.checks import check_record
from experiments.records.lines import append, files_of, read_lines
from lowrank_jax.core.errors import UserError, front_door, report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (1 where a check fails, 2 for a fault that the user can fix)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of .json files; it stays as it is")
    parser.add_argument("--check", action="store_true", help="write nothing: compare folder and file record for record")
    options = parser.parse_args(argv)
    status = 0
    try:
        for folder in options.folders:
            records = read_folder(folder)
            file, _ = files_of(folder)
            if not options.check:
                append(file, records)
            wrong = differences(records, file)
            status |= bool(wrong)
            said = f"differs in {', '.join(wrong[:3])}" if wrong else f"{len(records)} records, equal"
            print(f"{folder} and {file}: {said}")
    except UserError as error:
        return report(error)
    return status


def read_folder(folder: Path) -> list[dict]:
    """The records of a folder's files, by name.

    Raises:
      UserError: there is no folder, no record in it, or a file in it is not the record of that name.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {str(folder)!r}")
    records = []
    for path in sorted(folder.glob("*.json")):
        record = json_files.read_json(path, remedy="move it out of the folder")
        if not isinstance(record, dict) or "status" not in record or record.get("name") != path.stem:
            raise UserError(f"{path} is no record of a run of that name; move it out of the folder")
        check_record(record, str(path), "move it out of the folder")
        records.append(record)
    if not records:
        raise UserError(f"{folder} has no .json file of a run; name a folder of recorded results")
    return sorted(records, key=lambda record: record["name"])


def differences(records: Sequence[dict], file: Path) -> list[str]:
    """Names whose records differ between folder and file, or are missing from either."""
    there = read_lines(file) if file.is_file() else {}
    names = {record["name"] for record in records}
    return [r["name"] for r in records if there.get(r["name"]) != r] + sorted(there.keys() - names)


if __name__ == "__main__":
    with front_door():
        sys.exit(main())
