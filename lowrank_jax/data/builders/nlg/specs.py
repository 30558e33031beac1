"""What each generation data set is: its official files, its number of rows, and how a row becomes tokens."""

from dataclasses import dataclass, field

TRAIN, DEV, TEST = "train", "dev", "test"


@dataclass(frozen=True)
class NlgSpec:
    """One data set of LoRA's GPT tables (arXiv 2106.09685, appendix C).

    Attributes:
      title: what it is called.
      folders: names under which a folder of several data sets may have this one.
      files: split -> names of its file, the official one first.
      rows: split -> official number of (input, text) pairs.
      decoded: the split whose inputs are decoded and scored.
      inputs: official number of inputs of that split, with equal ones merged where `merged`.
      lead: what stands before a text, so that it continues its input.
      separated: whether an end-of-text token stands between input and text, as in LoRA's GPT-2 scripts; otherwise the
        text follows the input at once, as in the paper's GPT-3 runs.
      merged: whether equal inputs are one, with all their references (otherwise each row is decoded).
      most: how many references an input keeps; where it has fewer, the first is repeated, as in the official scripts.
        0: all that it has.
      empty: whether the official test file has empty references, which count as "".
      source: where the official files come from.
    """

    title: str
    folders: tuple[str, ...]
    files: dict[str, tuple[str, ...]]
    rows: dict[str, int]
    decoded: str
    inputs: int
    lead: str = " "
    separated: bool = True
    merged: bool = True
    most: int = 0
    empty: bool = False
    source: str = field(default="", kw_only=True)


NLG: dict[str, NlgSpec] = {
    "e2e": NlgSpec(
        "E2E",
        ("e2e", "e2e-nlg", "e2e-dataset"),
        {TRAIN: ("trainset.csv",), DEV: ("devset.csv",), TEST: ("testset_w_refs.csv",)},
        {TRAIN: 42_061, DEV: 4_672, TEST: 4_693},
        TEST,
        630,
        source="e2e-dataset.zip of the E2E NLG challenge",
    ),
    "webnlg": NlgSpec(
        "WebNLG 2017",
        ("webnlg", "webnlg2017", "webnlg_challenge_2017"),
        {split: (f"{split}.json",) for split in (TRAIN, DEV, TEST)},
        {TRAIN: 18_025, DEV: 2_258, TEST: 4_928},
        TEST,
        1_862,
        most=6,
        source="the challenge's data as {split}.json, in the form that LoRA's repository has",
    ),
    "dart": NlgSpec(
        "DART",
        ("dart",),
        {split: (f"dart-v1.1.1-full-{split}.json",) for split in (TRAIN, DEV, TEST)},
        {TRAIN: 62_659, DEV: 6_980, TEST: 12_552},
        TEST,
        4_159,
        most=6,
        empty=True,
        source="dart-v1.1.1-full-{split}.json of DART's repository",
    ),
    "wikisql": NlgSpec(
        "WikiSQL",
        ("wikisql", "wikisql-subset"),
        {split: (f"{split}.jsonl", *(("valid.jsonl",) if split == DEV else ())) for split in (TRAIN, DEV, TEST)},
        {TRAIN: 56_355, DEV: 8_421, TEST: 15_878},
        DEV,  # the paper's Table 4 has validation accuracy
        8_421,
        separated=False,
        merged=False,
        source="{split}.jsonl and {split}.tables.jsonl of WikiSQL's data.tar.bz2",
    ),
    "samsum": NlgSpec(
        "SAMSum",
        ("samsum", "samsum-corpus", "corpus"),
        {TRAIN: ("train.json",), DEV: ("val.json",), TEST: ("test.json",)},
        {TRAIN: 14_732, DEV: 818, TEST: 819},
        TEST,
        819,
        lead="",
        separated=False,
        merged=False,
        source="train.json, val.json and test.json of corpus.7z",
    ),
}

# The categories of WebNLG's training file: inputs of these count as seen. Hu et al. say that 9 are, without naming
# them; their script lists these ten. The paper's reading here leaves out City, the smallest one of the training file,
# which is a guess.
SEEN: dict[str, tuple[str, ...]] = {
    "code": (
        *("Airport", "Astronaut", "Building", "City", "ComicsCharacter"),
        *("Food", "Monument", "SportsTeam", "University", "WrittenWork"),
    )
}
SEEN["paper"] = tuple(name for name in SEEN["code"] if name != "City")
