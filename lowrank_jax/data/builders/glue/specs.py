"""What each GLUE data set is: its files' columns, its labels and its official number of rows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GlueSpec:
    """One data set of Wang et al. (arXiv 1804.07461), as in its official files and in TFDS.

    Attributes:
      folder: name in the official distribution.
      columns: of the sentence, or of the two sentences.
      label: column of the label.
      labels: names of the classes, by number; () where the label is a score.
      written: how the files write each class.
      rows: split -> official number of rows; several numbers where the sources count differently.
      features: TFDS's names of the sentences.
      header: names of the columns where the files have no header line.
      broken_lines: how many lines may lack columns; they are left out, as by GLUE's own reader.
    """

    folder: str
    columns: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    written: tuple[str, ...]
    rows: dict[str, tuple[int, ...]]
    features: tuple[str, ...]
    header: tuple[str, ...] = ()
    broken_lines: int = 0

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", then "dev" or "dev_matched" and "dev_mismatched"."""
        return tuple(self.rows)


SCORES = (0.0, 5.0)  # range of STS-B's label
DIGITS = ("0", "1")
PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

GLUE = {
    "cola": GlueSpec(
        folder="CoLA",
        columns=("sentence",),
        label="label",
        labels=("unacceptable", "acceptable"),
        written=DIGITS,
        rows={"train": (8551,), "dev": (1043,)},
        features=("sentence",),
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": GlueSpec(
        folder="SST-2",
        columns=("sentence",),
        label="label",
        labels=("negative", "positive"),
        written=DIGITS,
        rows={"train": (67349,), "dev": (872,)},
        features=("sentence",),
    ),
    "mrpc": GlueSpec(
        folder="MRPC",
        columns=("#1 String", "#2 String"),
        label="Quality",
        labels=("not_equivalent", "equivalent"),
        written=DIGITS,
        rows={"train": (3668,), "dev": (408,)},
        features=PAIR,
    ),
    "stsb": GlueSpec(
        folder="STS-B",
        columns=PAIR,
        label="score",
        labels=(),
        written=(),
        rows={"train": (5749,), "dev": (1500,)},
        features=PAIR,
    ),
    "qqp": GlueSpec(
        folder="QQP",
        columns=("question1", "question2"),
        label="is_duplicate",
        labels=("not_duplicate", "duplicate"),
        written=DIGITS,
        rows={"train": (363_846, 363_849), "dev": (40_430,)},  # the second is TFDS's
        features=("question1", "question2"),
        broken_lines=64,  # line breaks inside questions: about 23 lines of train.tsv, 1 of dev.tsv
    ),
    "mnli": GlueSpec(
        folder="MNLI",
        columns=PAIR,
        label="gold_label",
        labels=("entailment", "neutral", "contradiction"),
        written=("entailment", "neutral", "contradiction"),
        rows={"train": (392_702,), "dev_matched": (9815,), "dev_mismatched": (9832,)},
        features=("premise", "hypothesis"),
    ),
    "qnli": GlueSpec(
        folder="QNLI",
        columns=("question", "sentence"),
        label="label",
        labels=ENTAILMENT,
        written=ENTAILMENT,
        rows={"train": (104_743,), "dev": (5463,)},
        features=("question", "sentence"),
    ),
    "rte": GlueSpec(
        folder="RTE",
        columns=PAIR,
        label="label",
        labels=ENTAILMENT,
        written=ENTAILMENT,
        rows={"train": (2490,), "dev": (277,)},
        features=PAIR,
    ),
    "wnli": GlueSpec(
        folder="WNLI",
        columns=PAIR,
        label="label",
        labels=("not_entailment", "entailment"),
        written=DIGITS,
        rows={"train": (635,), "dev": (71,)},
        features=PAIR,
    ),
}
