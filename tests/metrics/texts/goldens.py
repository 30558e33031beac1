"""The official scripts' numbers for outputs in a folder of public data; as a program, ours beside all of them.

python tests/metrics/texts/goldens.py FOLDER/goldens    (minutes: METEOR and TER of all sets)
"""

import csv
import gzip
import json
import sys
from pathlib import Path

REFERENCES = 6


def lines(path):
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def e2e(folder):
    """{set: (predictions, references, {metric: official, as our `score` names and scales it})}."""
    rows = list(csv.DictReader((folder / "e2e" / "official.tsv").read_text().splitlines(), delimiter="\t"))
    scale = {"BLEU": ("bleu", 100), "NIST": ("nist", 1)}
    rest = {"METEOR": ("meteor", 100), "ROUGE_L": ("rouge_l", 100), "CIDEr": ("cider", 1)}
    found = {}
    for name in dict.fromkeys(row["system"] for row in rows):
        written = "\n".join(lines(folder / "e2e" / f"{name.split('.')[0]}.refs.txt.gz"))
        references = [block.splitlines() for block in written.strip("\n").split("\n\n")]
        official = {}
        for row in rows:
            if row["system"] == name:
                ending = "" if row["mode"] == "perl" else "_python"
                official |= {ours + ending: float(row[key]) * by for key, (ours, by) in scale.items()}
                official |= {ours: float(row[key]) * by for key, (ours, by) in rest.items()}
        found[name] = lines(folder / "e2e" / f"{name}.txt.gz"), references, official
    return found


def triples(folder):
    """The same of webnlg and dart."""
    found = {}
    for row in map(json.loads, (folder / "webnlg-dart" / "official.jsonl").read_text().splitlines()):
        name = row["set"].split("/")[0]
        place = folder / "webnlg-dart" / name
        references = zip(*(lines(place / f"reference{i}.gz") for i in range(REFERENCES)), strict=True)
        _, _, official = found.setdefault(name, (lines(place / "hypothesis.gz"), [list(r) for r in references], {}))
        keys = {"bleu": "bleu", "meteor": "meteor", "ter": "ter", "chrf++": "chrf"}
        official.update({keys[key]: value for key, value in row["result"].items() if key in keys})
    return found


def main(folder):
    from lowrank_jax.metrics.texts import score

    sets = {name: ("e2e", *rest) for name, rest in e2e(folder).items()}
    sets |= {name: (name, *rest) for name, rest in triples(folder).items()}
    for name, (kind, predictions, references, official) in sets.items():
        ours = score(kind, predictions, references)
        for metric, value in official.items():
            print(f"{name:14} {metric:12} official {value:<22} ours {ours.values.get(metric)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
