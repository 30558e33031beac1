"""LoRA (Hu et al., arXiv 2106.09685 v2): the published numbers of its GLUE experiment (Table 2), as data."""

from typing import NamedTuple

TASKS = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")  # columns
NAMES = ("MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "QQP", "RTE", "STS-B")
METRICS = "MNLI overall accuracy, CoLA Matthews' correlation, STS-B Pearson's, the rest accuracy"


class Published(NamedTuple):
    """One row of Table 2, in %.

    Attributes:
      model: name of the base in `models.registry`.
      method: family or rule as our configs call it.
      name: the paper's.
      millions: trainable parameters, without the classifier's head.
      scores, spreads: by TASKS; LoRA's are medians of 5 seeds, each at its best epoch; spreads None: not given.
      average: as printed.
      quoted: taken from earlier work (*).
      dagger: Houlsby's restricted set-up: 128 tokens, one batch size, no start from MNLI.
    """

    model: str
    method: str
    name: str
    millions: float
    scores: tuple[float, ...]
    spreads: tuple[float, ...] | None
    average: float
    quoted: bool = False
    dagger: bool = False

    @property
    def label(self) -> str:
        """Method with the paper's marks: * quoted, + the dagger."""
        return self.name + ("*" if self.quoted else "") + ("+" if self.dagger else "")


BASE, LARGE, XXL = "roberta-base", "roberta-large", "deberta-v2-xxlarge"
TABLE2 = (
    Published(BASE, "fft", "FT", 125.0, (87.6, 94.8, 90.2, 63.6, 92.8, 91.9, 78.7, 91.2), None, 86.4, quoted=True),
    Published(BASE, "bitfit", "BitFit", 0.1, (84.7, 93.7, 92.7, 62.0, 91.8, 84.0, 81.5, 90.8), None, 85.2, quoted=True),
    Published(
        BASE, "adapterdrop", "Adpt-D", 0.3, (87.1, 94.2, 88.5, 60.8, 93.1, 90.2, 71.5, 89.7),
        (0.0, 0.1, 1.1, 0.4, 0.1, 0.0, 2.7, 0.3), 84.4, quoted=True,
    ),
    Published(
        BASE, "adapterdrop", "Adpt-D", 0.9, (87.3, 94.7, 88.4, 62.6, 93.0, 90.6, 75.9, 90.3),
        (0.1, 0.3, 0.1, 0.9, 0.2, 0.0, 2.2, 0.1), 85.4, quoted=True,
    ),
    Published(
        BASE, "lora", "LoRA", 0.3, (87.5, 95.1, 89.7, 63.4, 93.3, 90.8, 86.6, 91.5),
        (0.3, 0.2, 0.7, 1.2, 0.3, 0.1, 0.7, 0.2), 87.2,
    ),
    Published(LARGE, "fft", "FT", 355.0, (90.2, 96.4, 90.9, 68.0, 94.7, 92.2, 86.6, 92.4), None, 88.9, quoted=True),
    Published(
        LARGE, "lora", "LoRA", 0.8, (90.6, 96.2, 90.9, 68.2, 94.9, 91.6, 87.4, 92.6),
        (0.2, 0.5, 1.2, 1.9, 0.3, 0.1, 2.5, 0.2), 89.0,
    ),
    Published(
        LARGE, "pfeiffer", "Adpt-P", 3.0, (90.2, 96.1, 90.2, 68.3, 94.8, 91.9, 83.8, 92.1),
        (0.3, 0.3, 0.7, 1.0, 0.2, 0.1, 2.9, 0.7), 88.4, dagger=True,
    ),
    Published(
        LARGE, "pfeiffer", "Adpt-P", 0.8, (90.5, 96.6, 89.7, 67.8, 94.8, 91.7, 80.1, 91.9),
        (0.3, 0.2, 1.2, 2.5, 0.3, 0.2, 2.9, 0.4), 87.9, dagger=True,
    ),
    Published(
        LARGE, "houlsby", "Adpt-H", 6.0, (89.9, 96.2, 88.7, 66.5, 94.7, 92.1, 83.4, 91.0),
        (0.5, 0.3, 2.9, 4.4, 0.2, 0.1, 1.1, 1.7), 87.8, dagger=True,
    ),
    Published(
        LARGE, "houlsby", "Adpt-H", 0.8, (90.3, 96.3, 87.7, 66.3, 94.7, 91.5, 72.9, 91.5),
        (0.3, 0.5, 1.7, 2.0, 0.2, 0.1, 2.9, 0.5), 86.4, dagger=True,
    ),
    Published(
        LARGE, "lora", "LoRA", 0.8, (90.6, 96.2, 90.2, 68.2, 94.8, 91.6, 85.2, 92.3),
        (0.2, 0.5, 1.0, 1.9, 0.3, 0.2, 1.1, 0.5), 88.6, dagger=True,
    ),
    Published(XXL, "fft", "FT", 1500.0, (91.8, 97.2, 92.0, 72.0, 96.0, 92.7, 93.9, 92.9), None, 91.1, quoted=True),
    Published(
        XXL, "lora", "LoRA", 4.7, (91.9, 96.9, 92.6, 72.4, 96.0, 92.9, 94.9, 93.0),
        (0.2, 0.2, 0.6, 1.1, 0.1, 0.1, 0.4, 0.2), 91.3,
    ),
)  # fmt: skip


def rows_for(model: str) -> tuple[tuple[Published, ...], bool]:
    """(the paper's rows to compare with, whether they are of the same base): the model's, otherwise RoBERTa-base's."""
    own = tuple(row for row in TABLE2 if row.model == model)
    return (own, True) if own else (tuple(row for row in TABLE2 if row.model == BASE), False)
