"""Writes MetaMathQA's rows as texts for configs/peft_metamath.py, in the order in which PEFT's comparison reads them.

python scripts/peft_metamath.py hub:meta-math/MetaMathQA:train metamath.jsonl --tokenizer=meta-llama/Llama-3.2-3B
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone that is not installed yet

from lowrank_jax.bases.locate import resolve
from lowrank_jax.core.errors import UserError, front_door, report
from lowrank_jax.data.sources import read_source
from lowrank_jax.text.tokenizers import load_tokenizer

LONGEST = 1_300  # characters of a question and its answer with a space between; longer rows are left out
BUCKET = 80  # 20 batches of 4, inside which rows are sorted by their tokens, the longest first
LENGTH = 768  # tokens at which rows are cut, BOS included
WANTED = 20_000  # 5,000 batches of 4


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="rows of query and response: a .jsonl file, or hub:owner/name:split")
    parser.add_argument("out", type=Path, help=".jsonl file of texts, which must not exist")
    parser.add_argument("--tokenizer", required=True, help="base whose tokens are counted, as in base.name")
    parser.add_argument("--rows", type=int, default=WANTED, help=f"texts that are written ({WANTED})")
    options = parser.parse_args(argv)
    try:
        if options.out.exists():
            raise UserError(f"{options.out} exists; name another file")
        tokenizer = load_tokenizer(resolve(options.tokenizer, weights=False)[0])
        found = (row for _, rows in read_source(options.source) for _, _, row in rows)
        texts = list(itertools.islice(in_order(as_texts(found), tokenizer.encode), options.rows))
        if not texts:
            raise UserError(f"{options.source} has no row of query and response of at most {LONGEST} characters")
        options.out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    except UserError as error:
        return report(error)
    print(f"wrote {len(texts)} texts to {options.out}")
    return 0


def as_texts(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Each row's prompt and answer in one text, without those that are too long.

    Raises:
      UserError: a row has no query or response.
    """
    for number, row in enumerate(rows, 1):
        if not all(isinstance(row.get(key), str) for key in ("query", "response")):
            raise UserError(f'row {number} has no text as "query" or "response"; give MetaMathQA\'s rows')
        if len(row["query"]) + 1 + len(row["response"]) <= LONGEST:
            yield f"Question: {row['query']} Think step by step.\nAnswer:{row['response']}"


def in_order(texts: Iterable[str], encode: Callable[[str], Sequence[int]]) -> Iterator[str]:
    """The texts, inside each bucket from the longest to the shortest; of equals the earlier first."""
    texts = iter(texts)
    while bucket := list(itertools.islice(texts, BUCKET)):
        yield from sorted(bucket, key=lambda text: -min(len(encode(text)) + 1, LENGTH))


if __name__ == "__main__":
    with front_door():
        sys.exit(main())
