"""LoRA (Hu et al., arXiv 2106.09685 v2): the published numbers of its GPT-2 experiments (Tables 3, 13, 14, 18)."""

from typing import NamedTuple

MEDIUM, LARGE = "gpt2-medium", "gpt2-large"


class Published(NamedTuple):
    """One printed row of a table.


    Attributes:
      model: name of the base in `models.registry`.
      method: family or rule as our configs call it.
      name: the paper's.
      millions: trainable parameters.
      scores, spreads: by the table's columns, as printed; spreads None: not given.
      quoted: taken from earlier work (*).
    """

    model: str
    method: str
    name: str
    millions: float
    scores: tuple[float, ...]
    spreads: tuple[float | None, ...] | None = None
    quoted: bool = False

    @property
    def label(self) -> str:
        """The method, with * where the paper quotes the row."""
        return self.name + ("*" if self.quoted else "")


# E2E, the official scripts' metrics: mean over 3 seeds, the best epoch of each.
E2E = ("bleu", "nist", "meteor", "rouge_l", "cider")
TABLE3 = (
    Published(MEDIUM, "fft", "FT", 354.92, (68.2, 8.62, 46.2, 71.0, 2.47), quoted=True),
    Published(MEDIUM, "lin", "Adapter-L", 0.37, (66.3, 8.41, 45.0, 69.8, 2.40), quoted=True),
    Published(MEDIUM, "lin", "Adapter-L", 11.09, (68.9, 8.71, 46.1, 71.3, 2.47), quoted=True),
    Published(MEDIUM, "houlsby", "Adapter-H", 11.09, (67.3, 8.50, 46.0, 70.7, 2.44), (0.6, 0.07, 0.2, 0.2, 0.01)),
    Published(MEDIUM, "ft-top2", "FT-Top2", 25.19, (68.1, 8.59, 46.0, 70.8, 2.41), quoted=True),
    Published(MEDIUM, "prelayer", "PreLayer", 0.35, (69.7, 8.81, 46.1, 71.4, 2.49), quoted=True),
    Published(MEDIUM, "lora", "LoRA", 0.35, (70.4, 8.85, 46.8, 71.8, 2.53), (0.1, 0.02, 0.2, 0.1, 0.02)),
    Published(LARGE, "fft", "FT", 774.03, (68.5, 8.78, 46.0, 69.9, 2.45), quoted=True),
    Published(LARGE, "lin", "Adapter-L", 0.88, (69.1, 8.68, 46.3, 71.4, 2.49), (0.1, 0.03, 0.0, 0.2, 0.0)),
    Published(LARGE, "lin", "Adapter-L", 23.00, (68.9, 8.70, 46.1, 71.3, 2.45), (0.3, 0.04, 0.1, 0.2, 0.02)),
    Published(LARGE, "prelayer", "PreLayer", 0.77, (70.3, 8.85, 46.2, 71.7, 2.47), quoted=True),
    Published(LARGE, "lora", "LoRA", 0.77, (70.4, 8.89, 46.8, 72.0, 2.47), (0.1, 0.02, 0.2, 0.2, 0.02)),
)

DART = ("bleu", "meteor", "ter")
TABLE13 = (
    Published(MEDIUM, "fft", "FT", 354, (46.2, 0.39, 0.46)),
    Published(MEDIUM, "lin", "Adapter-L", 0.37, (42.4, 0.36, 0.48)),
    Published(MEDIUM, "lin", "Adapter-L", 11, (45.2, 0.38, 0.46)),
    Published(MEDIUM, "ft-top2", "FT-Top2", 24, (41.0, 0.34, 0.56)),
    Published(MEDIUM, "prelayer", "PrefLayer", 0.35, (46.4, 0.38, 0.46)),
    Published(MEDIUM, "lora", "LoRA", 0.35, (47.1, 0.39, 0.46), (0.2, None, None)),
    Published(LARGE, "fft", "FT", 774, (47.0, 0.39, 0.46)),
    Published(LARGE, "lin", "Adapter-L", 0.88, (45.7, 0.38, 0.46), (0.1, None, None)),
    Published(LARGE, "lin", "Adapter-L", 23, (47.1, 0.39, 0.45), (0.1, None, None)),
    Published(LARGE, "prelayer", "PrefLayer", 0.77, (46.7, 0.38, 0.45)),
    Published(LARGE, "lora", "LoRA", 0.77, (47.5, 0.39, 0.45), (0.1, None, None)),
)

# Each metric on the categories that training did not see, on those it saw, and on all.
SPLITS = ("unseen", "seen", "all")
WEBNLG = tuple((metric, split) for metric in ("bleu", "meteor", "ter") for split in SPLITS)
_NONE = (None,) * 6
TABLE14 = (
    Published(MEDIUM, "fft", "FT", 354, (27.7, 64.2, 46.5, 0.30, 0.45, 0.38, 0.76, 0.33, 0.53)),
    Published(MEDIUM, "lin", "Adapter-L", 0.37, (45.1, 54.5, 50.2, 0.36, 0.39, 0.38, 0.46, 0.40, 0.43)),
    Published(MEDIUM, "lin", "Adapter-L", 11, (48.3, 60.4, 54.9, 0.38, 0.43, 0.41, 0.45, 0.35, 0.39)),
    Published(MEDIUM, "ft-top2", "FT-Top2", 24, (18.9, 53.6, 36.0, 0.23, 0.38, 0.31, 0.99, 0.49, 0.72)),
    Published(MEDIUM, "prelayer", "Prefix", 0.35, (45.6, 62.9, 55.1, 0.38, 0.44, 0.41, 0.49, 0.35, 0.40)),
    Published(
        MEDIUM, "lora", "LoRA", 0.35, (46.7, 62.1, 55.3, 0.38, 0.44, 0.41, 0.46, 0.33, 0.39), (0.4, 0.2, 0.2, *_NONE)
    ),
    Published(LARGE, "fft", "FT", 774, (43.1, 65.3, 55.5, 0.38, 0.46, 0.42, 0.53, 0.33, 0.42)),
    Published(
        LARGE, "lin", "Adapter-L", 0.88, (49.8, 61.1, 56.0, 0.38, 0.43, 0.41, 0.44, 0.35, 0.39), (0.0, 0.0, 0.0, *_NONE)
    ),
    Published(
        LARGE, "lin", "Adapter-L", 23, (49.2, 64.7, 57.7, 0.39, 0.46, 0.43, 0.46, 0.33, 0.39), (0.1, 0.2, 0.1, *_NONE)
    ),
    Published(LARGE, "prelayer", "Prefix", 0.77, (47.7, 63.4, 56.3, 0.39, 0.45, 0.42, 0.48, 0.34, 0.40)),
    Published(
        LARGE, "lora", "LoRA", 0.77, (48.4, 64.0, 57.0, 0.39, 0.45, 0.42, 0.45, 0.32, 0.38), (0.3, 0.3, 0.1, *_NONE)
    ),
)

# GPT-2 medium with LoRA on E2E after 26,000 steps: rank -> validation loss, BLEU, NIST, METEOR, ROUGE-L, CIDEr.
RANKS = ("loss", *E2E)
TABLE18 = {
    1: (1.23, 68.72, 8.7215, 0.4565, 0.7052, 2.4329),
    2: (1.21, 69.17, 8.7413, 0.4590, 0.7052, 2.4639),
    4: (1.18, 70.38, 8.8439, 0.4689, 0.7186, 2.5349),
    8: (1.17, 69.57, 8.7457, 0.4636, 0.7196, 2.5196),
    16: (1.16, 69.61, 8.7483, 0.4629, 0.7177, 2.4985),
    32: (1.16, 69.33, 8.7736, 0.4642, 0.7105, 2.5255),
    64: (1.16, 69.24, 8.7174, 0.4651, 0.7180, 2.5070),
    128: (1.16, 68.73, 8.6718, 0.4628, 0.7127, 2.5030),
    256: (1.16, 68.92, 8.6982, 0.4629, 0.7128, 2.5012),
    512: (1.16, 68.78, 8.6857, 0.4637, 0.7128, 2.5025),
    1024: (1.17, 69.37, 8.7495, 0.4659, 0.7149, 2.5090),
}
